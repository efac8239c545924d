"""Planned cost of an audit in network evaluations, and the time of one."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from purify_audit.attacks.attack import attack_objective, one_step
from purify_audit.attacks.evaluation import BISECTIONS, CAP_DIRECTIONS, CAP_SCALES
from purify_audit.attacks.example_images import MOST
from purify_audit.attacks.fresh import AIMS, CHAIN_DRAWS
from purify_audit.attacks.gradient_checks import usefulness_evaluations
from purify_audit.attacks.portfolio import schedule, target_count
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
    """Network evaluations of the planned attack with its checks, if no image ever falls."""
    plan, each = attack_of(subject.plan), subject.purifier.evaluations
    n, m = len(subject.images), min(COMPARED_IMAGES, len(subject.images))
    defence, cost = defence_of(subject), _Costs.of(subject)
    total = n * (plan.draws + plan.held_out) * each + n * len(plan.eps) * cost.prediction()
    if has_gradients(defence):
        total += min(n, gradient_check_images(plan)) * usefulness_evaluations(subject.purifier)
    if plan.predict_only:
        return total
    offered = 3 * plan.draws * each  # the prediction, the bare attack, the one at a smaller radius
    total += n * len(plan.eps) * (cost.attack(plan) + offered + cost.whole_score())
    if has_fresh_attack(subject):
        total += n * len(plan.eps) * (cost.fresh() + len(AIMS) * cost.score(plan.held_out))
    for name, other in comparison_attacks(plan).items():
        longer = 2 if name == "continuation" else 1
        each_cost = cost.attack(other, longer) + cost.score() + cost.whole_score()
        total += min(m, images_of(name)) * each_cost
    total += 2 * min(n, 2 * MOST) * each
    total += n * plan.draws * each + n * (1 + len(CAP_SCALES) * CAP_DIRECTIONS) * each
    return total


@dataclass(frozen=True, slots=True)
class _Costs:
    """Network evaluations of an image by kind of attack.

    Attributes:
        plan: the attack.
        each: of one purification.
        gradients: of one gradient, by its kind.
        easy: of one purification by the one-step version; 0: there is none.
        passes: of a gradient through the one-step version.
        classes: of the classifier.
    """

    plan: AttackPlan
    each: int
    gradients: Mapping[str, int]
    easy: int
    passes: int
    classes: int

    @classmethod
    def of(cls, subject: Subject) -> "_Costs":
        plan, defence = attack_of(subject.plan), defence_of(subject)
        objective = attack_objective(defence, first_targets(subject, 1), plan, plan.norm, 1.0)
        each, short = subject.purifier.evaluations, one_step(subject.purifier)
        return cls(
            plan=plan,
            each=each,
            gradients={plan.gradient: objective.gradient_evaluations, "bpda": each},
            easy=0 if short is None else short.evaluations,
            passes=2 if plan.gradient == "none" else 3,
            classes=defence.classifier.classes,
        )

    def prediction(self) -> int:
        """The transfer attack, scored."""
        steps = PREDICTION_STEPS if self.easy else PREDICTION_STEPS_DIRECT
        return self.plan.draws * (self.easy or 1) * (steps * self.passes + 1) + self.score()

    def score(self, held_out: int = 0) -> int:
        """Predictions under the aligned and so many held-out draws."""
        return (self.plan.draws + held_out) * self.each

    def whole_score(self) -> int:
        """Predictions, changes of the output, and the smallest fooling radius."""
        return self.score(self.plan.held_out) + self.plan.draws * (BISECTIONS + 4) * self.each

    def attack(self, of: AttackPlan, longer: int = 1) -> int:
        """An attack under aligned draws."""
        if of.optimiser == "square":
            return of.restarts * of.draws * of.steps * self.each
        easy, gradient = self.easy * of.warm_start, self.gradients[of.gradient]
        if of.optimiser != "portfolio":
            warm = easy * (WARM_STEPS * self.passes + 1)
            return of.draws * (warm + of.restarts * (of.steps * gradient + self.each))
        total, targets = self.each, target_count(self.classes, of.targets, of.loss)
        for run in schedule(of.steps, targets, cheaper=easy > 0, longer=longer):
            through = run.name == "transfer"
            step = easy * self.passes if through else gradient
            total += of.restarts * (run.steps * step + self.each + easy * through)
        return of.draws * total

    def fresh(self) -> int:
        """The attack under fresh draws."""
        plan, targets = self.plan, target_count(self.classes, self.plan.targets, self.plan.loss)
        step, last = self.gradients[plan.gradient], self.each
        if self.easy and plan.warm_start:
            step, last = self.passes * self.easy, self.easy
        half = -(-plan.fresh_steps // 2)
        total = plan.fresh_draws * (plan.fresh_steps * step + last)
        total += targets * -(-plan.fresh_draws // 2) * (half * step + last)
        if self.easy and plan.warm_start:
            whole = -(-half // 4) * self.gradients[plan.gradient] + self.each
            total += min(plan.fresh_draws, CHAIN_DRAWS) * whole
        return total + (targets + 4) * plan.fresh_draws * self.each


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
