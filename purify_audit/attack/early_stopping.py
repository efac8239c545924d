"""Images that fell leave the batch: an objective that computes only those that still stand."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from purify_audit.attack.objective import Evaluation, Objective


@dataclass(slots=True)
class EarlyStopping:
    """An aligned attack's objective that computes no image again which every draw misjudged.

    Such an image has fallen, and leaves, as points do in AutoAttack (Croce and Hein 2020). What is
    told of it from then on is the view in which it fell, with a gradient of zero: nothing better
    than that, so `pgd.Best` stays with the image that fell. Rows do not depend on one another, so
    the others are attacked as they would have been.

    Attributes:
        objective: the objective, whose draws are the same at every step.
    """

    objective: Objective
    _last: Evaluation | None = field(default=None, repr=False)

    def evaluate(self, x: Tensor, step: int) -> Evaluation:
        """Losses and margins of images x [n, c, h, w]."""
        return self._view(x, step, climbs=False)

    def loss_and_grad(self, x: Tensor, step: int) -> Evaluation:
        """The same with the gradient."""
        return self._view(x, step, climbs=True)

    def _view(self, x: Tensor, step: int, climbs: bool) -> Evaluation:
        if self._last is None:
            self._last = _see(self.objective, x, step, climbs)
            return self._last
        losses, margins, gradient = self._last.losses, self._last.margins, torch.zeros_like(x)
        rows = (~(margins <= 0).all(1)).nonzero().flatten()
        if len(rows):
            ids = tuple(self.objective.ids[row] for row in rows.tolist())
            standing = replace(self.objective, ids=ids, labels=self.objective.labels[rows])
            view = _see(standing, x[rows], step, climbs)
            losses = losses.index_copy(0, rows, view.losses)
            margins = margins.index_copy(0, rows, view.margins)
            if view.gradient is not None:
                gradient = gradient.index_copy(0, rows, view.gradient)
        self._last = Evaluation(losses, margins, gradient if climbs else None)
        return self._last


def _see(objective: Objective, x: Tensor, step: int, climbs: bool) -> Evaluation:
    return objective.loss_and_grad(x, step) if climbs else objective.evaluate(x, step)
