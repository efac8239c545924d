"""Hold the compression rate against the attack: the straight line of `purify-audit verify`."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from purify_audit.attack.ball import Ball
from purify_audit.attack.certification import (
    check_attack,
    check_gradient,
    check_stronger,
    check_unbounded,
    check_usefulness,
)
from purify_audit.attack.objective import Defence
from purify_audit.attack.pgd import Attacked
from purify_audit.attack.protocols import (
    BISECTIONS,
    CAP_DIRECTIONS,
    CAP_SCALES,
    caps,
    clean_labels,
    predicted,
    score,
)
from purify_audit.attack.run import Targets, attack, objective, one_step, targets
from purify_audit.attack_plan import WARM_STEPS, AttackPlan
from purify_audit.attack_samples import AttackSamples, CapRows, Scored, join_attacks
from purify_audit.attack_statistics import (
    attack_estimates,
    cap_points,
    disagreements,
    fuzziness,
    image_verdicts,
    rank_correlations,
)
from purify_audit.audit import Outcome
from purify_audit.findings import Finding, finding
from purify_audit.plan import AuditPlan
from purify_audit.purifier import Purifier
from purify_audit.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.report.citations import citations
from purify_audit.report.schema import AttackInfo, Report
from purify_audit.runtime import Stopped, deterministic
from purify_audit.samples import CompressionSamples
from purify_audit.statistics import Estimate
from purify_audit.subject import Subject

_CERTIFIED = 64  # images on which the attack is held against others
_LOOKED_AT = 32  # images whose gradients are looked at

Tick = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Verified:
    """A report with an attack in it, and the rows it was made of."""

    report: Report
    samples: CompressionSamples | None
    attacks: AttackSamples | None


@dataclass(slots=True)
class _Found:
    """What the attacks have found so far: what there is when the run is asked to end."""

    parts: list[AttackSamples] = field(default_factory=list)
    made: list[Attacked] = field(default_factory=list)
    others: list[Scored] = field(default_factory=list)
    caps: CapRows | None = None
    findings: list[Finding] = field(default_factory=list)
    gradients: dict[str, float] = field(default_factory=dict)
    complete: bool = False

    @property
    def images(self) -> int:
        return sum(len(part.ids) for part in self.parts)

    def samples(self) -> AttackSamples | None:
        if not self.parts:
            return None
        whole = join_attacks(self.parts)
        scored = (*whole.scored, *self.others)
        columns = {name: getattr(whole, name) for name in AttackSamples.__dataclass_fields__}
        return AttackSamples(**columns | {"scored": scored, "caps": self.caps})


def verify(subject: Subject, basis: Outcome, tick: Tick) -> Verified:
    """Attack the audited purifier and add what is found to its report.

    Args:
        subject: what is audited; its plan has an attack and a classifier.
        basis: the report of the same subject without the attack.
        tick: called with network evaluations; raises `Stopped` to end early.
    """
    spent, found = [0], _Found()

    def count(evaluations: int) -> None:
        spent[0] += evaluations
        tick(evaluations)

    with deterministic(gradients=True):
        try:
            _attack_all(subject, count, found)
            found.complete = True
        except Stopped:
            told = f"The run ended after attacks on {found.images} of {len(subject.images)} images."
            found.findings.append(finding("PA311", told, {"images": found.images}))
    samples = found.samples()
    return Verified(_report(subject, basis, found, spent[0]), basis.samples, samples)


def planned_evaluations(subject: Subject) -> int:
    """Network evaluations that `verify` will spend, a backward pass counted as one."""
    how, each = _how(subject.plan), subject.purifier.evaluations
    n, m = len(subject.images), min(_CERTIFIED, len(subject.images))
    defence = _defence(subject, subject.purifier, lambda evaluations: None)
    gradient = objective(defence, _on(subject, 1), how, how.norm, 1.0).gradient_evaluations
    rounds = 2 if subject.purifier.randomised else 1

    short = one_step(subject.purifier)
    easy = 0 if short is None else short.evaluations

    def attack_cost(of: AttackPlan, evaluations: int) -> int:
        if of.optimiser == "square":
            return of.restarts * of.draws * of.steps * each
        warm = easy * (WARM_STEPS * (2 if of.gradient == "none" else 3) + 1) * of.warm_start
        return of.draws * (warm + of.restarts * (of.steps * evaluations + each))

    def score_cost(held_out: int) -> int:
        return (how.draws * (BISECTIONS + 5) + held_out) * each

    total = n * (how.draws + how.held_out) * each
    for _ in how.eps:
        total += n * rounds * (attack_cost(how, gradient) + score_cost(how.held_out))
        total += n * (rounds - 1) * how.restarts * how.draws * each
    costs = {"bpda": each}
    for name, other in _others(how).items():
        total += m * (attack_cost(other, costs.get(name, gradient)) + score_cost(0))
    total += n * how.draws * each + n * (1 + len(CAP_SCALES) * CAP_DIRECTIONS) * each
    return total + min(n, _LOOKED_AT) * _usefulness_passes(subject) * each


def seconds_per_evaluation(subject: Subject) -> float:
    """Time of one network evaluation of one row, measured on one micro-batch after another."""
    defence = _defence(subject, subject.purifier, lambda evaluations: None)
    rows = min(defence.microbatch, len(subject.images))
    on = _on(subject, rows)
    times = []
    with deterministic(gradients=True):
        for _ in range(2):
            start = time.monotonic()
            defence.logits(on.x, on.ids, (0,))
            times.append(time.monotonic() - start)
    return times[-1] / (defence.microbatch * subject.purifier.evaluations)


def _attack_all(subject: Subject, tick: Tick, found: _Found) -> None:
    """Check the gradient, attack group by group, then hold the attack against others."""
    how = _how(subject.plan)
    defence = _defence(subject, subject.purifier, tick)
    identity = TransformPurifier(parse_transform("identity", subject.purifier.image))
    bare = _defence(subject, identity, lambda evaluations: None)
    found.findings += _check_gradients(subject, defence, found)
    size = max(1, how.microbatch // how.draws)
    for first in range(0, len(subject.images), size):
        rows = list(range(first, min(first + size, len(subject.images))))
        part, made = _attack_group(subject, defence, bare, rows)
        found.parts.append(part)
        found.made.append(made)
    _certify(subject, defence, found)
    found.caps = caps(defence, bare, subject.images, how.eps[0], how.norm)


def _check_gradients(subject: Subject, defence: Defence, found: _Found) -> list[Finding]:
    how = _how(subject.plan)
    on = _on(subject, _LOOKED_AT)
    aim = objective(defence, on, how, how.norm, how.eps[0])
    mismatches, errors = check_gradient(aim, on.x)
    useless, cosines = check_usefulness(aim, on.x)
    found.gradients = errors | cosines
    if how.optimiser == "square" or how.gradient != "exact":
        used = "no gradient" if how.optimiser == "square" else f"gradient '{how.gradient}'"
        return [finding("PA310", f"The attack used {used}.", {"gradient": how.gradient})]
    return mismatches + useless


def _attack_group(
    subject: Subject, defence: Defence, bare: Defence, rows: list[int]
) -> tuple[AttackSamples, Attacked]:
    """Every attack on some images, scored; and the main one at the first radius as it was made."""
    how = _how(subject.plan)
    on, scored, first = targets(subject.images.select(rows), subject.device), list[Scored](), None
    draws = how.aligned(), how.scoring()
    plain = how.model_copy(update={"gradient": "exact", "draws": 1})
    for eps in how.eps:
        ball = Ball(on.x, how.norm, eps)
        aim = objective(defence, on, how, how.norm, eps)
        made = attack(aim, ball, how)
        first = first or made
        scored.append(score(defence, on, ball, ("aligned", made.x), draws))
        if subject.purifier.randomised:
            x = attack(aim, ball, how, "fresh").x
            scored.append(score(defence, on, ball, ("fresh", x), draws))
        x = attack(objective(bare, on, plain, how.norm, eps), ball, plain).x
        scored.append(score(bare, on, ball, ("bare", x), ((0,), ())))
    assert first is not None, "a plan has a radius"
    labels, margins, held_out = clean_labels(defence, on, how)
    return AttackSamples(
        ids=subject.images.ids[rows],
        labels=on.labels.cpu().numpy(),
        clean_aligned=labels,
        clean_margins=margins,
        clean_held_out=held_out,
        bare_clean=predicted(bare, on.x, on.ids, (0,))[:, 0],
        scored=tuple(scored),
    ), first


def _certify(subject: Subject, defence: Defence, found: _Found) -> None:
    """What the main attack shows of itself, and other attacks that must not do better."""
    how = _how(subject.plan)
    everything, on = _on(subject, None), _on(subject, _CERTIFIED)
    whole = Ball(everything.x, how.norm, how.eps[0])
    aim = objective(defence, everything, how, how.norm, how.eps[0])
    found.findings += check_attack(aim, whole, _joined(found.made))
    samples = found.samples()
    main = None if samples is None else samples.find("aligned")
    assert main is not None, "images were attacked"
    m, labels = len(on.ids), on.labels.cpu().numpy()
    for name, other in _others(how).items():
        eps = _unbounded(how, on.x) if name == "unbounded" else how.eps[0]
        ball = Ball(on.x, how.norm, eps)
        x = attack(objective(defence, on, other, how.norm, eps), ball, other).x
        made = score(defence, on, ball, (name, x), (how.aligned(), ()))
        found.others.append(made)
        if name == "unbounded":
            found.findings += check_unbounded(eps, made.aligned, labels)
        else:
            found.findings += check_stronger(name, made.aligned, main.aligned[:m], labels)


def _others(how: AttackPlan) -> dict[str, AttackPlan]:
    """The attacks that the main one is held against."""
    made = {"unbounded": how.model_copy(update={"restarts": 1})}
    if how.optimiser != "square":
        if how.gradient == "exact":
            changes = {"gradient": "bpda", "restarts": 1, "warm_start": False}
            made["bpda"] = how.model_copy(update=changes)
        search = {"optimiser": "square", "steps": how.square_queries, "restarts": 1}
        made["square"] = how.model_copy(update=search)
    return made


def _unbounded(how: AttackPlan, x: Tensor) -> float:
    """A radius at which every image can become plain grey."""
    grey = 0.5 if how.norm == "linf" else 0.5 * math.sqrt(x[0].numel())
    return max(grey, how.eps[0])


def _report(subject: Subject, basis: Outcome, found: _Found, spent: int) -> Report:
    samples, plan = found.samples(), subject.plan
    findings = list(basis.report.findings) + found.findings
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
            evaluations=spent,
        )
    complete = found.complete and basis.report.status == "complete"
    changes = {
        "plan": plan,
        "plan_digest": plan.digest,
        "status": "complete" if complete else "partial",
        "estimates": (*basis.report.estimates, *estimates),
        "findings": tuple(findings),
        "attack": info,
        "citations": citations(subject.card, plan),
        "run": None,
    }
    return basis.report.model_copy(update=changes)


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


def _how(plan: AuditPlan) -> AttackPlan:
    assert plan.attack is not None, "the caller plans an attack"
    return plan.attack


def _defence(subject: Subject, purifier: Purifier, tick: Tick) -> Defence:
    assert subject.judge is not None, "a plan with an attack has a classifier"
    size = _how(subject.plan).microbatch
    return Defence(purifier, subject.judge[1], subject.device, subject.plan.seed, size, tick)


def _on(subject: Subject, most: int | None) -> Targets:
    """The first images."""
    rows = list(range(len(subject.images)))[:most]
    return targets(subject.images.select(rows), subject.device)


def _usefulness_passes(subject: Subject) -> int:
    """Passes through the chain of `check_usefulness`, a shorter chain not counted."""
    return 3 + 1 + 2 + (3 if subject.purifier.randomised else 0)


def _joined(made: list[Attacked]) -> Attacked:
    """The main attack on all groups; shares and losses are means over images."""
    total = sum(len(part.x) for part in made)

    def mean(name: str) -> tuple[float, ...]:
        rows = zip(*(getattr(part, name) for part in made), strict=True)
        weights = [len(part.x) / total for part in made]
        return tuple(sum(w * v for w, v in zip(weights, r, strict=True)) for r in rows)

    x, margins, last = (
        torch.cat([getattr(part, name) for part in made]) for name in ("x", "margins", "last")
    )
    return Attacked(x, margins, last, mean("fooled"), mean("losses"))
