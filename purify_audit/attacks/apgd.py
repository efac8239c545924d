"""Auto-PGD: projected gradient ascent with momentum and adaptive step sizes.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020, section 3 and algorithm 1.
"""

import torch
from torch import Tensor

from purify_audit.attacks.apgd_l1 import apgd_l1
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.pgd import AttackOutput, BestIterate, LossOracle, evaluated

_MOMENTUM = 0.75  # α of section 3
_RHO = 0.75  # ρ of condition 1


class _StepSizes:
    """The step size of each image, and the statistics that checkpoints use (section 3).

    Attributes:
        size: of the next step [n], in the ball's norm.
    """

    def __init__(self, size: float, losses: Tensor) -> None:
        """Begin with the same step size for all images.

        Args:
            size: of the first step.
            losses: of the first images [n].
        """
        self.size = torch.full_like(losses, size)
        self._raised = torch.zeros_like(losses, dtype=torch.int64)
        self._halved = torch.zeros_like(losses, dtype=torch.bool)
        self._best = losses

    def count(self, raised: Tensor) -> None:
        """Count whether the last step raised each image's loss, bool [n]."""
        self._raised += raised

    def check(self, best: Tensor, steps: int) -> Tensor:
        """Halve the step size where condition 1 or 2 holds.

        Args:
            best: highest loss so far [n].
            steps: steps since the last checkpoint.

        Returns:
            bool [n]: where it was halved.
        """
        too_few = self._raised < _RHO * steps
        stuck = ~self._halved & (best == self._best)
        self._halved, self._best = too_few | stuck, best
        self._raised = torch.zeros_like(self._raised)
        self.size = torch.where(self._halved, self.size / 2, self.size)
        return self._halved


def apgd(objective: LossOracle, ball: Ball, start: Tensor, steps: int) -> AttackOutput:
    """Auto-PGD from `start`; for l1 that of `apgd_l1`.

    A checkpoint is directly after step w_j, when the w_j comparisons of condition 1 are known.
    (Algorithm 1 as printed takes and evaluates one step more, and then replaces it.) A restart at a
    checkpoint reuses the loss and gradient that the iterate of highest loss had.

    Args:
        objective: the objective to maximise; evaluated `steps` times with a gradient, once without.
        ball: the constraint.
        start: images in the ball [n, c, h, w].
        steps: number of gradients, at least 1.

    Returns:
        The best of all `steps + 1` iterates, not always those of highest loss, from which
        checkpoints restart.
    """
    if ball.norm == "l1":
        return apgd_l1(objective, ball, start, steps)
    best, checkpoints, last_checkpoint = BestIterate(start), _checkpoints(steps), 0
    point = top = evaluated(objective, best, start, 0)
    sizes = _StepSizes(2.0 * ball.eps, point.losses)
    x = ball.ascend(point.x, point.gradient, sizes.size)
    for step in range(1, steps):
        previous, point = point, evaluated(objective, best, x, step)
        sizes.count(point.losses > previous.losses)
        top = point.where(point.losses > top.losses, top)
        if step in checkpoints:
            point = top.where(sizes.check(top.losses, step - last_checkpoint), point)
            last_checkpoint = step
        z = ball.ascend(point.x, point.gradient, sizes.size)
        update = _MOMENTUM * (z - point.x) + (1.0 - _MOMENTUM) * (point.x - previous.x)
        x = ball.project(point.x + update)
    best.update(x, objective.evaluate(x, steps))
    return best.result()


def _checkpoints(steps: int) -> frozenset[int]:
    """w_1, w_2, … of section 3: intervals shrink from 22 % of the steps by 3 %, down to 6 %.

    In whole per cent, for a ceiling of floating-point products can be one too high.
    """
    before, now, marks = 0, 22, set[int]()
    while now <= 100:
        marks.add(-(-now * steps // 100))
        before, now = now, now + max(now - before - 3, 6)
    return frozenset(marks)
