"""The U-Net of P. Wang's package denoising-diffusion-pytorch, under the names of its weights.

Written from the names and shapes of those weights. It matches two layouts of the package:

- versions 2.0 to 2.2 (`groups` none): RMSNorm in the blocks (`block1.norm.g`);
- version 1.9 (`groups` 8): GroupNorm there (`block1.norm.weight` and `.bias`).

Both have `mem_kv`, RMSNorm before attention (`norm.g`) and after linear attention (`to_out.1.g`),
and the time's layers at `time_mlp.1` and `time_mlp.3`. Versions up to 1.5 name their attention
`fn.fn.to_qkv` and standardise weights (0.27 does not, under the same names): they are not covered,
nor are self-conditioning (twice the channels in `init_conv`) and learned frequencies
(`time_mlp.0.weights`).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify_audit.models.networks.layers import sines_and_cosines
from purify_audit.spec.architectures import LucidrainsArgs
from purify_audit.spec.card import ImageSpec


class LucidrainsUNet(nn.Module):
    """Residual U-Net conditioned on a time, with linear or softmax attention at every level.

    Args:
        image: its input; height and width can be halved between all levels.
        out_channels: those of the image, or twice as many with a learned variance.
        args: its settings.
    """

    def __init__(self, image: ImageSpec, out_channels: int, args: LucidrainsArgs) -> None:
        """Build the layers with PyTorch's default weights; extra keys and values start at 0."""
        super().__init__()
        widths = [args.width, *(factor * args.width for factor in args.multipliers)]
        levels = list(pairwise(widths))
        self.init_conv = nn.Conv2d(image.channels, args.width, 7, padding=3)
        time = 4 * args.width
        self.time_mlp = nn.Sequential(
            _Embedding(args.width), nn.Linear(args.width, time), nn.GELU(), nn.Linear(time, time)
        )
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (c_in, coarser) in enumerate(levels):
            last = level == len(levels) - 1
            resample = _plain(c_in, coarser) if last else _halving(c_in, coarser)
            full = level in args.full_attention
            self.downs.append(_Level((c_in, c_in, c_in), full, resample, args))
        self.mid_block1 = _ResidualBlock(widths[-1], widths[-1], args)
        self.mid_attn = _Attention(widths[-1], args)
        self.mid_block2 = _ResidualBlock(widths[-1], widths[-1], args)
        for level, (finer, c_in) in reversed(list(enumerate(levels))):
            resample = _plain(c_in, finer) if level == 0 else _doubling(c_in, finer)
            full = level in args.full_attention
            self.ups.append(_Level((c_in + finer, c_in + finer, c_in), full, resample, args))
        self.final_res_block = _ResidualBlock(2 * args.width, args.width, args)
        self.final_conv = nn.Conv2d(args.width, out_channels, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict [n, out_channels, h, w] from noisy images at indices of the schedule.

        Args:
            x: [n, channels, h, w], in [−1, 1] before noise.
            t: [n], in [0, steps).
        """
        time = self.time_mlp(t.to(x.dtype))
        h = first = self.init_conv(x)
        skips: list[Tensor] = []
        for level in self.downs:
            block1, block2, attention, resample = cast(nn.ModuleList, level)
            skips.append(block1(h, time))
            h = block2(skips[-1], time)
            skips.append(h + attention(h))
            h = resample(skips[-1])
        h = self.mid_block1(h, time)
        h = self.mid_block2(h + self.mid_attn(h), time)
        for level in self.ups:
            block1, block2, attention, resample = cast(nn.ModuleList, level)
            h = block1(torch.cat((h, skips.pop()), 1), time)
            h = block2(torch.cat((h, skips.pop()), 1), time)
            h = resample(h + attention(h))
        h = self.final_res_block(torch.cat((h, first), 1), time)
        return cast(Tensor, self.final_conv(h))


class _Level(nn.ModuleList):
    """Two blocks, attention, and resampling to the next level.

    Args:
        widths: channels into each block, and out of both.
        full: whether attention is by softmax.
        resample: to the next level.
        args: its settings.
    """

    def __init__(
        self, widths: tuple[int, int, int], full: bool, resample: nn.Module, args: LucidrainsArgs
    ) -> None:
        first, second, out = widths
        attention = _Attention(out, args) if full else _LinearAttention(out, args)
        blocks = [_ResidualBlock(c_in, out, args) for c_in in (first, second)]
        super().__init__([*blocks, attention, resample])


def _plain(c_in: int, c_out: int) -> nn.Module:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def _halving(c_in: int, c_out: int) -> nn.Module:
    """Squares of 2 x 2 pixels become channels, which are mixed."""
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * c_in, c_out, 1))


def _doubling(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2.0), _plain(c_in, c_out))


class _Embedding(nn.Module):
    """Sines and cosines of the time: [n] to [n, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, t: Tensor) -> Tensor:
        return sines_and_cosines(t, self.width)


class _RMSNorm(nn.Module):
    """x / rms(x) g, where rms is over the channels of each pixel (Zhang and Sennrich 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        unit: Tensor = F.normalize(x, dim=1)
        return unit * self.g * math.sqrt(x.shape[1])


class _ResidualBlock(nn.Module):
    """Two convolutions, the first of which the time scales and shifts, and a residual path."""

    def __init__(self, c_in: int, c_out: int, args: LucidrainsArgs) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(4 * args.width, 2 * c_out))
        self.block1 = _Convolution(c_in, c_out, args.groups)
        self.block2 = _Convolution(c_out, c_out, args.groups)
        self.res_conv = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.mlp(time)[:, :, None, None].chunk(2, 1)
        h = F.silu(self.block1(x) * (scale + 1.0) + shift)
        return cast(Tensor, F.silu(self.block2(h)) + self.res_conv(x))


class _Convolution(nn.Module):
    """Convolve and normalise."""

    def __init__(self, c_in: int, c_out: int, groups: int | None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm = _RMSNorm(c_out) if groups is None else nn.GroupNorm(groups, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.proj(x)))


class _Heads(nn.Module):
    """Common part of both attentions: queries, keys and values of normalised pixels.

    Args:
        channels: in and out.
        memory: shape of the learned keys, and of the learned values.
        args: its settings.
    """

    def __init__(self, channels: int, memory: Sequence[int], args: LucidrainsArgs) -> None:
        super().__init__()
        self.heads = args.heads
        self.norm = _RMSNorm(channels)
        self.mem_kv = nn.Parameter(torch.zeros(2, *memory))
        self.to_qkv = nn.Conv2d(channels, 3 * args.heads * args.head_channels, 1, bias=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [n, heads, width, pixels]."""
        parts = self.to_qkv(self.norm(x)).reshape(len(x), 3, self.heads, -1, x[0, 0].numel())
        q, k, v = parts.unbind(1)
        return q, k, v

    def memory(self, n: int) -> tuple[Tensor, Tensor]:
        """The learned keys and values, for n images."""
        k, v = self.mem_kv[:, None].expand(-1, n, -1, -1, -1)
        return k, v


class _Attention(_Heads):
    """Softmax attention over pixels and learned keys (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, channels: int, args: LucidrainsArgs) -> None:
        super().__init__(channels, (args.heads, args.memory, args.head_channels), args)
        self.to_out = nn.Conv2d(args.heads * args.head_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.transpose(2, 3) for part in self.split(x))
        more_k, more_v = self.memory(len(x))
        k, v = torch.cat((more_k, k), 2), torch.cat((more_v, v), 2)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return cast(Tensor, self.to_out(mixed.reshape(len(x), -1, *x.shape[2:])))


class _LinearAttention(_Heads):
    """Attention whose cost is linear in the pixels (Shen et al. 2021, section 3.2).

    Queries are normalised by softmax over the channels of a head, and scaled by 1 / sqrt(width);
    keys by softmax over pixels and learned keys.
    """

    def __init__(self, channels: int, args: LucidrainsArgs) -> None:
        super().__init__(channels, (args.heads, args.head_channels, args.memory), args)
        out = nn.Conv2d(args.heads * args.head_channels, channels, 1)
        self.to_out = nn.Sequential(out, _RMSNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        more_k, more_v = self.memory(len(x))
        k, v = torch.cat((more_k, k), 3).softmax(3), torch.cat((more_v, v), 3)
        context = v @ k.transpose(2, 3)  # [n, heads, width of values, width of keys]
        mixed = context @ (q.softmax(2) / math.sqrt(q.shape[2]))
        return cast(Tensor, self.to_out(mixed.reshape(len(x), -1, *x.shape[2:])))
