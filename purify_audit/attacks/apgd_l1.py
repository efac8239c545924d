"""Auto-PGD for l1: sparse steps, whose number of entries and length adapt.

Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML
2021, section 3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from purify_audit.attacks.ball import Ball
from purify_audit.attacks.pgd import AttackOutput, BestIterate, LossOracle, Point, evaluated

_PERIOD = 0.04  # of the steps, between changes of the number of entries
_FIRST_SHARE = 0.2  # of the pixel values, that the first step moves
_FEWER = 1.5  # a step moves the best perturbation's number of entries over this
_SPARSER = 0.95  # a perturbation with this share of its entries, or less, is still getting sparser
_SHRINK = 1.5  # of the step's length, where it is not
_SHORTEST = 0.1  # length of a step, relative to the radius


@dataclass(frozen=True, slots=True)
class _Steps:
    """How each image is stepped.

    Attributes:
        size: length of the next step in l1, float64 [n].
        entries: pixel values that it moves, int64 [n].
        before: entries of the best perturbation at the last change, int64 [n].
    """

    size: Tensor
    entries: Tensor
    before: Tensor

    def changed(self, support: Tensor, eps: float) -> tuple["_Steps", Tensor]:
        """The next steps, given the entries of the best perturbations now, int64 [n].

        Returns:
            The steps; and bool [n]: where the perturbation became sparser, so that steps have full
            length again, and continue from the best iterate.
        """
        sparser = support < _SPARSER * self.before
        shorter = (self.size / _SHRINK).clamp(min=_SHORTEST * eps)
        size = torch.where(sparser, torch.full_like(shorter, eps), shorter)
        return _Steps(size, _entries(support), support), sparser


def apgd_l1(objective: LossOracle, ball: Ball, start: Tensor, steps: int) -> AttackOutput:
    """Auto-PGD for l1 from `start`. A step of length eps has no momentum.

    Every 4 % of the steps, the number of entries of a step becomes 1 / 1.5 of that of the best
    perturbation (of highest loss). Where this has fallen by 5 % since the last change, the step
    has length eps again and the run continues from that perturbation; elsewhere its length falls
    by 1.5, down to eps / 10.

    Args:
        objective: the objective to maximise; evaluated `steps` times with a gradient, once without.
        ball: the constraint, in l1.
        start: images in the ball [n, c, h, w].
        steps: number of gradients, at least 1.

    Returns:
        The best of all `steps + 1` iterates.
    """
    best, period = BestIterate(start), math.ceil(_PERIOD * steps)
    point = top = evaluated(objective, best, start, 0)
    now = _first(ball, start)
    for step in range(1, steps):
        x = ball.ascend(point.x, point.gradient, now.size, now.entries)
        point = evaluated(objective, best, x, step)
        top = point.where(point.losses > top.losses, top)
        if step % period == 0:
            now, sparser = now.changed(_support(ball, top), ball.eps)
            point = top.where(sparser, point)
    x = ball.ascend(point.x, point.gradient, now.size, now.entries)
    best.update(x, objective.evaluate(x, steps))
    return best.result()


def _first(ball: Ball, start: Tensor) -> _Steps:
    """The first steps: a fifth of the pixel values, or fewer for a start that is sparser."""
    pixels = start[0].numel()
    support = (start != ball.x).flatten(1).sum(1)
    support = torch.where(support == 0, pixels, support)
    entries = _entries(support).clamp(max=math.ceil(_FIRST_SHARE * pixels))
    size = torch.full((len(start),), ball.eps, dtype=torch.float64, device=start.device)
    return _Steps(size, entries, support)


def _support(ball: Ball, point: Point) -> Tensor:
    """Number of pixel values that differ from the clean image's, int64 [n]."""
    return (point.x != ball.x).flatten(1).sum(1)


def _entries(support: Tensor) -> Tensor:
    return (support / _FEWER).floor().to(torch.int64).clamp(min=1)
