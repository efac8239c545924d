"""Run the attacks of a plan: gradient checks, attacks by groups of images, comparison attacks."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from purify_audit.attacks.attack import (
    Targets,
    attack,
    attack_objective,
    easier,
    predict,
    targets,
)
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.evaluation import clean_labels, predicted, random_direction_flips, score
from purify_audit.attacks.example_images import example_images
from purify_audit.attacks.fresh import fresh_attack
from purify_audit.attacks.gradient_checks import check_gradient, check_usefulness
from purify_audit.attacks.objective import Defence
from purify_audit.attacks.pgd import AttackOutput
from purify_audit.attacks.sanity_checks import (
    check_attack,
    check_convergence,
    check_stronger,
    check_unbounded,
    convergence,
)
from purify_audit.audit.attack_results import AttackResults
from purify_audit.audit.comparison_attacks import comparison_phase, merged, with_smaller
from purify_audit.audit.defence import (
    attack_of,
    bare_defence_of,
    defence_of,
    first_targets,
    gradient_check_images,
    has_fresh_attack,
    has_gradients,
)
from purify_audit.audit.phases import Phase, SharedRun
from purify_audit.audit.store import RunStore, Unit
from purify_audit.audit.subject import Subject
from purify_audit.audit.units import packed, unpacked, unpacked_score
from purify_audit.core.findings import Finding, finding
from purify_audit.core.records import Record
from purify_audit.models.protocols import is_differentiable
from purify_audit.models.runner import Tick
from purify_audit.spec.shard import Shard
from purify_audit.statistics.attack_rows import RUNS, AttackSamples, Scored, join_attacks

_LEAVING_BATCHES = 8  # micro-batches of a group whose fooled images leave: less padding


def run_attacks(
    subject: Subject,
    tick: Tick,
    results: AttackResults,
    decided: Callable[[AttackSamples], bool],
    store: RunStore | None = None,
) -> None:
    """Check the gradient, attack group by group, then run the comparison attacks.

    Args:
        subject: what is attacked.
        tick: called with network evaluations; raises `Stopped` to end.
        results: filled in as the run proceeds.
        decided: asked at every look of the plan; no more images are attacked once it is true.
        store: where finished units are stored, and read from.
    """
    plan = attack_of(subject.plan)
    defence, bare = defence_of(subject, results.counting(tick)), bare_defence_of(subject)
    _check_gradients(subject, defence, results, store)
    for unit in attack_phase(subject, defence, bare, results).units(store):
        part, output = unpacked(unit, subject.device)
        results.evaluations += int(str(unit.facts["evaluations"]))
        results.parts.append(part)
        results.outputs += [] if output is None else [output]
        looks = subject.plan.attack_looks
        if results.images in looks and decided(join_attacks(results.parts)):
            break
    if plan.predict_only:
        return
    attacked = subject.first(results.images)
    _check_attack(attacked, defence, results, store)
    results.short_of_memory = defence.activations.exhausted
    results.caps = random_direction_flips(defence, bare, attacked.images, plan.eps[0], plan.norm)
    runner = subject.runner(results.counting(tick), microbatch=plan.microbatch)
    results.example_images = example_images(
        runner, attacked.images.pixels, results.samples() or join_attacks(results.parts)
    )


def share_attacks(
    subject: Subject, tick: Tick, run: SharedRun, shard: Shard, *, alone: bool
) -> None:
    """Compute and store a process's part of the attacks (`phases.Phase.share`)."""
    results = AttackResults()
    defence, bare = defence_of(subject, results.counting(tick)), bare_defence_of(subject)
    _check_gradients(subject, defence, results, run.store)
    attack_phase(subject, defence, bare, results).share(run, shard, alone=alone)
    if not attack_of(subject.plan).predict_only:
        comparison_phase(subject, defence, results).share(run, shard, alone=alone)


def attack_phase(
    subject: Subject, defence: Defence, bare: Defence, results: AttackResults
) -> Phase:
    """Attacks on every group of images, as independent units."""
    groups = list(_groups(subject))

    def make(place: int) -> Unit:
        before = results.evaluations
        part, output = _attack_group(subject, defence, bare, groups[place], results.predictable)
        spent, results.evaluations = results.evaluations - before, before
        return packed(part, output, spent)

    return Phase("attack", len(groups), make)


