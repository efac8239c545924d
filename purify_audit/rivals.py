"""The attacks that the main one is held against."""

import math
from dataclasses import replace

from torch import Tensor

from purify_audit.attack.ball import Ball
from purify_audit.attack.objective import Defence
from purify_audit.attack.protocols import (
    score,
)
from purify_audit.attack.run import (
    attack,
    first_of,
    objective,
)
from purify_audit.attack_plan import (
    AttackPlan,
)
from purify_audit.attack_units import packed_score
from purify_audit.defended import attack_of, on_images
from purify_audit.found import Found
from purify_audit.noise import Noise, Stream
from purify_audit.store import Unit
from purify_audit.subject import Subject
from purify_audit.work import Phase

CERTIFIED = 64  # images on which the attack is held against others
_SEARCHED = 32  # of them, by the Square Attack
_RENAMED = 2**31  # the draw by which images get other ids


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


def images_of(name: str) -> int:
    """Images of an attack that the main one is held against."""
    return _SEARCHED if name == "square" else CERTIFIED


def _unbounded(how: AttackPlan, x: Tensor) -> float:
    """A radius at which every image can become plain grey."""
    grey = 0.5 if how.norm == "linf" else 0.5 * math.sqrt(x[0].numel())
    return max(grey, how.eps[0])
