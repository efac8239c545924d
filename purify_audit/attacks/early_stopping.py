"""Early stopping: an objective that drops fooled images from the batch, as AutoAttack does."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from purify_audit.attacks.objective import Evaluation, Objective


@dataclass(slots=True)
class EarlyStopping:
    """An aligned attack's objective that no longer evaluates images fooled under every draw.

    AutoAttack drops fooled points likewise (Croce and Hein 2020). A dropped image keeps its last
    losses and margins, with a gradient of zero, so `BestIterate` keeps the iterate that fooled.
    Rows are independent, so the attack on the other images is unchanged.

    Attributes:
        objective: the objective, whose draws are the same at every step.
    """

    objective: Objective
    _last: Evaluation | None = field(default=None, repr=False)

    def evaluate(self, x: Tensor, step: int) -> Evaluation:
        """Losses and margins of images x [n, c, h, w]."""
        return self._evaluate(x, step, gradient=False)

    def loss_and_grad(self, x: Tensor, step: int) -> Evaluation:
        """Losses, margins and gradient of images x [n, c, h, w]."""
        return self._evaluate(x, step, gradient=True)

    def _evaluate(self, x: Tensor, step: int, gradient: bool) -> Evaluation:
        if self._last is None:
            self._last = _evaluated(self.objective, x, step, gradient)
            return self._last
        losses, margins, whole = self._last.losses, self._last.margins, torch.zeros_like(x)
        rows = (~(margins <= 0).all(1)).nonzero().flatten()
        if len(rows):
            part = _evaluated(self.objective.select(rows), x[rows], step, gradient)
            losses = losses.index_copy(0, rows, part.losses)
            margins = margins.index_copy(0, rows, part.margins)
            if part.gradient is not None:
                whole = whole.index_copy(0, rows, part.gradient)
        self._last = Evaluation(losses, margins, whole if gradient else None)
        return self._last


def _evaluated(objective: Objective, x: Tensor, step: int, gradient: bool) -> Evaluation:
    return objective.loss_and_grad(x, step) if gradient else objective.evaluate(x, step)
