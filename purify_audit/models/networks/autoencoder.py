"""A convolutional autoencoder."""

from itertools import pairwise
from typing import cast

from torch import Tensor, nn


class Autoencoder(nn.Module):
    """Strided convolutions down, nearest-neighbour and convolutions up; a linear last layer.

    Args:
        channels: image channels, in and out.
        widths: feature channels of each level; every level after the first halves the resolution,
            so height and width must be multiples of 2 ** (len(widths) - 1).
    """

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        """Build the layers with PyTorch's default weights."""
        super().__init__()
        encoder: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.SiLU()]
        for wide, wider in pairwise(widths):
            encoder += [nn.Conv2d(wide, wider, 3, stride=2, padding=1), nn.SiLU()]
        decoder: list[nn.Module] = []
        for wider, wide in pairwise(reversed(widths)):
            decoder += [nn.Upsample(scale_factor=2.0), nn.Conv2d(wider, wide, 3, padding=1)]
            decoder += [nn.SiLU()]
        decoder += [nn.Conv2d(widths[0], channels, 3, padding=1)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct images [n, channels, h, w]."""
        return cast(Tensor, self.decoder(self.encoder(x)))
