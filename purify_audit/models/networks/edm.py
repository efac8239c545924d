"""EDM's denoisers (Karras et al., "Elucidating the design space of diffusion-based models", 2022).

The inner network is DDPM++ (Song et al. 2021, appendix H) under other names; table 1 of the paper
gives the preconditioning around it. Names and shapes of the weights are those of the published
checkpoints.
"""

from collections.abc import Iterator
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify_audit.models.networks.layers import (
    HALF_POWER,
    double_filtered,
    feature_widths,
    group_norm,
    halve_filtered,
    sines_and_cosines,
)
from purify_audit.spec.architectures import EDMArgs
from purify_audit.spec.card import ImageSpec

_BETA_MIN, _BETA_SPREAD, _STEPS = 0.1, 19.9, 1000  # table 1, column VP: beta_min, beta_d, M


class EDM(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (Karras et al. 2022, eq. 7).

    Args:
        image: its input and output; height and width can be halved between all levels.
        args: its settings.

    Raises:
        ValueError: a width does not divide into groups of GroupNorm.
    """

    def __init__(self, image: ImageSpec, args: EDMArgs) -> None:
        """Build the layers."""
        super().__init__()
        self.args = args
        self.model = SongUNet(image, args)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The expected clean images.

        Args:
            x: [n, channels, h, w], clean images in [−1, 1] plus sigma times standard normals.
            sigma: [n], above 0.

        Returns:
            [n, channels, h, w], about [−1, 1] once trained.
        """
        c_skip, c_out, c_in, c_noise = self._coefficients(sigma)
        c_skip, c_out, c_in = (c[:, None, None, None] for c in (c_skip, c_out, c_in))
        return c_skip * x + c_out * cast(Tensor, self.model(c_in * x, c_noise))

    def _coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in, c_noise, each [n] (table 1, "Network and preconditioning")."""
        square = sigma**2
        if self.args.preconditioning == "vp":
            # The time at which the VP process has this sigma (table 1, "Schedule", inverted).
            root = torch.sqrt(_BETA_MIN**2 + 2.0 * _BETA_SPREAD * torch.log1p(square))
            c_noise = (_STEPS - 1) * (root - _BETA_MIN) / _BETA_SPREAD
            return torch.ones_like(sigma), -sigma, torch.rsqrt(square + 1.0), c_noise
        data, total = self.args.sigma_data, square + self.args.sigma_data**2
        c_in = torch.rsqrt(total)
        return data**2 / total, sigma * data * c_in, c_in, 0.25 * torch.log(sigma)


class SongUNet(nn.Module):
    """DDPM++ whose layers are named by resolution: `enc.32x32_block0`, `dec.16x16_in0`, ....

    Args:
        image: its channels and its size.
        args: its settings.
    """

    def __init__(self, image: ImageSpec, args: EDMArgs) -> None:
        """Build the layers."""
        super().__init__()
        self.width, time = args.width, 4 * args.width
        if args.augment:  # its labels are zero in purification, and it has no bias: not called
            self.map_augment = nn.Linear(args.augment, args.width, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(args.width, time), nn.Linear(time, time)
        self.enc = nn.ModuleDict(dict(_encoder(image, args)))
        self.dec = nn.ModuleDict(dict(_decoder(image, args)))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """F of images [n, channels, h, w] and noise conditioning c_noise [n]."""
        time = F.silu(self.map_layer0(sines_and_cosines(noise, self.width)))
        time = F.silu(self.map_layer1(time))
        first, *blocks = self.enc.values()
        features = [first(x)]
        for block in blocks:
            features.append(block(features[-1], time))
        h = features[-1]
        *blocks, norm, last = self.dec.values()
        for block in blocks:
            if isinstance(block, _SkipBlock):
                h = torch.cat((h, features.pop()), 1)
            h = block(h, time)
        return cast(Tensor, last(F.silu(norm(h))))


def _encoder(image: ImageSpec, args: EDMArgs) -> Iterator[tuple[str, nn.Module]]:
    c_in, time = args.width, 4 * args.width
    yield f"{_size(image, 0)}_conv", nn.Conv2d(image.channels, c_in, 3, padding=1)
    for level, factor in enumerate(args.multipliers):
        size, attend = _size(image, level), level in args.attention
        if level > 0:
            yield f"{size}_down", _Block(c_in, c_in, time, resample="halve")
        for k in range(args.blocks):
            yield f"{size}_block{k}", _Block(c_in, factor * args.width, time, attend=attend)
            c_in = factor * args.width


def _decoder(image: ImageSpec, args: EDMArgs) -> Iterator[tuple[str, nn.Module]]:
    widths = feature_widths(args.width, args.multipliers, args.blocks)
    c_in, time, coarsest = widths[-1], 4 * args.width, len(args.multipliers) - 1
    yield f"{_size(image, coarsest)}_in0", _Block(c_in, c_in, time, attend=True)
    yield f"{_size(image, coarsest)}_in1", _Block(c_in, c_in, time)
    for level in range(coarsest, -1, -1):
        size, out = _size(image, level), args.multipliers[level] * args.width
        if level < coarsest:
            yield f"{size}_up", _Block(c_in, c_in, time, resample="double")
        for k in range(args.blocks + 1):
            attend = level in args.attention and k == args.blocks
            block = _SkipBlock(c_in + widths.pop(), out, time, attend=attend)
            yield f"{size}_block{k}", block
            c_in = out
    yield f"{_size(image, 0)}_aux_norm", group_norm(c_in)
    yield f"{_size(image, 0)}_aux_conv", nn.Conv2d(c_in, image.channels, 3, padding=1)


def _size(image: ImageSpec, level: int) -> str:
    return f"{image.height >> level}x{image.width >> level}"


class _Block(nn.Module):
    """GroupNorm, SiLU, convolution, twice, the time in between; optional self-attention."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        time: int,
        resample: Literal["halve", "double"] | None = None,
        attend: bool = False,
    ) -> None:
        super().__init__()
        self.norm0 = group_norm(c_in)
        self.conv0 = _Conv(c_in, c_out, 3, resample)
        self.affine = nn.Linear(time, c_out)
        self.norm1 = group_norm(c_out)
        self.conv1 = nn.Conv2d(c_out, c_out, 3, padding=1)
        plain = c_in == c_out and resample is None
        self.skip = nn.Identity() if plain else _Conv(c_in, c_out, 1, resample)
        self.attend = attend
        if attend:
            self.norm2 = group_norm(c_out)
            self.qkv, self.proj = nn.Conv2d(c_out, 3 * c_out, 1), nn.Conv2d(c_out, c_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x))) + self.affine(time)[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(h)))
        h = (self.skip(x) + h) * HALF_POWER
        return self._attention(h) if self.attend else cast(Tensor, h)

    def _attention(self, x: Tensor) -> Tensor:
        """One head; the channels of query, key and value are interleaved."""
        n, c, height, width = x.shape
        q, k, v = self.qkv(self.norm2(x)).reshape(n, c, 3, height * width).transpose(1, 3).unbind(2)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return cast(Tensor, (x + self.proj(mixed)) * HALF_POWER)


class _SkipBlock(_Block):
    """A block whose input includes features of the encoder."""


class _Conv(nn.Conv2d):
    """A convolution, optionally after resampling by a filter stored with the weights."""

    def __init__(
        self, c_in: int, c_out: int, size: int, resample: Literal["halve", "double"] | None
    ) -> None:
        super().__init__(c_in, c_out, size, padding=size // 2)
        self.resample = {"halve": halve_filtered, "double": double_filtered, None: None}[resample]
        if resample is not None:
            self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))
            self.resample_filter: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.resample is not None:
            x = self.resample(x, self.resample_filter)
        return super().forward(x)
