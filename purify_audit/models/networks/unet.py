"""A compact diffusion U-Net (after Ho et al., "Denoising diffusion probabilistic models", 2020)."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify_audit.models.networks.layers import Upsample, sinusoidal_embedding


class UNet(nn.Module):
    """Residual U-Net conditioned on a scalar time; optional self-attention at the coarse levels.

    Args:
        channels: image channels in.
        out_channels: channels out; twice `channels` when the network also predicts a variance.
        width: feature channels at full resolution, a multiple of `groups`.
        multipliers: width factor of each level; each level after the first halves the resolution.
        blocks: residual blocks in each level.
        attention: levels (0 = full resolution) whose blocks are followed by self-attention.
        groups: groups of each GroupNorm.
        patch: squares of patch x patch pixels become channels of one pixel, and back at the end.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        groups: int,
        patch: int = 1,
    ) -> None:
        """Build the layers; weights are PyTorch's defaults except the last, which starts at 0."""
        super().__init__()
        self.width, self.patch = width, patch
        time = 4 * width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.conv_in = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.down = nn.ModuleList()
        skips, c_in = [width], width
        for level, factor in enumerate(multipliers):
            if level > 0:
                self.down.append(nn.Conv2d(c_in, c_in, 3, stride=2, padding=1))
                skips.append(c_in)
            for _ in range(blocks):
                block = _Block(c_in, factor * width, time, groups, level in attention)
                c_in = factor * width
                self.down.append(block)
                skips.append(c_in)
        self.middle = _Block(c_in, c_in, time, groups, attend=bool(attention))
        self.up = nn.ModuleList()
        for level, factor in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                width_in = c_in + skips.pop()
                block = _Block(width_in, factor * width, time, groups, level in attention)
                c_in = factor * width
                self.up.append(block)
            if level > 0:
                self.up.append(Upsample(c_in))
        self.norm_out = nn.GroupNorm(groups, c_in)
        self.conv_out = nn.Conv2d(c_in, out_channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(cast(Tensor, self.conv_out.bias))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict from noisy images `x` [n, channels, h, w] at times `t` [n] (any real number)."""
        time = self.time(sinusoidal_embedding(t, self.width))
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))
        skips = [h]
        for layer in self.down:
            h = layer(h, time) if isinstance(layer, _Block) else layer(h)
            skips.append(h)
        h = self.middle(h, time)
        for layer in self.up:
            if isinstance(layer, _Block):
                h = layer(torch.cat((h, skips.pop()), 1), time)
            else:
                h = layer(h)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


class _Block(nn.Module):
    """GroupNorm, SiLU, conv, twice, with the time added in between, and a residual path."""

    def __init__(self, c_in: int, c_out: int, time: int, groups: int, attend: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time, c_out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        self.attention = _Attention(c_out, groups) if attend else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return cast(Tensor, self.attention(self.skip(x) + h))


class _Attention(nn.Module):
    """Single-head self-attention over pixels, with a residual path."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, 3, c, h * w).transpose(2, 3).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, c, h, w)
        return cast(Tensor, x + self.out(mixed))