def _groups(subject: Subject) -> Iterator[list[int]]:
    """Rows of images that are attacked together, never across a look."""
    plan, n = attack_of(subject.plan), len(subject.images)
    batches = _LEAVING_BATCHES if plan.early_stop or plan.optimiser == "portfolio" else 1
    size = max(1, plan.microbatch // plan.draws) * batches
    ends = sorted({min(look, n) for look in subject.plan.attack_looks} | {n})
    for start, end in itertools.pairwise((0, *ends)):
        for first in range(start, end, size):
            yield list(range(first, min(first + size, end)))


class _GradientChecks(Record):
    """Results of the gradient checks: a unit of a run, as text."""

    findings: tuple[Finding, ...]
    gradients: dict[str, float]
    predictable: bool


def _check_gradients(
    subject: Subject, defence: Defence, results: AttackResults, store: RunStore | None
) -> None:
    """Check the gradient: here, or in another process of the same run."""

    def make(place: int) -> Unit:
        before = results.evaluations
        checks = _gradient_checks(subject, defence).model_dump_json()
        spent, results.evaluations = results.evaluations - before, before
        return Unit({}, {"checks": checks, "evaluations": spent})

    (unit,) = Phase("gradients", 1, make).units(store)
    checks = _GradientChecks.model_validate_json(str(unit.facts["checks"]))
    results.findings += checks.findings
    results.gradients, results.predictable = dict(checks.gradients), checks.predictable
    results.evaluations += int(str(unit.facts["evaluations"]))


def _gradient_checks(subject: Subject, defence: Defence) -> _GradientChecks:
    plan = attack_of(subject.plan)
    findings, gradients = list[Finding](), dict[str, float]()
    predictable = is_differentiable(defence.classifier)
    if has_gradients(defence):
        on = first_targets(subject, gradient_check_images(plan))
        objective = attack_objective(defence, on, plan, plan.norm, plan.eps[0])
        mismatches, errors = check_gradient(objective, on.x)
        useless, cosines = check_usefulness(objective, on.x)
        gradients, predictable = errors | cosines, not useless
        findings = mismatches + useless
    approximate = plan.optimiser == "square" or plan.gradient != "exact"
    if approximate and not (has_gradients(defence) and plan.predict_only):
        used = "no gradient" if plan.optimiser == "square" else f"gradient '{plan.gradient}'"
        findings = [finding("PA310", f"The attack used {used}.", {"gradient": plan.gradient})]
    return _GradientChecks(findings=tuple(findings), gradients=gradients, predictable=predictable)


def _attack_group(
    subject: Subject, defence: Defence, bare: Defence, rows: list[int], predictable: bool
) -> tuple[AttackSamples, AttackOutput | None]:
    """Every attack on some images, scored; and the main attack's output at the first radius."""
    plan = attack_of(subject.plan)
    on, first = targets(subject.images.select(rows), subject.device), None
    scored, others = dict[float, list[Scored]](), dict[str, Tensor]()
    for eps in sorted(plan.eps):  # images of a smaller ball are in every larger one
        at = _attack_at(subject, defence, bare, on, eps, others, predictable)
        scored[eps] = at.scored
        if at.output is not None:
            others = {"smaller-radius": at.output.x}
            first = at.output if eps == plan.eps[0] else first
    labels, margins, held_out = clean_labels(defence, on, plan)
    return AttackSamples(
        ids=subject.images.ids[rows],
        labels=on.labels.cpu().numpy(),
        clean_aligned=labels,
        clean_margins=margins,
        clean_held_out=held_out,
        bare_clean=predicted(bare, on.x, on.ids, (0,))[:, 0],
        scored=tuple(s for eps in plan.eps for s in scored[eps]),
    ), first


@dataclass(frozen=True, slots=True)
class _AtRadius:
    """Every attack on some images at one radius, scored; and the main attack's output."""

    scored: list[Scored]
    output: AttackOutput | None


def _attack_at(
    subject: Subject,
    defence: Defence,
    bare: Defence,
    on: Targets,
    eps: float,
    others: Mapping[str, Tensor],
    predictable: bool,
) -> _AtRadius:
    """Attack some images at one radius; `others` are images that the main attack may keep."""
    plan, ball, scored = attack_of(subject.plan), Ball(on.x, attack_of(subject.plan).norm, eps), []
    objective = attack_objective(defence, on, plan, plan.norm, eps)
    aligned, held_out = plan.aligned(), plan.scoring()
    if predictable:
        x = predict(objective, ball)
        scored.append(score(defence, on, ball, "predicted", x, aligned))
        others = {**others, "predicted": x}
    if plan.predict_only:
        return _AtRadius(scored, None)
    plain = plan.model_copy(update={"gradient": "exact", "draws": 1})
    unpurified = attack(attack_objective(bare, on, plain, plan.norm, eps), ball, plain).x
    output = attack(objective, ball, plan, {**others, "bare": unpurified})
    main = score(defence, on, ball, "aligned", output.x, aligned, held_out, whole=True)
    assert output.made_by is not None, "an attack says what made its images"
    scored.append(replace(main, made_by=output.made_by.cpu().numpy()))
    if has_fresh_attack(subject):
        short = easier(objective, plan)
        for aim, x in fresh_attack(objective, ball, plan, short, {"aligned": output.x}).items():
            name = "fresh" if aim == "mean" else f"fresh-{aim}"
            scored.append(score(defence, on, ball, name, x, aligned, held_out))
    scored.append(score(bare, on, ball, "bare", unpurified, (0,)))
    return _AtRadius(scored, output)


def _check_attack(
    subject: Subject, defence: Defence, results: AttackResults, store: RunStore | None
) -> None:
    """Sanity checks of the main attack, and comparison attacks that must not beat it."""
    plan = attack_of(subject.plan)
    on = first_targets(subject)
    whole = Ball(on.x, plan.norm, plan.eps[0])
    objective = attack_objective(defence, on, plan, plan.norm, plan.eps[0])
    results.findings += check_attack(objective, whole, _joined(results.outputs))
    samples = results.samples()
    assert samples is not None, "images were attacked"
    main, labels = samples.find("aligned"), samples.labels
    assert main is not None, "the main attack is scored"
    others = [attack for attack in samples.scored if attack.name == "aligned"][1:]
    for unit in comparison_phase(subject, defence, results).units(store):
        other = unpacked_score(unit)
        results.evaluations += int(str(unit.facts["evaluations"]))
        results.comparisons.append(other)
        m = len(other.aligned)
        if other.name == "unbounded":
            results.findings += check_unbounded(other.eps, other.aligned, labels[:m])
        elif other.name == "continuation":
            results.convergence = convergence(other.aligned, main.aligned[:m], labels[:m])
            results.findings += check_convergence(results.convergence)
        else:
            results.findings += check_stronger(
                other.name,
                other.aligned,
                main.aligned[:m],
                labels[:m],
                same_draws=other.name != "other-ids",
            )
        if other.name in RUNS:
            best = results.strongest.get(main.eps, main)
            best = merged(subject, defence, best, other, labels)
            results.strongest[main.eps] = best
            larger = (attack for attack in others if attack.eps > main.eps)
            results.strongest |= {a.eps: with_smaller(a, best, labels) for a in larger}


def _joined(outputs: list[AttackOutput]) -> AttackOutput:
    """The main attack on all groups; shares and losses are means over images."""
    total = sum(len(part.x) for part in outputs)

    def mean(name: str) -> tuple[float, ...]:
        rows = zip(*(getattr(part, name) for part in outputs), strict=True)
        weights = [len(part.x) / total for part in outputs]
        return tuple(sum(w * v for w, v in zip(weights, r, strict=True)) for r in rows)

    x, margins, last = (
        torch.cat([getattr(part, name) for part in outputs]) for name in ("x", "margins", "last")
    )
    return AttackOutput(x, margins, last, mean("fooled"), mean("losses"), -margins.mean(1))
