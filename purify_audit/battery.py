"""Every attack on a subject: the main one in all its protocols, and those it is held against."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from purify_audit.attack.ball import Ball
from purify_audit.attack.certification import check_attack, check_stronger, check_unbounded
from purify_audit.attack.gradient_checks import (
    check_gradient,
    check_usefulness,
)
from purify_audit.attack.objective import Defence
from purify_audit.attack.pgd import Attacked
from purify_audit.attack.protocols import (
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
    targets,
)
from purify_audit.attack_plan import (
    AttackPlan,
)
from purify_audit.attack_samples import AttackSamples, CapRows, Portraits, Scored, join_attacks
from purify_audit.attack_units import packed, packed_score, unpacked, unpacked_score
from purify_audit.findings import Finding, finding
from purify_audit.noise import Noise, Stream
from purify_audit.plan import AuditPlan
from purify_audit.portraits import portraits
from purify_audit.purifier import Purifier, is_differentiable
from purify_audit.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.runtime import Runner
from purify_audit.shard import Shard
from purify_audit.store import RunStore, Unit
from purify_audit.subject import Subject
from purify_audit.work import Phase

CERTIFIED = 64  # images on which the attack is held against others
_SEARCHED = 32  # of them, by the Square Attack
_RENAMED = 2**31  # the draw by which images get other ids
_LOOKED_AT = 32  # images whose gradients are looked at

Tick = Callable[[int], None]
Enough = Callable[[AttackSamples], bool]


def never(samples: AttackSamples) -> bool:
    """No result is enough: everything planned is attacked."""
    return False


@dataclass(slots=True)
class Found:
    """What the attacks have found so far: what there is when the run is asked to end.

    Attributes:
        parts: results of every finished group of images.
        made: the main attack of each, as it was made.
        others: the attacks that the main one was held against.
        caps: random directions.
        portraits: the worst and the best images.
        findings: what is wrong with the attack.
        gradients: what the checks of the gradient measured.
        foretells: whether there is a gradient that can foretell the attack.
        spent: network evaluations, a backward pass counted as one.
        complete: whether everything was done.
    """

    parts: list[AttackSamples] = field(default_factory=list)
    made: list[Attacked] = field(default_factory=list)
    others: list[Scored] = field(default_factory=list)
    caps: CapRows | None = None
    portraits: Portraits | None = None
    findings: list[Finding] = field(default_factory=list)
    gradients: dict[str, float] = field(default_factory=dict)
    foretells: bool = True
    spent: int = 0
    complete: bool = False

    def counting(self, tick: Tick) -> Tick:
        """A tick that also counts what is spent."""

        def count(evaluations: int) -> None:
            self.spent += evaluations
            tick(evaluations)

        return count

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
        tables = {"caps": self.caps, "portraits": self.portraits}
        return AttackSamples(**columns | {"scored": scored} | tables)


def attack_all(
    subject: Subject,
    tick: Tick,
    found: Found,
    enough: Enough = never,
    store: RunStore | None = None,
) -> None:
    """Check the gradient, attack group by group, then hold the attack against others.

    Args:
        subject: what is attacked.
        tick: called with network evaluations; raises `Stopped` to end.
        found: where everything goes.
        enough: asked at every look of the plan; no more images are attacked once it says so.
        store: where finished units are kept, and taken from.
    """
    how = attack_of(subject.plan)
    defence, bare = defences_of(subject, found.counting(tick))
    found.findings += _check_gradients(subject, defence, found)
    for unit in attack_phase(subject, (defence, bare), found).units(store):
        part, made = unpacked(unit, subject.device)
        found.spent += int(str(unit.facts["evaluations"]))
        found.parts.append(part)
        found.made += [] if made is None else [made]
        if found.images in subject.plan.attack_looks and enough(join_attacks(found.parts)):
            break
    if how.predict_only:
        return
    attacked = replace(subject, images=subject.images.select(list(range(found.images))))
    _certify(attacked, defence, found, store)
    found.caps = caps(defence, bare, attacked.images, how.eps[0], how.norm)
    cost, count = subject.purifier.evaluations, found.counting(tick)
    runner = Runner(
        subject.purifier,
        subject.device,
        subject.plan.seed,
        how.microbatch,
        lambda rows: count(rows * cost),
    )
    found.portraits = portraits(runner, attacked.images.pixels, join_attacks(found.parts))


def share_attacks(subject: Subject, tick: Tick, store: RunStore, shard: Shard, alone: bool) -> None:
    """Compute and keep a process's part of the attacks (`work.Phase.share`)."""
    found = Found()
    defences = defences_of(subject, found.counting(tick))
    _check_gradients(subject, defences[0], found)
    attack_phase(subject, defences, found).share(store, shard, alone)
    if not attack_of(subject.plan).predict_only:
        certify_phase(subject, defences[0], found).share(store, shard, alone)


def defences_of(subject: Subject, tick: Tick) -> tuple[Defence, Defence]:
    """The classifier behind the purifier, and bare."""
    identity = TransformPurifier(parse_transform("identity", subject.purifier.image))
    bare = defence_of(subject, identity, lambda evaluations: None)
    return defence_of(subject, subject.purifier, tick), bare


def attack_phase(subject: Subject, defences: tuple[Defence, Defence], found: Found) -> Phase:
    """Attacks on every group of images, as units that need nothing of one another."""
    spans = list(_groups(subject))

    def make(place: int) -> Unit:
        before = found.spent
        part, made = _attack_group(subject, defences, spans[place], found.foretells)
        evaluations, found.spent = found.spent - before, before
        return packed(part, made, evaluations)

    return Phase("attack", len(spans), make)


