"""Layers that several diffusion networks share: embeddings of the time, norms, resampling."""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HALF_POWER = math.sqrt(0.5)
"""Scale of a sum of two paths, keeping its variance (Song et al. 2021, appendix H)."""


def sinusoidal_embedding(t: Tensor, width: int) -> Tensor:
    """Cosines then sines of `t` at geometric frequencies 1..1e-4 (Vaswani et al. 2017, 3.5).

    `t` is [n], any real dtype; the result is [n, width] in `t`'s float dtype (float32 for ints).
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float64, device=t.device) / half
    frequencies = torch.exp(-math.log(10_000.0) * steps)
    angles = t.to(torch.float64)[:, None] * frequencies[None, :]
    dtype = t.dtype if t.is_floating_point() else torch.float32
    return torch.cat((torch.cos(angles), torch.sin(angles)), 1).to(dtype)


def sines_and_cosines(t: Tensor, width: int) -> Tensor:
    """Sines then cosines of `t` [n] at width / 2 geometric frequencies, 1 and 1e-4 among them.

    The time embedding of Ho et al. (2020), for any real time. Computed in the type of `t`, as in
    training: at t = 999 exact frequencies differ by 5e-5 radians.

    Returns:
        [n, width], of the type of `t`.
    """
    half = width // 2
    steps = torch.arange(half, dtype=t.dtype, device=t.device)
    angles = t[:, None] * torch.exp(steps * (-math.log(10_000.0) / (half - 1)))[None, :]
    return torch.cat((torch.sin(angles), torch.cos(angles)), 1)


def feature_widths(width: int, multipliers: tuple[int, ...], blocks: int) -> list[int]:
    """Channels of the encoder features that the decoder takes, in order of appearance.

    They are: of the first convolution; then of each level, its downsampling (not of the first
    level) and its blocks.
    """
    widths = [width]
    for level, factor in enumerate(multipliers):
        if level > 0:
            widths.append(widths[-1])
        widths += [factor * width] * blocks
    return widths


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm in groups of at least 4 channels, 32 groups at most (as the weights were trained).

    Raises:
        ValueError: the channels do not divide into that many groups.
    """
    groups = min(channels // 4, 32)
    if channels % groups:
        raise ValueError(
            f"{channels} channels do not divide into {groups} groups of GroupNorm;"
            " widths that are multiples of 32 do"
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


class Upsample(nn.Module):
    """Double height and width by nearest neighbour, then convolve."""

    def __init__(self, channels: int) -> None:
        """Build the convolution, with as many channels out as in."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] to [n, channels, 2 h, 2 w]."""
        return cast(Tensor, self.conv(double(x)))


def double(x: Tensor) -> Tensor:
    """Double height and width: nearest neighbour."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def halve(x: Tensor) -> Tensor:
    """Halve height and width: averages of 2 x 2."""
    return F.avg_pool2d(x, 2)


def halve_filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Filter by `kernel` [1, 1, k, k], k even, and keep every other pixel of each axis."""
    return per_channel(F.conv2d, x, kernel, stride=2, padding=kernel.shape[-1] // 2 - 1)


def double_filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """The transpose of `halve_filtered`, times 4, which preserves constant images."""
    padding = kernel.shape[-1] // 2 - 1
    return per_channel(F.conv_transpose2d, x, 4.0 * kernel, stride=2, padding=padding)


def per_channel(
    convolve: Callable[..., Tensor], x: Tensor, kernel: Tensor, **options: int
) -> Tensor:
    """Convolve every channel of [n, c, h, w] by the same kernel [1, 1, k, k]."""
    out = convolve(x.reshape(-1, 1, *x.shape[2:]), kernel, **options)
    return out.reshape(*x.shape[:2], *out.shape[2:])
