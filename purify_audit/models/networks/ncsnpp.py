"""NCSN++ and DDPM++ (Song et al., "Score-based generative modeling through SDEs", ICLR 2021).

Appendix H describes both. Names, shapes and order of the weights are those of the published
checkpoints: `all_modules.0`, `all_modules.1`, ... in the order in which layers are used.
"""

import math
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify_audit.models.networks.layers import (
    HALF_POWER,
    double,
    double_filtered,
    feature_widths,
    group_norm,
    halve,
    halve_filtered,
    per_channel,
    sines_and_cosines,
)
from purify_audit.spec.architectures import NCSNppArgs
from purify_audit.spec.card import ImageSpec

_TAPS = (1.0, 3.0, 3.0, 1.0)  # of the anti-aliasing filter (appendix H, after Karras et al. 2020)
_FREQUENCIES = 16.0  # their standard deviation in the Fourier embedding

Resample = Callable[[Tensor], Tensor]
"""Halve or double height and width of [n, c, h, w]."""


class NCSNpp(nn.Module):
    """U-Net of BigGAN residual blocks, conditioned on a noise level.

    Args:
        image: its input and output; height and width can be halved between all levels.
        args: its settings.

    Raises:
        ValueError: a width does not divide into groups of GroupNorm.
    """

    def __init__(self, image: ImageSpec, args: NCSNppArgs) -> None:
        """Build the layers, in the order of their names."""
        super().__init__()
        self.args = args
        self.register_buffer("sigmas", torch.zeros(args.scales))
        self.all_modules = nn.ModuleList(
            [*_time_layers(args), *_encoder(image.channels, args), *_decoder(image.channels, args)]
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise (VP models) or the score (VE models) of noisy images.

        Args:
            x: [n, channels, h, w], in the data range of the training.
            t: [n], its noise conditioning: 999 t in [0, 999] (VP, positional), or sigma > 0 (VE,
                `fourier`).

        Returns:
            [n, channels, h, w].
        """
        layers = iter(self.all_modules)
        time = self._time(t, layers)
        features = self._encode(x if self.args.centered else 2.0 * x - 1.0, time, layers)
        out = self._decode(features, time, layers)
        return out / t[:, None, None, None] if self.args.scale_by_sigma else out

    def _time(self, t: Tensor, layers: Iterator[nn.Module]) -> Tensor:
        if self.args.embedding == "fourier":
            h = next(layers)(t)
        else:
            h = sines_and_cosines(t, self.args.width)
        h = next(layers)(h)
        return cast(Tensor, next(layers)(F.silu(h)))

    def _encode(self, image: Tensor, time: Tensor, layers: Iterator[nn.Module]) -> list[Tensor]:
        """Features from fine to coarse; the decoder takes them from the end."""
        features = [next(layers)(image)]
        for level in range(len(self.args.multipliers)):
            if level > 0:
                h = next(layers)(features[-1], time)
                if self.args.progressive_input == "residual":
                    h = image = (next(layers)(image) + h) * HALF_POWER
                features.append(h)
            for _ in range(self.args.blocks):
                h = next(layers)(features[-1], time)
                features.append(next(layers)(h) if level in self.args.attention else h)
        return features

    def _decode(self, features: list[Tensor], time: Tensor, layers: Iterator[nn.Module]) -> Tensor:
        h = next(layers)(features[-1], time)
        h = next(layers)(h)
        h = next(layers)(h, time)
        for level in reversed(range(len(self.args.multipliers))):
            for _ in range(self.args.blocks + 1):
                h = next(layers)(torch.cat((h, features.pop()), 1), time)
            if level in self.args.attention:
                h = next(layers)(h)
            if level > 0:
                h = next(layers)(h, time)
        h = next(layers)(h)
        return cast(Tensor, next(layers)(F.silu(h)))


def _time_layers(args: NCSNppArgs) -> Iterator[nn.Module]:
    embedded = args.width
    if args.embedding == "fourier":
        yield _Fourier(args.width)
        embedded = 2 * args.width
    yield nn.Linear(embedded, 4 * args.width)
    yield nn.Linear(4 * args.width, 4 * args.width)


def _encoder(channels: int, args: NCSNppArgs) -> Iterator[nn.Module]:
    c_in, image, time = args.width, channels, 4 * args.width
    yield nn.Conv2d(channels, c_in, 3, padding=1)
    for level, factor in enumerate(args.multipliers):
        if level > 0:
            yield _Block(c_in, c_in, time, _halve_filtered if args.fir else halve)
            if args.progressive_input == "residual":
                yield _ImageHalving(image, c_in)
                image = c_in
        for _ in range(args.blocks):
            yield _Block(c_in, factor * args.width, time)
            c_in = factor * args.width
            if level in args.attention:
                yield _Attention(c_in)


def _decoder(channels: int, args: NCSNppArgs) -> Iterator[nn.Module]:
    widths = feature_widths(args.width, args.multipliers, args.blocks)
    c_in, time = widths[-1], 4 * args.width
    yield _Block(c_in, c_in, time)
    yield _Attention(c_in)
    yield _Block(c_in, c_in, time)
    for level, factor in reversed(list(enumerate(args.multipliers))):
        for _ in range(args.blocks + 1):
            yield _Block(c_in + widths.pop(), factor * args.width, time)
            c_in = factor * args.width
        if level in args.attention:
            yield _Attention(c_in)
        if level > 0:
            yield _Block(c_in, c_in, time, _double_filtered if args.fir else double)
    yield group_norm(c_in)
    yield nn.Conv2d(c_in, channels, 3, padding=1)


class _Fourier(nn.Module):
    """Sines and cosines of log t at random frequencies (appendix H, after Tancik et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # A buffer, for it was never trained: averaged weights, a list without names, leave it out.
        self.register_buffer("W", nn.init.normal_(torch.empty(width), std=_FREQUENCIES))
        self.W: Tensor

    def forward(self, t: Tensor) -> Tensor:
        angles = torch.log(t)[:, None] * self.W[None, :] * (2.0 * math.pi)
        return torch.cat((torch.sin(angles), torch.cos(angles)), 1)


class _Block(nn.Module):
    """GroupNorm, SiLU, convolution, twice, the time in between; BigGAN's resampling."""

    def __init__(self, c_in: int, c_out: int, time: int, resample: Resample | None = None) -> None:
        super().__init__()
        self.resample = resample or nn.Identity()
        self.GroupNorm_0 = group_norm(c_in)
        self.Conv_0 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.Dense_0 = nn.Linear(time, c_out)
        self.GroupNorm_1 = group_norm(c_out)
        self.Conv_1 = nn.Conv2d(c_out, c_out, 3, padding=1)
        plain = c_in == c_out and resample is None
        self.Conv_2 = nn.Identity() if plain else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.Conv_0(self.resample(F.silu(self.GroupNorm_0(x))))
        h = h + self.Dense_0(F.silu(time))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return cast(Tensor, (self.Conv_2(self.resample(x)) + h) * HALF_POWER)


class _Attention(nn.Module):
    """Single-head self-attention over pixels, with a residual path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        self.NIN_0, self.NIN_1 = _Pointwise(channels), _Pointwise(channels)
        self.NIN_2, self.NIN_3 = _Pointwise(channels), _Pointwise(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(self.NIN_0(h), self.NIN_1(h), self.NIN_2(h))
        h = self.NIN_3(mixed).transpose(1, 2).reshape(x.shape)
        return cast(Tensor, (x + h) * HALF_POWER)


class _Pointwise(nn.Module):
    """A linear map of channels [n, pixels, c], its weight stored [in, out]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W = nn.Parameter(nn.init.xavier_uniform_(torch.empty(channels, channels)))
        self.b = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W + self.b


class _ImageHalving(nn.Module):
    """Filter, then convolve with stride 2: how the image is added at coarser levels."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(c_in, c_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        kernel = _filter(x)
        return cast(Tensor, self.Conv2d_0(per_channel(F.conv2d, x, kernel, padding=2)))


def _filter(like: Tensor) -> Tensor:
    taps = like.new_tensor(_TAPS) / sum(_TAPS)
    return torch.outer(taps, taps)[None, None]


def _halve_filtered(x: Tensor) -> Tensor:
    return halve_filtered(x, _filter(x))


def _double_filtered(x: Tensor) -> Tensor:
    return double_filtered(x, _filter(x))
