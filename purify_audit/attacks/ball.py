"""The ball of allowed perturbations: projection, steepest ascent, random points."""

from dataclasses import dataclass

import torch
from torch import Tensor

from purify_audit.attacks import l1
from purify_audit.spec.norms import Norm


@dataclass(frozen=True, slots=True)
class Ball:
    """All images within eps of x, pixels in [0, 1].

    Attributes:
        x: the clean images [n, c, h, w].
        norm: l1, l2 or linf.
        eps: radius, pixel units.
    """

    x: Tensor
    norm: Norm
    eps: float

    def select(self, rows: Tensor) -> "Ball":
        """The ball around some of the images, by their rows int64 [m]."""
        return Ball(self.x[rows], self.norm, self.eps)

    def project(self, z: Tensor) -> Tensor:
        """Images in the ball and in [0, 1].

        l-inf: the nearest ones. l1: the nearest ones too (`l1.project`). l2: projected onto the
        ball, then clipped to [0, 1], which does not leave the ball.
        """
        if self.norm == "l1":
            return l1.project(self.x, z, self.eps)
        delta = z - self.x
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            delta = delta * (self.eps / _length(delta).clamp(min=self.eps))
        return (self.x + delta).clamp(0.0, 1.0)

    def ascend(
        self, z: Tensor, gradient: Tensor, size: float | Tensor, entries: Tensor | None = None
    ) -> Tensor:
        """Images after a gradient step, in the ball.

        Args:
            z: images in the ball [n, c, h, w].
            gradient: of the loss [n, c, h, w].
            size: of the step, in the ball's norm: one, or one for each image [n].
            entries: l1 only: how many pixel values the step moves at least, [n]; none: a
                fixed share for a step of length eps, fewer for a shorter one.
        """
        if self.norm == "l1":
            wide = torch.as_tensor(size, dtype=torch.float64, device=z.device).expand(len(z))
            if entries is None:
                entries = l1.step_entries(z[0].numel(), wide / self.eps)
            return self.project(z.double() + l1.step(z, gradient, wide, entries))
        sizes = size[:, None, None, None] if isinstance(size, Tensor) else size
        return self.project(z + sizes * self.steepest_ascent(gradient))

    def steepest_ascent(self, gradient: Tensor) -> Tensor:
        """The unit step (in the ball's norm) that increases a linear loss most [n, c, h, w].

        For l2 and l-inf. That for l1 depends on the image, which may be at the end of its range
        where the gradient is largest: `l1.step`.
        """
        assert self.norm != "l1", "an l1 step depends on the image"
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        if self.norm == "linf":
            return gradient.sign()
        scaled = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-38)
        return scaled / _length(scaled).clamp(min=1e-12)

    def start(self, uniform: Tensor, share: Tensor) -> Tensor:
        """A random point of the ball.

        Args:
            uniform: numbers in (0, 1), one for each pixel [n, c, h, w].
            share: numbers in (0, 1), one for each image [n]; the share of the radius, not of l-inf.

        Returns:
            l-inf: a uniform point. l1, l2: a random direction at that share of the radius.
        """
        if self.norm == "l1":
            lengths = self.eps * share.double()[:, None, None, None]
            return self.project(self.x.double() + lengths * l1.direction(uniform))
        spread = 2.0 * uniform - 1.0
        if self.norm == "l2":
            unit = spread / _length(spread).clamp(min=1e-12)
            spread = share[:, None, None, None] * unit
        return self.project(self.x + self.eps * spread)

    def size(self, z: Tensor) -> Tensor:
        """Distance of images from x [n], in the ball's norm, in float64."""
        delta = (z.double() - self.x.double()).flatten(1)
        if self.norm == "linf":
            return delta.abs().amax(1)
        return delta.abs().sum(1) if self.norm == "l1" else delta.norm(dim=1)


def _length(delta: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
    return length
