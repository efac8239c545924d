"""The attacked model: the purifier in front of its classifier, and the images to attack."""

from purify_audit.attacks.attack import Targets, targets
from purify_audit.attacks.objective import Defence
from purify_audit.audit.subject import Subject
from purify_audit.models.protocols import Purifier, is_differentiable
from purify_audit.models.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.models.runner import Tick, ignore_ticks
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.spec.audit_plan import AuditPlan

_CHECKED_IMAGES = 32  # images on which gradients are checked


def attack_of(plan: AuditPlan) -> AttackPlan:
    """The attack of a plan that has one."""
    assert plan.attack is not None, "the caller plans an attack"
    return plan.attack


def defence_of(
    subject: Subject, tick: Tick = ignore_ticks, purifier: Purifier | None = None
) -> Defence:
    """The subject's purifier, or another, in front of its classifier."""
    assert subject.classifier is not None, "a plan with an attack has a classifier"
    return Defence(
        subject.purifier if purifier is None else purifier,
        subject.classifier.model,
        subject.device,
        subject.plan.seed,
        attack_of(subject.plan).microbatch,
        tick,
    )


def bare_defence_of(subject: Subject) -> Defence:
    """The classifier without a purifier; its evaluations are not counted."""
    identity = TransformPurifier(parse_transform("identity", subject.purifier.image))
    return defence_of(subject, purifier=identity)


def has_gradients(defence: Defence) -> bool:
    """Whether both purifier and classifier are differentiable."""
    return is_differentiable(defence.purifier) and is_differentiable(defence.classifier)


def gradient_check_images(plan: AttackPlan) -> int:
    """Images on which gradients are checked: fewer where only a prediction is wanted."""
    return _CHECKED_IMAGES // 4 if plan.predict_only else _CHECKED_IMAGES


def has_fresh_attack(subject: Subject) -> bool:
    """Whether the usual protocol (fresh draws at every step) differs from the aligned attack.

    It does not without randomness, nor for Square, which keeps every image that fooled a draw once.
    """
    return subject.purifier.randomised and attack_of(subject.plan).optimiser != "square"


def first_targets(subject: Subject, count: int | None = None) -> Targets:
    """The first images, or all of them, ready to attack."""
    rows = list(range(len(subject.images)))[:count]
    return targets(subject.images.select(rows), subject.device)
