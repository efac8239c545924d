"""Projected gradient ascent (Madry et al. 2018) that keeps the best image by its own draws."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from purify_audit.attack.ball import Ball
from purify_audit.attack.objective import Evaluation


class LossOracle(Protocol):
    """What an optimiser knows of an objective (see `objective.Objective`)."""

    def evaluate(self, x: Tensor, step: int) -> Evaluation:
        """Losses and margins."""
        ...

    def loss_and_grad(self, x: Tensor, step: int) -> Evaluation:
        """Losses, margins and gradient."""
        ...


@dataclass(frozen=True, slots=True)
class AttackOutput:
    """What an attack ends with.

    Attributes:
        x: the images to report [n, c, h, w].
        margins: under the draws they were chosen by [n, k].
        last: the last iterates.
        fooled: share of (image, draw) fooled by the best so far, after every step.
        losses: mean loss of the iterates, step by step.
    """

    x: Tensor
    margins: Tensor
    last: Tensor
    fooled: tuple[float, ...]
    losses: tuple[float, ...]


class Best:
    """The best image so far, one for each row: most draws fooled, then the lowest mean margin."""

    def __init__(self, x: Tensor) -> None:
        """Nothing seen yet."""
        self.x = self.last = x.clone()
        self.margins: Tensor | None = None
        self.fooled: list[float] = []
        self.losses: list[float] = []

    def see(self, x: Tensor, view: Evaluation) -> None:
        """Keep what is better, and remember how far it went."""
        self.keep(x, view.margins)
        self.last = x
        self.fooled.append(self.share())
        self.losses.append(float(view.losses.double().mean()))

    def keep(self, x: Tensor, margins: Tensor) -> None:
        """Keep what is better; a margin that is not a number fools nobody."""
        margins = margins.nan_to_num(nan=torch.inf)
        if self.margins is None:
            self.x, self.margins = x.clone(), margins.clone()
        else:
            better = self._better(margins, self.margins)
            self.x = torch.where(better[:, None, None, None], x, self.x)
            self.margins = torch.where(better[:, None], margins, self.margins)

    @staticmethod
    def _better(new: Tensor, old: Tensor) -> Tensor:
        hits, had = ((m <= 0).sum(1) for m in (new, old))
        return (hits > had) | ((hits == had) & (new.mean(1) < old.mean(1)))

    def chosen(self) -> Tensor:
        """Margins of the best images under the draws they were chosen by [n, k]."""
        assert self.margins is not None, "an attack looks at least once"
        return self.margins

    def share(self) -> float:
        """Share of (image, draw) that the best images fool."""
        return float((self.chosen() <= 0).double().mean())

    def result(self) -> AttackOutput:
        """What was found."""
        return AttackOutput(
            self.x, self.chosen(), self.last, tuple(self.fooled), tuple(self.losses)
        )


def pgd(
    objective: LossOracle, ball: Ball, start: Tensor, steps: int, step_size: float
) -> AttackOutput:
    """Ascend from `start`; the step size falls from `step_size` to 0 along half a cosine.

    Args:
        objective: what to raise.
        ball: where.
        start: images in the ball.
        steps: gradients.
        step_size: of the first step, in the ball's norm, pixel units.

    Returns:
        The best of all `steps + 1` iterates.
    """
    x, best = start, Best(start)
    for step in range(steps):
        view = objective.loss_and_grad(x, step)
        best.see(x, view)
        assert view.gradient is not None, "climb gives a gradient"
        size = step_size * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        x = ball.project(x + size * ball.steepest_ascent(view.gradient))
    best.see(x, objective.evaluate(x, steps))
    return best.result()
