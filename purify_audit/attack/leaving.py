"""Images that fell leave the batch: an objective that computes only those that still stand."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from purify_audit.attack.objective import Objective, View


@dataclass(slots=True)
class Leaving:
    """An aligned attack's objective that computes no image again which every draw misjudged.

    Such an image has fallen, and leaves, as points do in AutoAttack (Croce and Hein 2020). What is
    told of it from then on is the view in which it fell, with a gradient of zero: nothing better
    than that, so `pgd.Best` stays with the image that fell. Rows do not depend on one another, so
    the others are attacked as they would have been.

    Attributes:
        aim: the objective, whose draws are the same at every step.
    """

    aim: Objective
    _last: View | None = field(default=None, repr=False)

    def look(self, x: Tensor, step: int) -> View:
        """Losses and margins of images x [n, c, h, w]."""
        return self._view(x, step, climbs=False)

    def climb(self, x: Tensor, step: int) -> View:
        """The same with the gradient."""
        return self._view(x, step, climbs=True)

    def _view(self, x: Tensor, step: int, climbs: bool) -> View:
        if self._last is None:
            self._last = _see(self.aim, x, step, climbs)
            return self._last
        losses, margins, gradient = self._last.losses, self._last.margins, torch.zeros_like(x)
        rows = (~(margins <= 0).all(1)).nonzero().flatten()
        if len(rows):
            ids = tuple(self.aim.ids[row] for row in rows.tolist())
            standing = replace(self.aim, ids=ids, labels=self.aim.labels[rows])
            view = _see(standing, x[rows], step, climbs)
            losses = losses.index_copy(0, rows, view.losses)
            margins = margins.index_copy(0, rows, view.margins)
            if view.gradient is not None:
                gradient = gradient.index_copy(0, rows, view.gradient)
        self._last = View(losses, margins, gradient if climbs else None)
        return self._last


def _see(aim: Objective, x: Tensor, step: int, climbs: bool) -> View:
    return aim.climb(x, step) if climbs else aim.look(x, step)
