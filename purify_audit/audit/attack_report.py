"""Attack an audited purifier and report robust accuracy beside its compression."""

from typing import Any

from purify_audit.audit.attack_results import AttackResults
from purify_audit.audit.attack_run import run_attacks
from purify_audit.audit.model_info import classifier_info, data_info
from purify_audit.audit.result import SILENT, AuditResult, Decided, Progress, never_decided
from purify_audit.audit.store import RunStore
from purify_audit.audit.subject import Subject
from purify_audit.core.findings import Finding, finding
from purify_audit.models.runner import Stopped, deterministic, environment
from purify_audit.report.citations import citations
from purify_audit.report.schema import AttackInfo, Report
from purify_audit.statistics.attack import (
    attack_estimates,
    cap_points,
    disagreements,
    fooling_rates,
    image_verdicts,
    rank_correlations,
)
from purify_audit.statistics.attack_rows import AttackSamples
from purify_audit.statistics.estimates import Estimate


def run_attack(
    subject: Subject,
    basis: AuditResult,
    progress: Progress = SILENT,
    *,
    decided: Decided = never_decided,
    store: RunStore | None = None,
) -> AuditResult:
    """Attack the audited purifier and add the results to its report.

    Args:
        subject: what is audited; its plan has an attack and a classifier.
        basis: the result of `run_compression` on the same subject.
        progress: progress callbacks; `Stopped` raised there gives a partial result.
        decided: early decision, asked at every look of the plan.
        store: where finished units are stored, and read from.
    """
    results = AttackResults()

    def is_decided(attacks: AttackSamples) -> bool:
        report = _report(subject, basis, results)
        report = report.model_copy(update={"status": basis.report.status})
        return decided(AuditResult(report, basis.samples, attacks))

    with deterministic(gradients=True):
        try:
            run_attacks(subject, progress.tick, results, is_decided, store)
            results.complete = True
        except Stopped:
            sentence = (
                f"The run ended after attacks on {results.images} of {len(subject.images)} images."
            )
            results.findings.append(finding("PA311", sentence, {"images": results.images}))
    return AuditResult(
        _report(subject, basis, results),
        basis.samples,
        results.samples(),
        results.short_of_memory,
        basis.tuning,
    )


def _report(subject: Subject, basis: AuditResult, results: AttackResults) -> Report:
    samples, plan, old = results.samples(), subject.plan, _without_attack(basis.report)
    findings = list(old.findings) + results.findings
    estimates: list[Estimate] = []
    info = None
    if samples is not None:
        estimates = list(attack_estimates(samples, plan))
        verdicts = image_verdicts(samples, basis.samples, plan)
        fooled, robust = disagreements(verdicts)
        findings += _inflated(estimates) + _robust_without_compression(robust)
        info = AttackInfo(
            gradients=results.gradients,
            fuzziness=tuple(fooling_rates(samples)),
            caps=tuple(cap_points(samples.caps, plan.level)),
            correlations=rank_correlations(verdicts, plan),
            images=tuple(verdicts),
            fooled_despite_compression=tuple(fooled),
            robust_without_compression=tuple(robust),
            evaluations=results.evaluations,
            environment=environment(subject.device, plan.engine),
            convergence=results.convergence,
        )
    more = results.images > len(old.data.ids)
    complete = results.complete and basis.report.status == "complete"
    changes: dict[str, Any] = {
        "plan": plan,
        "plan_digest": plan.digest,
        "status": "complete" if complete else "partial",
        "classifier": classifier_info(subject),
        "data": data_info(subject, results.images) if more else old.data,
        "estimates": (*old.estimates, *estimates),
        "findings": tuple(findings),
        "attack": info,
        "citations": citations(subject.card, plan),
        "run": None,
    }
    return old.model_copy(update=changes)


def _without_attack(report: Report) -> Report:
    """A report without the results of an earlier attack."""
    kept = [
        e
        for e in report.estimates
        if "robust_accuracy" not in e.metric and e.metric != "randomness_inflation"
    ]
    findings = [f for f in report.findings if not f.code.startswith("PA3") or f.code == "PA313"]
    return report.model_copy(update={"estimates": tuple(kept), "findings": tuple(findings)})


def _inflated(estimates: list[Estimate]) -> list[Finding]:
    """Whether the usual protocol reports significantly more than the aligned attack."""
    at = {(e.metric, e.probe, e.eps): e for e in estimates}
    findings = []
    for e in estimates:
        if e.metric != "randomness_inflation" or e.lower is None or e.lower <= 0:
            continue
        usual = at["mean_robust_accuracy", "fresh", e.eps].value
        aligned = at["aligned_robust_accuracy", "aligned", e.eps].value
        findings.append(
            finding(
                "PA309",
                f"Aligned {aligned:.1%}, usual protocol {usual:.1%}: inflation"
                f" {100 * e.value:.1f} points.",
                {"aligned": aligned, "usual": usual, "inflation": e.value},
            )
        )
    return findings


def _robust_without_compression(ids: list[int]) -> list[Finding]:
    if not ids:
        return []
    sentence = f"{len(ids)} of the least-compressed quarter of images resisted the attack."
    return [finding("PA312", sentence, {"image_ids": ids[:20]})]
