"""What an attack will cost, before it is made."""

import time

from purify_audit.attack.gradient_checks import usefulness_evaluations
from purify_audit.attack.protocols import BISECTIONS, CAP_DIRECTIONS, CAP_SCALES
from purify_audit.attack.run import objective, one_step
from purify_audit.attack_plan import (
    FORETOLD_STEPS,
    FORETOLD_STEPS_DIRECT,
    WARM_STEPS,
    AttackPlan,
)
from purify_audit.defended import (
    attack_of,
    defence_of,
    has_fresh,
    has_gradients,
    looked_at,
    on_images,
)
from purify_audit.portraits import MOST
from purify_audit.rivals import CERTIFIED, images_of, others
from purify_audit.runtime import deterministic
from purify_audit.subject import Subject


def planned_evaluations(subject: Subject) -> int:
    """Network evaluations that `verify` will spend, a backward pass counted as one."""
    how, each = attack_of(subject.plan), subject.purifier.evaluations
    n, m = len(subject.images), min(CERTIFIED, len(subject.images))
    defence = defence_of(subject, subject.purifier, lambda evaluations: None)
    gradient = objective(defence, on_images(subject, 1), how, how.norm, 1.0).gradient_evaluations
    rounds = 2 if has_fresh(subject) else 1

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
    if has_gradients(defence):
        total += min(n, looked_at(how)) * usefulness_evaluations(subject.purifier)
    if how.predict_only:
        return total
    for _ in how.eps:
        total += n * rounds * (attack_cost(how, gradient) + score_cost(how.held_out))
        total += n * (rounds - 1) * how.restarts * how.draws * each
    costs = {"bpda": each}
    for name, other in others(how).items():
        each_cost = attack_cost(other, costs.get(name, gradient)) + score_cost(0)
        total += min(m, images_of(name)) * each_cost
    total += 2 * min(n, 2 * MOST) * each
    total += n * how.draws * each + n * (1 + len(CAP_SCALES) * CAP_DIRECTIONS) * each
    return total


def seconds_per_evaluation(subject: Subject) -> float:
    """Time of one network evaluation of one row, measured on one micro-batch after another."""
    defence = defence_of(subject, subject.purifier, lambda evaluations: None)
    rows = min(defence.microbatch, len(subject.images))
    on = on_images(subject, rows)
    times = []
    with deterministic(gradients=True):
        for _ in range(2):
            start = time.monotonic()
            defence.logits(on.x, on.ids, (0,))
            times.append(time.monotonic() - start)
    return times[-1] / (defence.microbatch * subject.purifier.evaluations)
