"""Every attack on a subject: the main one in all its protocols, and those it is held against."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

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
    attack,
    foretell,
    objective,
    targets,
)
from purify_audit.attack_samples import AttackSamples, Scored, join_attacks
from purify_audit.attack_units import packed, unpacked, unpacked_score
from purify_audit.defended import (
    Tick,
    attack_of,
    defences_of,
    has_fresh,
    has_gradients,
    looked_at,
    on_images,
)
from purify_audit.findings import Finding, finding
from purify_audit.found import Found
from purify_audit.portraits import portraits
from purify_audit.purifier import is_differentiable
from purify_audit.record import Record
from purify_audit.rivals import certify_phase
from purify_audit.runtime import Runner
from purify_audit.shard import Shard
from purify_audit.store import RunStore, Unit
from purify_audit.subject import Subject
from purify_audit.work import Phase, Race

Enough = Callable[[AttackSamples], bool]

_LEAVING = 8  # micro-batches of a group that images leave: in one alone they would be padded


def never(samples: AttackSamples) -> bool:
    """No result is enough: everything planned is attacked."""
    return False


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
    _check_gradients(subject, defence, found, store)
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
    found.short = defence.graphs.exhausted
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


def share_attacks(subject: Subject, tick: Tick, race: Race, shard: Shard, alone: bool) -> None:
    """Compute and keep a process's part of the attacks (`work.Phase.share`)."""
    found = Found()
    defences = defences_of(subject, found.counting(tick))
    _check_gradients(subject, defences[0], found, race.store)
    attack_phase(subject, defences, found).share(race, shard, alone)
    if not attack_of(subject.plan).predict_only:
        certify_phase(subject, defences[0], found).share(race, shard, alone)


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
    size = max(1, how.microbatch // how.draws) * (_LEAVING if how.leave else 1)
    ends = sorted({min(look, n) for look in subject.plan.attack_looks} | {n})
    for start, end in itertools.pairwise((0, *ends)):
        for first in range(start, end, size):
            yield list(range(first, min(first + size, end)))


class _Seen(Record):
    """What the checks of the gradient saw: a unit of a run, as text."""

    findings: tuple[Finding, ...]
    gradients: dict[str, float]
    foretells: bool


def _check_gradients(
    subject: Subject, defence: Defence, found: Found, store: RunStore | None
) -> None:
    """Look at the gradient, in this process or in another that works on the same run."""

    def make(place: int) -> Unit:
        before, seen = found.spent, _seen(subject, defence).model_dump_json()
        evaluations, found.spent = found.spent - before, before
        return Unit({}, {"seen": seen, "evaluations": evaluations})

    (unit,) = Phase("gradients", 1, make).units(store)
    seen = _Seen.model_validate_json(str(unit.facts["seen"]))
    found.findings += seen.findings
    found.gradients, found.foretells = dict(seen.gradients), seen.foretells
    found.spent += int(str(unit.facts["evaluations"]))


def _seen(subject: Subject, defence: Defence) -> _Seen:
    how = attack_of(subject.plan)
    findings, gradients = list[Finding](), dict[str, float]()
    foretells = is_differentiable(defence.classifier)
    if has_gradients(defence):
        on = on_images(subject, looked_at(how))
        aim = objective(defence, on, how, how.norm, how.eps[0])
        mismatches, errors = check_gradient(aim, on.x)
        useless, cosines = check_usefulness(aim, on.x)
        gradients, foretells = errors | cosines, not useless
        findings = mismatches + useless
    approximate = how.optimiser == "square" or how.gradient != "exact"
    if approximate and not (has_gradients(defence) and how.predict_only):
        used = "no gradient" if how.optimiser == "square" else f"gradient '{how.gradient}'"
        findings = [finding("PA310", f"The attack used {used}.", {"gradient": how.gradient})]
    return _Seen(findings=tuple(findings), gradients=gradients, foretells=foretells)


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
