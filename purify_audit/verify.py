"""Hold the compression rate against the attack: the straight line of `purify-audit verify`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from purify_audit.attack_samples import AttackSamples
from purify_audit.attack_statistics import (
    attack_estimates,
    cap_points,
    disagreements,
    fuzziness,
    image_verdicts,
    rank_correlations,
)
from purify_audit.audit import Outcome
from purify_audit.battery import attack_all
from purify_audit.defended import Tick
from purify_audit.estimates import Estimate
from purify_audit.findings import Finding, finding
from purify_audit.found import Found
from purify_audit.model_info import data_info, model_info
from purify_audit.report.citations import citations
from purify_audit.report.schema import AttackInfo, Report
from purify_audit.runtime import Stopped, deterministic, environment
from purify_audit.samples import CompressionSamples
from purify_audit.store import RunStore
from purify_audit.subject import Subject


@dataclass(frozen=True, slots=True)
class Verified:
    """A report with an attack in it, and the rows it was made of.

    Attributes:
        report: what was found.
        samples: of compression.
        attacks: of the attacks.
        short: whether memory ran short on the way (`Found.short`).
    """

    report: Report
    samples: CompressionSamples | None
    attacks: AttackSamples | None
    short: bool = False


Enough = Callable[[Verified], bool]


def verify(
    subject: Subject,
    basis: Outcome,
    tick: Tick,
    enough: Enough = lambda verified: False,
    store: RunStore | None = None,
) -> Verified:
    """Attack the audited purifier and add what is found to its report.

    Args:
        subject: what is audited; its plan has an attack and a classifier.
        basis: the report of the same subject without the attack.
        tick: called with network evaluations; raises `Stopped` to end early.
        enough: asked at every look of the plan with what there is; no more images are attacked once
            it says so.
        store: where finished units are kept, and taken from.
    """
    found = Found()

    def asked(attacks: AttackSamples) -> bool:
        told = _report(subject, basis, found)
        told = told.model_copy(update={"status": basis.report.status})
        return enough(Verified(told, basis.samples, attacks))

    with deterministic(gradients=True):
        try:
            attack_all(subject, tick, found, asked, store)
            found.complete = True
        except Stopped:
            told = f"The run ended after attacks on {found.images} of {len(subject.images)} images."
            found.findings.append(finding("PA311", told, {"images": found.images}))
    samples = found.samples()
    return Verified(_report(subject, basis, found), basis.samples, samples, found.short)


def _report(subject: Subject, basis: Outcome, found: Found) -> Report:
    samples, plan, old = found.samples(), subject.plan, _without_attack(basis.report)
    findings = list(old.findings) + found.findings
    estimates: list[Estimate] = []
    info = None
    if samples is not None:
        estimates = list(attack_estimates(samples, plan))
        verdicts = image_verdicts(samples, basis.samples, plan)
        fallen, standing = disagreements(verdicts)
        findings += _inflated(estimates) + _standing(standing)
        info = AttackInfo(
            gradients=found.gradients,
            fuzziness=tuple(fuzziness(samples)),
            caps=tuple(cap_points(samples.caps, plan.level)),
            correlations=rank_correlations(verdicts, plan),
            images=tuple(verdicts),
            compresses_yet_falls=tuple(fallen),
            stands_without_compressing=tuple(standing),
            evaluations=found.spent,
            environment=environment(subject.device, plan.engine),
        )
    judge = subject.judge
    more = found.images > len(old.data.ids)
    complete = found.complete and basis.report.status == "complete"
    changes: dict[str, Any] = {
        "plan": plan,
        "plan_digest": plan.digest,
        "status": "complete" if complete else "partial",
        "classifier": None if judge is None else model_info(judge[0], judge[0].card, None),
        "data": data_info(subject, found.images) if more else old.data,
        "estimates": (*old.estimates, *estimates),
        "findings": tuple(findings),
        "attack": info,
        "citations": citations(subject.card, plan),
        "run": None,
    }
    return old.model_copy(update=changes)


def _without_attack(report: Report) -> Report:
    """A report as it was before an earlier attack."""
    kept = [
        e
        for e in report.estimates
        if "robust_accuracy" not in e.metric and e.metric != "randomness_inflation"
    ]
    findings = [f for f in report.findings if not f.code.startswith("PA3") or f.code == "PA313"]
    return report.model_copy(update={"estimates": tuple(kept), "findings": tuple(findings)})


def _inflated(estimates: list[Estimate]) -> list[Finding]:
    """Whether the usual protocol surely reports more than the aligned attack, at any radius."""
    at = {(e.metric, e.probe, e.eps): e for e in estimates}
    found = []
    for e in estimates:
        if e.metric != "randomness_inflation" or e.lower is None or e.lower <= 0:
            continue
        usual = at["mean_robust_accuracy", "fresh", e.eps].value
        aligned = at["aligned_robust_accuracy", "aligned", e.eps].value
        found.append(
            finding(
                "PA309",
                f"Aligned {aligned:.1%}, usual protocol {usual:.1%}: inflation"
                f" {100 * e.value:.1f} points.",
                {"aligned": aligned, "usual": usual, "inflation": e.value},
            )
        )
    return found


def _standing(ids: list[int]) -> list[Finding]:
    if not ids:
        return []
    told = f"{len(ids)} images stand among the quarter around which the purifier compresses least."
    return [finding("PA312", told, {"image_ids": ids[:20]})]
