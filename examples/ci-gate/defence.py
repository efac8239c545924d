"""Two versions of a purifier of 8×8 digits, for a gate to judge.

Both answer with a weighted mean of known digits, those near the input weighing most: what a
denoiser of Gaussian noise does that has learnt these digits by heart. They differ in where their
randomness comes in.
"""

import torch
from torch import Tensor, nn

from purify_audit.images.image_set import load_images


class NearestDigits(nn.Module):
    """The mean of known digits, weighted by how near they are in the pixels that are looked at."""

    image_shape = (1, 8, 8)
    digits: Tensor

    def __init__(self, noise: float, seen: float, width: float) -> None:
        """See `good` and `bad`."""
        super().__init__()
        self.noise, self.seen, self.width = noise, seen, width
        known = torch.from_numpy(load_images("digits:train").pixels.copy())
        self.register_buffer("digits", known.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 1, 8, 8] in [0, 1] to purified ones."""
        y = x.flatten(1) + self.noise * torch.randn_like(x).flatten(1)
        mask = (torch.rand_like(y) < self.seen).to(y)
        y, known = y * mask, self.digits
        distance = (y * y).sum(1, keepdim=True) - 2 * y @ known.T + mask @ (known * known).T
        weights = torch.softmax(-distance / (2 * self.width**2), 1)
        return (weights @ known).reshape(x.shape)


def good() -> NearestDigits:
    """A little noise, every pixel, many neighbours: images that are alike come out alike."""
    return NearestDigits(noise=0.1, seen=1.0, width=0.5)


def bad() -> NearestDigits:
    """Four pixels in ten, chosen at random each time, and few neighbours: a moving target."""
    return NearestDigits(noise=0.0, seen=0.4, width=0.2)
