"""Projected gradient ascent (Madry et al. 2018) that returns the best iterate."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from purify_audit.attacks.ball import Ball
from purify_audit.attacks.objective import Evaluation


class LossOracle(Protocol):
    """The interface of an objective for an optimiser (see `objective.Objective`)."""

    def evaluate(self, x: Tensor, step: int) -> Evaluation:
        """Losses and margins."""
        ...

    def loss_and_grad(self, x: Tensor, step: int) -> Evaluation:
        """Losses, margins and gradient."""
        ...


@dataclass(frozen=True, slots=True)
class AttackOutput:
    """Result of an attack.

    Attributes:
        x: adversarial images [n, c, h, w].
        margins: their margins under the draws that selected them [n, k].
        last: the last iterates [n, c, h, w].
        fooled: share of (image, draw) fooled by the best iterates so far, after every step.
        losses: mean loss of the iterates at every step.
        last_losses: loss of each last iterate [n].
        made_by: index in `RUNS` (`statistics.attack_rows`) of the run that made each image, int64
            [n]; none from a single run.
    """

    x: Tensor
    margins: Tensor
    last: Tensor
    fooled: tuple[float, ...]
    losses: tuple[float, ...]
    last_losses: Tensor
    made_by: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """Iterates with their losses and gradients.

    Attributes:
        x: [n, c, h, w].
        losses: [n].
        gradient: of the losses [n, c, h, w].
    """

    x: Tensor
    losses: Tensor
    gradient: Tensor

    def where(self, rows: Tensor, other: "Point") -> "Point":
        """This point in the rows [n] that are true, the other elsewhere."""
        wide = rows[:, None, None, None]
        return Point(
            torch.where(wide, self.x, other.x),
            torch.where(rows, self.losses, other.losses),
            torch.where(wide, self.gradient, other.gradient),
        )


class BestIterate:
    """The best iterate so far of each image: most draws fooled, then the lowest mean margin."""

    def __init__(self, x: Tensor) -> None:
        """Begin with images [n, c, h, w] that are not evaluated yet."""
        self.x = self.last = x.clone()
        self.margins: Tensor | None = None
        self.fooled: list[float] = []
        self.losses: list[float] = []
        self.last_losses = torch.zeros(len(x), device=x.device)

    def update(self, x: Tensor, evaluation: Evaluation) -> None:
        """Record an iterate: keep it where it is better, and its loss."""
        self.keep(x, evaluation.margins)
        self.last, self.last_losses = x, evaluation.losses
        self.fooled.append(self.share())
        self.losses.append(float(evaluation.losses.double().mean()))

    def keep(self, x: Tensor, margins: Tensor) -> Tensor:
        """Keep images where they are better; a NaN margin does not count as fooled.

        Returns:
            bool [n]: where they are kept.
        """
        margins = margins.nan_to_num(nan=torch.inf)
        if self.margins is None:
            self.x, self.margins = x.clone(), margins.clone()
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        better = self._better(margins, self.margins)
        self.x = torch.where(better[:, None, None, None], x, self.x)
        self.margins = torch.where(better[:, None], margins, self.margins)
        return better

    @staticmethod
    def _better(new: Tensor, old: Tensor) -> Tensor:
        fooled, before = ((m <= 0).sum(1) for m in (new, old))
        return (fooled > before) | ((fooled == before) & (new.mean(1) < old.mean(1)))

    def best_margins(self) -> Tensor:
        """Margins of the best iterates under the draws that selected them [n, k]."""
        assert self.margins is not None, "an attack evaluates at least one iterate"
        return self.margins

    def share(self) -> float:
        """Share of (image, draw) that the best iterates fool."""
        return float((self.best_margins() <= 0).double().mean())

    def result(self) -> AttackOutput:
        """The attack's output."""
        return AttackOutput(
            x=self.x,
            margins=self.best_margins(),
            last=self.last,
            fooled=tuple(self.fooled),
            losses=tuple(self.losses),
            last_losses=self.last_losses,
        )


def evaluated(objective: LossOracle, best: BestIterate, x: Tensor, step: int) -> Point:
    """The point at x [n, c, h, w], which is also recorded."""
    evaluation = objective.loss_and_grad(x, step)
    best.update(x, evaluation)
    assert evaluation.gradient is not None, "loss_and_grad returns a gradient"
    return Point(x, evaluation.losses, evaluation.gradient)


def pgd(
    objective: LossOracle, ball: Ball, start: Tensor, steps: int, step_size: float
) -> AttackOutput:
    """PGD from `start`, with a step size that falls from `step_size` to 0 (half a cosine).

    Args:
        objective: the objective to maximise.
        ball: the constraint.
        start: images in the ball [n, c, h, w].
        steps: number of gradients.
        step_size: of the first step, in the ball's norm, pixel units.

    Returns:
        The best of all `steps + 1` iterates.
    """
    x, best = start, BestIterate(start)
    for step in range(steps):
        evaluation = objective.loss_and_grad(x, step)
        best.update(x, evaluation)
        assert evaluation.gradient is not None, "loss_and_grad returns a gradient"
        size = step_size * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        x = ball.ascend(x, evaluation.gradient, size)
    best.update(x, objective.evaluate(x, steps))
    return best.result()