def _groups(subject: Subject) -> Iterator[list[int]]:
    """Rows of images that are attacked together, never across a look."""
    how, n = attack_of(subject.plan), len(subject.images)
    size = max(1, how.microbatch // how.draws)
    ends = sorted({min(look, n) for look in subject.plan.attack_looks} | {n})
    for start, end in itertools.pairwise((0, *ends)):
        for first in range(start, end, size):
            yield list(range(first, min(first + size, end)))


def _check_gradients(subject: Subject, defence: Defence, found: Found) -> list[Finding]:
    how = attack_of(subject.plan)
    mismatches, useless = list[Finding](), list[Finding]()
    if has_gradients(defence):
        on = on_images(subject, looked_at(how))
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


def has_gradients(defence: Defence) -> bool:
    """Whether a gradient goes through both of its parts."""
    return is_differentiable(defence.purifier) and is_differentiable(defence.classifier)


def _attack_group(
    subject: Subject, defences: tuple[Defence, Defence], rows: list[int], foretells: bool
) -> tuple[AttackSamples, Attacked | None]:
    """Every attack on some images, scored; and the main one at the first radius as it was made."""
    how = attack_of(subject.plan)
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
        if has_fresh(subject):
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


def _certify(subject: Subject, defence: Defence, found: Found, store: RunStore | None) -> None:
    """What the main attack shows of itself, and other attacks that must not do better."""
    how = attack_of(subject.plan)
    everything = on_images(subject, None)
    whole = Ball(everything.x, how.norm, how.eps[0])
    aim = objective(defence, everything, how, how.norm, how.eps[0])
    found.findings += check_attack(aim, whole, _joined(found.made))
    samples = found.samples()
    assert samples is not None, "images were attacked"
    main, foretold = (samples.find(name) for name in ("aligned", "predicted"))
    assert main is not None, "the main attack is scored"
    labels = samples.labels
    if foretold is not None:
        found.findings += check_stronger("predicted", foretold.aligned, main.aligned, labels)
    for unit in certify_phase(subject, defence, found).units(store):
        made = unpacked_score(unit)
        found.spent += int(str(unit.facts["evaluations"]))
        found.others.append(made)
        m = len(made.aligned)
        if made.name == "unbounded":
            found.findings += check_unbounded(made.eps, made.aligned, labels[:m])
        else:
            found.findings += check_stronger(made.name, made.aligned, main.aligned[:m], labels[:m])


def certify_phase(subject: Subject, defence: Defence, found: Found) -> Phase:
    """The attacks that the main one is held against, as units."""
    how, on = attack_of(subject.plan), on_images(subject, CERTIFIED)
    rivals = list(others(how).items())
    # Other addresses for the same images: a purifier that looks them up by id is found out.
    renamed = replace(on, ids=other_ids(on.ids, defence.seed))

    def make(place: int) -> Unit:
        before, (name, other) = found.spent, rivals[place]
        eps = _unbounded(how, on.x) if name == "unbounded" else how.eps[0]
        whose = first_of(on if name == "unbounded" else renamed, images_of(name))
        ball = Ball(whose.x, how.norm, eps)
        x = attack(objective(defence, whose, other, how.norm, eps), ball, other).x
        made = score(defence, whose, ball, (name, x), (how.aligned(), ()))
        evaluations, found.spent = found.spent - before, before
        return packed_score(made, evaluations)

    return Phase("certify", len(rivals), make)


def other_ids(ids: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """Other addresses for the same images, which nobody foresees who does not know the seed."""
    noise = Noise(seed, ids, (_RENAMED,) * len(ids), Stream.CHOICE)
    return tuple(noise.integers(0, (), 2**32).tolist())


def others(how: AttackPlan) -> dict[str, AttackPlan]:
    """The attacks that the main one is held against."""
    made = {"unbounded": how.model_copy(update={"restarts": 1})}
    if how.optimiser != "square":
        if how.gradient == "exact":
            changes = {"gradient": "bpda", "restarts": 1, "warm_start": False}
            made["bpda"] = how.model_copy(update=changes)
        search = {"optimiser": "square", "steps": how.square_queries, "restarts": 1}
        made["square"] = how.model_copy(update=search)
    return made


def looked_at(how: AttackPlan) -> int:
    """Images whose gradients are looked at: few where a prediction is to be cheap."""
    return _LOOKED_AT // 4 if how.predict_only else _LOOKED_AT


def images_of(name: str) -> int:
    """Images of an attack that the main one is held against."""
    return _SEARCHED if name == "square" else CERTIFIED


def _unbounded(how: AttackPlan, x: Tensor) -> float:
    """A radius at which every image can become plain grey."""
    grey = 0.5 if how.norm == "linf" else 0.5 * math.sqrt(x[0].numel())
    return max(grey, how.eps[0])


def has_fresh(subject: Subject) -> bool:
    """Whether the usual protocol differs: not without randomness, nor for a search by looks.

    A search that keeps what it saw fool a draw keeps luck when draws change.
    """
    return subject.purifier.randomised and attack_of(subject.plan).optimiser != "square"


def attack_of(plan: AuditPlan) -> AttackPlan:
    """The attack of a plan that has one."""
    assert plan.attack is not None, "the caller plans an attack"
    return plan.attack


def defence_of(subject: Subject, purifier: Purifier, tick: Tick) -> Defence:
    """A purifier before the subject's classifier."""
    assert subject.judge is not None, "a plan with an attack has a classifier"
    size = attack_of(subject.plan).microbatch
    return Defence(purifier, subject.judge[1], subject.device, subject.plan.seed, size, tick)


def on_images(subject: Subject, most: int | None) -> Targets:
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
