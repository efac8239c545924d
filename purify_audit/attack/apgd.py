"""Auto-PGD: projected gradient ascent with momentum that chooses its own step sizes.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020, section 3 and algorithm 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from purify_audit.attack.ball import Ball
from purify_audit.attack.pgd import AttackOutput, Best, LossOracle

_MOMENTUM = 0.75  # α of section 3
_ENOUGH = 0.75  # ρ of condition 1


@dataclass(frozen=True, slots=True)
class _Point:
    """Images with what their evaluation gave.

    Attributes:
        x: [n, c, h, w].
        losses: [n].
        gradient: of the losses [n, c, h, w].
    """

    x: Tensor
    losses: Tensor
    gradient: Tensor

    def where(self, rows: Tensor, other: "_Point") -> "_Point":
        """These images in the rows [n] that are true, the others elsewhere."""
        wide = rows[:, None, None, None]
        return _Point(
            torch.where(wide, self.x, other.x),
            torch.where(rows, self.losses, other.losses),
            torch.where(wide, self.gradient, other.gradient),
        )


class _StepSizes:
    """The step size of each image, and the record by which a checkpoint judges it (section 3).

    Attributes:
        size: of the next step [n], in the ball's norm.
    """

    def __init__(self, size: float, losses: Tensor) -> None:
        """The same size for all.

        Args:
            size: of the first step.
            losses: of the first images [n].
        """
        self.size = torch.full_like(losses, size)
        self._raised = torch.zeros_like(losses, dtype=torch.int64)
        self._halved = torch.zeros_like(losses, dtype=torch.bool)
        self._best = losses

    def count(self, raised: Tensor) -> None:
        """Take note of which images' losses the last step raised, bool [n]."""
        self._raised += raised

    def check(self, best: Tensor, steps: int) -> Tensor:
        """Halve the size where it is too large.

        Args:
            best: highest loss so far [n].
            steps: how many were made since the last checkpoint.

        Returns:
            bool [n]: where it was halved.
        """
        too_few = self._raised < _ENOUGH * steps
        stuck = ~self._halved & (best == self._best)
        self._halved, self._best = too_few | stuck, best
        self._raised = torch.zeros_like(self._raised)
        self.size = torch.where(self._halved, self.size / 2, self.size)
        return self._halved


def apgd(objective: LossOracle, ball: Ball, start: Tensor, steps: int) -> AttackOutput:
    """Ascend from `start` by Auto-PGD.

    A checkpoint falls right after step w_j, as soon as the w_j comparisons of condition 1 are
    known. (Algorithm 1 as printed makes and evaluates one step more, and then replaces it.) A
    restart reuses the loss and gradient that the image of highest loss had when it was evaluated.

    Args:
        objective: what to raise; asked for `steps` gradients and one look.
        ball: where.
        start: images in the ball [n, c, h, w].
        steps: gradients, at least 1.

    Returns:
        The best of all `steps + 1` iterates; they may be others than those of highest loss, by
        which the ascent restarts.
    """
    best, marks, last_mark = Best(start), _checkpoints(steps), 0

    def climb(x: Tensor, step: int) -> _Point:
        view = objective.loss_and_grad(x, step)
        best.see(x, view)
        assert view.gradient is not None, "climb gives a gradient"
        return _Point(x, view.losses, view.gradient)

    here = top = climb(start, 0)
    sizes = _StepSizes(2.0 * ball.eps, here.losses)
    x = _ascend(ball, here, sizes.size)
    for step in range(1, steps):
        last, here = here, climb(x, step)
        sizes.count(here.losses > last.losses)
        top = here.where(here.losses > top.losses, top)
        if step in marks:
            here = top.where(sizes.check(top.losses, step - last_mark), here)
            last_mark = step
        z = _ascend(ball, here, sizes.size)
        moved = _MOMENTUM * (z - here.x) + (1.0 - _MOMENTUM) * (here.x - last.x)
        x = ball.project(here.x + moved)
    best.see(x, objective.evaluate(x, steps))
    return best.result()


def _ascend(ball: Ball, here: _Point, size: Tensor) -> Tensor:
    """The images after a plain gradient step of size [n]."""
    return ball.project(here.x + size[:, None, None, None] * ball.steepest_ascent(here.gradient))


def _checkpoints(steps: int) -> frozenset[int]:
    """w_1, w_2, … of section 3: intervals shrink from 22 % of the steps by 3 %, down to 6 %.

    In whole per cent, for a ceiling of floating-point products can be one too high.
    """
    before, now, marks = 0, 22, set[int]()
    while now <= 100:
        marks.add(-(-now * steps // 100))
        before, now = now, now + max(now - before - 3, 6)
    return frozenset(marks)
