"""The ball of allowed perturbations: projection, steepest ascent, random points."""

from dataclasses import dataclass

import torch
from torch import Tensor

from purify_audit.spec.norms import Norm


@dataclass(frozen=True, slots=True)
class Ball:
    """All images within eps of x, pixels in [0, 1].

    Attributes:
        x: the clean images [n, c, h, w].
        norm: l2 or linf.
        eps: radius, pixel units.
    """

    x: Tensor
    norm: Norm
    eps: float

    def select(self, rows: Tensor) -> "Ball":
        """The ball around some of the images, by their rows int64 [m]."""
        return Ball(self.x[rows], self.norm, self.eps)

    def project(self, z: Tensor) -> Tensor:
        """Project onto the ball, then clip to [0, 1] (which does not leave the ball)."""
        delta = z - self.x
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            delta = delta * (self.eps / _length(delta).clamp(min=self.eps))
        return (self.x + delta).clamp(0.0, 1.0)

    def steepest_ascent(self, gradient: Tensor) -> Tensor:
        """The unit step (in the ball's norm) that increases a linear loss most [n, c, h, w]."""
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        if self.norm == "linf":
            return gradient.sign()
        scaled = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-38)
        return scaled / _length(scaled).clamp(min=1e-12)

    def start(self, uniform: Tensor, share: Tensor) -> Tensor:
        """A random point of the ball.

        Args:
            uniform: numbers in (0, 1), one for each pixel [n, c, h, w].
            share: numbers in (0, 1), one for each image [n]; l2 only: the share of the radius.

        Returns:
            l-inf: a uniform point. l2: a random direction at that share of the radius.
        """
        spread = 2.0 * uniform - 1.0
        if self.norm == "l2":
            unit = spread / _length(spread).clamp(min=1e-12)
            spread = share[:, None, None, None] * unit
        return self.project(self.x + self.eps * spread)

    def size(self, z: Tensor) -> Tensor:
        """Distance of images from x [n], in the ball's norm, in float64."""
        delta = (z.double() - self.x.double()).flatten(1)
        return delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)


def _length(delta: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
    return length
