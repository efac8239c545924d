"""Every attack on a subject: the main one in all its protocols, and those it is held against."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from purify_audit.attack.ball import Ball
from purify_audit.attack.certification import check_attack, check_stronger, check_unbounded
from purify_audit.attack.gradient_checks import (
    check_gradient,
    check_usefulness,
    usefulness_evaluations,
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
from purify_audit.attack.run import (
    Targets,
    attack,
    first_of,
    foretell,
    objective,
    one_step,
    targets,
)
from purify_audit.attack_plan import (
    FORETOLD_STEPS,
    FORETOLD_STEPS_DIRECT,
    WARM_STEPS,
    AttackPlan,
)
from purify_audit.attack_samples import AttackSamples, CapRows, Scored, join_attacks
from purify_audit.findings import Finding, finding
from purify_audit.noise import Noise, Stream
from purify_audit.plan import AuditPlan
from purify_audit.purifier import Purifier, is_differentiable
from purify_audit.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.runtime import deterministic
from purify_audit.subject import Subject

_CERTIFIED = 64  # images on which the attack is held against others
_SEARCHED = 32  # of them, by the Square Attack
_RENAMED = 2**31  # the draw by which images get other ids
_LOOKED_AT = 32  # images whose gradients are looked at

Tick = Callable[[int], None]


@dataclass(slots=True)
class Found:
    """What the attacks have found so far: what there is when the run is asked to end.

    Attributes:
        parts: results of every finished group of images.
        made: the main attack of each, as it was made.
        others: the attacks that the main one was held against.
        caps: random directions.
        findings: what is wrong with the attack.
        gradients: what the checks of the gradient measured.
        foretells: whether there is a gradient that can foretell the attack.
        complete: whether everything was done.
    """

    parts: list[AttackSamples] = field(default_factory=list)
    made: list[Attacked] = field(default_factory=list)
    others: list[Scored] = field(default_factory=list)
    caps: CapRows | None = None
    findings: list[Finding] = field(default_factory=list)
    gradients: dict[str, float] = field(default_factory=dict)
    foretells: bool = True
    complete: bool = False

    @property
    def images(self) -> int:
        """Images whose attacks are done."""
        return sum(len(part.ids) for part in self.parts)

    def samples(self) -> AttackSamples | None:
        """Everything so far; none before the first group is done."""
        if not self.parts:
            return None
        whole = join_attacks(self.parts)
        scored = (*whole.scored, *self.others)
        columns = {name: getattr(whole, name) for name in AttackSamples.__dataclass_fields__}
        return AttackSamples(**columns | {"scored": scored, "caps": self.caps})


def attack_all(subject: Subject, tick: Tick, found: Found) -> None:
    """Check the gradient, attack group by group, then hold the attack against others."""
    how = _how(subject.plan)
    defence = _defence(subject, subject.purifier, tick)
    identity = TransformPurifier(parse_transform("identity", subject.purifier.image))
    bare = _defence(subject, identity, lambda evaluations: None)
    found.findings += _check_gradients(subject, defence, found)
    size = max(1, how.microbatch // how.draws)
    for first in range(0, len(subject.images), size):
        rows = list(range(first, min(first + size, len(subject.images))))
        part, made = _attack_group(subject, (defence, bare), rows, found.foretells)
        found.parts.append(part)
        found.made += [] if made is None else [made]
    if how.predict_only:
        return
    _certify(subject, defence, found)
    found.caps = caps(defence, bare, subject.images, how.eps[0], how.norm)


def _check_gradients(subject: Subject, defence: Defence, found: Found) -> list[Finding]:
    how = _how(subject.plan)
    mismatches, useless = list[Finding](), list[Finding]()
    if _has_gradients(defence):
        on = _on(subject, _looked_at(how))
        aim = objective(defence, on, how, how.norm, how.eps[0])
        mismatches, errors = check_gradient(aim, on.x)
        useless, cosines = check_usefulness(aim, on.x)
        found.gradients, found.foretells = errors | cosines, not useless
        if how.predict_only:
            return mismatches + useless
    else:
        found.foretells = is_differentiable(defence.classifier)
    if how.optimiser == "square" or how.gradient != "exact":
        used = "no gradient" if how.optimiser == "square" else f"gradient '{how.gradient}'"
        return [finding("PA310", f"The attack used {used}.", {"gradient": how.gradient})]
    return mismatches + useless


def _has_gradients(defence: Defence) -> bool:
    return is_differentiable(defence.purifier) and is_differentiable(defence.classifier)


def _attack_group(
    subject: Subject, defences: tuple[Defence, Defence], rows: list[int], foretells: bool
) -> tuple[AttackSamples, Attacked | None]:
    """Every attack on some images, scored; and the main one at the first radius as it was made."""
    how = _how(subject.plan)
    defence, bare = defences
    on, scored, first = targets(subject.images.select(rows), subject.device), list[Scored](), None
    draws = how.aligned(), how.scoring()
    plain = how.model_copy(update={"gradient": "exact", "draws": 1})
    for eps in how.eps:
        ball = Ball(on.x, how.norm, eps)
        aim = objective(defence, on, how, how.norm, eps)
        if foretells:
            x = foretell(aim, ball)
            scored.append(score(defence, on, ball, ("predicted", x), (how.aligned(), ())))
        if how.predict_only:
            continue
        made = attack(aim, ball, how)
        first = first or made
        scored.append(score(defence, on, ball, ("aligned", made.x), draws))
        if _has_fresh(subject):
            x = attack(aim, ball, how, "fresh").x
            scored.append(score(defence, on, ball, ("fresh", x), draws))
        x = attack(objective(bare, on, plain, how.norm, eps), ball, plain).x
        scored.append(score(bare, on, ball, ("bare", x), ((0,), ())))
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


def _certify(subject: Subject, defence: Defence, found: Found) -> None:
    """What the main attack shows of itself, and other attacks that must not do better."""
    how = _how(subject.plan)
    everything, on = _on(subject, None), _on(subject, _CERTIFIED)
    whole = Ball(everything.x, how.norm, how.eps[0])
    aim = objective(defence, everything, how, how.norm, how.eps[0])
    found.findings += check_attack(aim, whole, _joined(found.made))
    samples = found.samples()
    assert samples is not None, "images were attacked"
    main, foretold = (samples.find(name) for name in ("aligned", "predicted"))
    assert main is not None, "the main attack is scored"
    if foretold is not None:
        everyone = samples.labels
        found.findings += check_stronger("predicted", foretold.aligned, main.aligned, everyone)
    labels = on.labels.cpu().numpy()
    # Other addresses for the same images: a purifier that looks them up by id is found out.
    renamed = replace(on, ids=other_ids(on.ids, defence.seed))
    for name, other in _others(how).items():
        eps = _unbounded(how, on.x) if name == "unbounded" else how.eps[0]
        whose = first_of(on if name == "unbounded" else renamed, _count(name))
        ball = Ball(whose.x, how.norm, eps)
        m = len(whose.ids)
        x = attack(objective(defence, whose, other, how.norm, eps), ball, other).x
        made = score(defence, whose, ball, (name, x), (how.aligned(), ()))
        found.others.append(made)
        if name == "unbounded":
            found.findings += check_unbounded(eps, made.aligned, labels[:m])
        else:
            found.findings += check_stronger(name, made.aligned, main.aligned[:m], labels[:m])


def other_ids(ids: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """Other addresses for the same images, which nobody foresees who does not know the seed."""
    noise = Noise(seed, ids, (_RENAMED,) * len(ids), Stream.CHOICE)
    return tuple(noise.integers(0, (), 2**32).tolist())


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


def _looked_at(how: AttackPlan) -> int:
    """Images whose gradients are looked at: few where a prediction is to be cheap."""
    return _LOOKED_AT // 4 if how.predict_only else _LOOKED_AT


def _count(name: str) -> int:
    """Images of an attack that the main one is held against."""
    return _SEARCHED if name == "square" else _CERTIFIED


def _unbounded(how: AttackPlan, x: Tensor) -> float:
    """A radius at which every image can become plain grey."""
    grey = 0.5 if how.norm == "linf" else 0.5 * math.sqrt(x[0].numel())
    return max(grey, how.eps[0])


def planned_evaluations(subject: Subject) -> int:
    """Network evaluations that `verify` will spend, a backward pass counted as one."""
    how, each = _how(subject.plan), subject.purifier.evaluations
    n, m = len(subject.images), min(_CERTIFIED, len(subject.images))
    defence = _defence(subject, subject.purifier, lambda evaluations: None)
    gradient = objective(defence, _on(subject, 1), how, how.norm, 1.0).gradient_evaluations
    rounds = 2 if _has_fresh(subject) else 1

    short = one_step(subject.purifier)
    easy = 0 if short is None else short.evaluations

    def attack_cost(of: AttackPlan, evaluations: int) -> int:
        if of.optimiser == "square":
            return of.restarts * of.draws * of.steps * each
        warm = easy * (WARM_STEPS * (2 if of.gradient == "none" else 3) + 1) * of.warm_start
        return of.draws * (warm + of.restarts * (of.steps * evaluations + each))

    def score_cost(held_out: int) -> int:
        return (how.draws * (BISECTIONS + 5) + held_out) * each

    foretold = 1 if short is None else easy
    steps = FORETOLD_STEPS_DIRECT if short is None else FORETOLD_STEPS
    passes = 2 if how.gradient == "none" else 3
    prediction = n * how.draws * foretold * (steps * passes + 1) + n * score_cost(0)
    total = n * (how.draws + how.held_out) * each + len(how.eps) * prediction
    if _has_gradients(defence):
        total += min(n, _looked_at(how)) * usefulness_evaluations(subject.purifier)
    if how.predict_only:
        return total
    for _ in how.eps:
        total += n * rounds * (attack_cost(how, gradient) + score_cost(how.held_out))
        total += n * (rounds - 1) * how.restarts * how.draws * each
    costs = {"bpda": each}
    for name, other in _others(how).items():
        each_cost = attack_cost(other, costs.get(name, gradient)) + score_cost(0)
        total += min(m, _count(name)) * each_cost
    total += n * how.draws * each + n * (1 + len(CAP_SCALES) * CAP_DIRECTIONS) * each
    return total


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


def _has_fresh(subject: Subject) -> bool:
    """Whether the usual protocol differs: not without randomness, nor for a search by looks.

    A search that keeps what it saw fool a draw keeps luck when draws change.
    """
    return subject.purifier.randomised and _how(subject.plan).optimiser != "square"


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
