"""Planned cost of an audit in network evaluations, and the time of one."""

import time

from purify_audit.attacks.attack import attack_objective, one_step
from purify_audit.attacks.evaluation import BISECTIONS, CAP_DIRECTIONS, CAP_SCALES
from purify_audit.attacks.example_images import MOST
from purify_audit.attacks.gradient_checks import usefulness_evaluations
from purify_audit.audit.comparison_attacks import COMPARED_IMAGES, comparison_attacks, images_of
from purify_audit.audit.defence import (
    attack_of,
    defence_of,
    first_targets,
    gradient_check_images,
    has_fresh_attack,
    has_gradients,
)
from purify_audit.audit.subject import Subject
from purify_audit.compression.measure import rows_per_image
from purify_audit.models.runner import deterministic
from purify_audit.spec.attack_plan import (
    PREDICTION_STEPS,
    PREDICTION_STEPS_DIRECT,
    WARM_STEPS,
    AttackPlan,
)


def planned_evaluations(subject: Subject, *, compression: bool = True) -> int:
    """Upper bound of the network evaluations of an audit, a backward pass counted as one.

    Args:
        subject: what is audited.
        compression: whether compression is measured, not taken from a finished report.
    """
    total = 0
    if compression:
        total = len(subject.images) * rows_per_image(subject.plan) * subject.purifier.evaluations
    return total + (attack_evaluations(subject) if subject.plan.attack is not None else 0)


def attack_evaluations(subject: Subject) -> int:
    """Network evaluations of the planned attack with its checks."""
    plan, each = attack_of(subject.plan), subject.purifier.evaluations
    n, m = len(subject.images), min(COMPARED_IMAGES, len(subject.images))
    defence = defence_of(subject)
    on = first_targets(subject, 1)
    gradient = attack_objective(defence, on, plan, plan.norm, 1.0).gradient_evaluations
    rounds = 2 if has_fresh_attack(subject) else 1

    short = one_step(subject.purifier)
    easy = 0 if short is None else short.evaluations

    def attack_cost(of: AttackPlan, evaluations: int) -> int:
        if of.optimiser == "square":
            return of.restarts * of.draws * of.steps * each
        warm = easy * (WARM_STEPS * (2 if of.gradient == "none" else 3) + 1) * of.warm_start
        return of.draws * (warm + of.restarts * (of.steps * evaluations + each))

    def score_cost(held_out: int) -> int:
        return (plan.draws * (BISECTIONS + 5) + held_out) * each

    predicting = 1 if short is None else easy
    steps = PREDICTION_STEPS_DIRECT if short is None else PREDICTION_STEPS
    passes = 2 if plan.gradient == "none" else 3
    prediction = n * plan.draws * predicting * (steps * passes + 1) + n * score_cost(0)
    total = n * (plan.draws + plan.held_out) * each + len(plan.eps) * prediction
    if has_gradients(defence):
        total += min(n, gradient_check_images(plan)) * usefulness_evaluations(subject.purifier)
    if plan.predict_only:
        return total
    for _ in plan.eps:
        total += n * rounds * (attack_cost(plan, gradient) + score_cost(plan.held_out))
        total += n * (rounds - 1) * plan.restarts * plan.draws * each
    costs = {"bpda": each}
    for name, other in comparison_attacks(plan).items():
        each_cost = attack_cost(other, costs.get(name, gradient)) + score_cost(0)
        total += min(m, images_of(name)) * each_cost
    total += 2 * min(n, 2 * MOST) * each
    total += n * plan.draws * each + n * (1 + len(CAP_SCALES) * CAP_DIRECTIONS) * each
    return total


def seconds_per_evaluation(subject: Subject) -> float:
    """Time of one network evaluation of one row, measured on two micro-batches."""
    defence = defence_of(subject)
    on = first_targets(subject, min(defence.microbatch, len(subject.images)))
    times = []
    with deterministic(gradients=True):
        for _ in range(2):
            start = time.monotonic()
            defence.logits(on.x, on.ids, (0,))
            times.append(time.monotonic() - start)
    return times[-1] / (defence.microbatch * subject.purifier.evaluations)
