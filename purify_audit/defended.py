"""What an attack is made on: the purifier before its classifier, and the images."""

from collections.abc import Callable

from purify_audit.attack.objective import Defence
from purify_audit.attack.run import (
    Targets,
    targets,
)
from purify_audit.attack_plan import (
    AttackPlan,
)
from purify_audit.plan import AuditPlan
from purify_audit.purifier import Purifier, is_differentiable
from purify_audit.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.subject import Subject

Tick = Callable[[int], None]

_LOOKED_AT = 32  # images whose gradients are looked at


def defences_of(subject: Subject, tick: Tick) -> tuple[Defence, Defence]:
    """The classifier behind the purifier, and bare."""
    identity = TransformPurifier(parse_transform("identity", subject.purifier.image))
    bare = defence_of(subject, identity, lambda evaluations: None)
    return defence_of(subject, subject.purifier, tick), bare


def has_gradients(defence: Defence) -> bool:
    """Whether a gradient goes through both of its parts."""
    return is_differentiable(defence.purifier) and is_differentiable(defence.classifier)


def looked_at(how: AttackPlan) -> int:
    """Images whose gradients are looked at: few where a prediction is to be cheap."""
    return _LOOKED_AT // 4 if how.predict_only else _LOOKED_AT


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
