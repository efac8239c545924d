"""The U-Net of improved diffusion and guided diffusion (ADM), under its published names.

Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", ICML 2021; Dhariwal and
Nichol, "Diffusion models beat GANs on image synthesis", NeurIPS 2021, section 3. The models of the
first have `heads` and strided convolutions; those of the second `head_channels` and
`resblock_updown`. Class-conditional models are not covered.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify_audit.models.networks.layers import Upsample, double, halve, sinusoidal_embedding
from purify_audit.spec.architectures import ADMArgs
from purify_audit.spec.card import ImageSpec

_GROUPS = 32


class ADM(nn.Module):
    """U-Net of residual blocks, conditioned on a time; self-attention at the coarse levels.

    Args:
        image: its input; height and width can be halved between all levels.
        out_channels: those of the image, or twice as many with a learned variance.
        args: its settings.
    """

    def __init__(self, image: ImageSpec, out_channels: int, args: ADMArgs) -> None:
        """Build the layers with PyTorch's default weights."""
        super().__init__()
        self.args = args
        c_in, time = args.width * args.multipliers[0], 4 * args.width
        self.time_embed = nn.Sequential(
            nn.Linear(args.width, time), nn.SiLU(), nn.Linear(time, time)
        )
        first = _Stage([nn.Conv2d(image.channels, c_in, 3, padding=1)])
        self.input_blocks = nn.ModuleList([first])
        skips = [c_in]
        for level, factor in enumerate(args.multipliers):
            if level > 0:
                self.input_blocks.append(_Stage([_halving(c_in, args)]))
                skips.append(c_in)
            for _ in range(args.blocks):
                self.input_blocks.append(_Stage(_layers(c_in, factor, level, args)))
                c_in = factor * args.width
                skips.append(c_in)
        middle = _Block(c_in, c_in, args), _Attention(c_in, args), _Block(c_in, c_in, args)
        self.middle_block = _Stage(middle)
        self.output_blocks = nn.ModuleList()
        for level, factor in reversed(list(enumerate(args.multipliers))):
            for n in range(args.blocks + 1):
                layers = _layers(c_in + skips.pop(), factor, level, args)
                c_in = factor * args.width
                if level > 0 and n == args.blocks:
                    layers.append(_doubling(c_in, args))
                self.output_blocks.append(_Stage(layers))
        last = nn.Conv2d(c_in, out_channels, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(_GROUPS, c_in), nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict [n, out_channels, h, w] from noisy images at indices of the schedule.

        Args:
            x: [n, channels, h, w], in [−1, 1] before noise.
            t: [n], in [0, steps).
        """
        t = (t * self.args.time_scale).to(x.dtype)
        time = self.time_embed(sinusoidal_embedding(t, self.args.width))
        skips, h = [], x
        for stage in self.input_blocks:
            h = stage(h, time)
            skips.append(h)
        h = self.middle_block(h, time)
        for stage in self.output_blocks:
            h = stage(torch.cat((h, skips.pop()), 1), time)
        return cast(Tensor, self.out(h))


def _layers(c_in: int, factor: int, level: int, args: ADMArgs) -> list[nn.Module]:
    """A residual block, and attention where the level has it."""
    width = factor * args.width
    layers: list[nn.Module] = [_Block(c_in, width, args)]
    return [*layers, _Attention(width, args)] if level in args.attention else layers


def _halving(channels: int, args: ADMArgs) -> nn.Module:
    if args.resblock_updown:
        return _Block(channels, channels, args, resample=0.5)
    return _StridedConvolution(channels)


def _doubling(channels: int, args: ADMArgs) -> nn.Module:
    if args.resblock_updown:
        return _Block(channels, channels, args, resample=2.0)
    return Upsample(channels)


class _Stage(nn.ModuleList):
    """Layers in sequence; residual blocks also take the time embedding."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, time) if isinstance(layer, _Block) else layer(x)
        return x


class _Block(nn.Module):
    """GroupNorm, SiLU, convolution, twice, and a residual path; optional resampling in both.

    Args:
        c_in: channels in.
        c_out: channels out; the same where it resamples.
        args: its settings.
        resample: 0.5 (averages of 2 x 2), 1, or 2 (nearest neighbour): after the first activation.
    """

    def __init__(self, c_in: int, c_out: int, args: ADMArgs, resample: float = 1.0) -> None:
        super().__init__()
        self.resample, self.scale_shift = resample, args.scale_shift
        time = 4 * args.width
        self.in_layers = nn.Sequential(
            nn.GroupNorm(_GROUPS, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1)
        )
        features = 2 * c_out if args.scale_shift else c_out
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, features))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(_GROUPS, c_out),
            nn.SiLU(),
            nn.Identity(),  # dropout in training: it keeps the convolution's published index
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.in_layers[2](self._resampled(F.silu(self.in_layers[0](x))))
        embedded = self.emb_layers(time)[:, :, None, None]
        norm, convolution = self.out_layers[0], self.out_layers[3]
        if self.scale_shift:  # "adaptive group normalisation"
            scale, shift = embedded.chunk(2, 1)
            h = norm(h) * (1.0 + scale) + shift
        else:
            h = norm(h + embedded)
        return cast(Tensor, self.skip_connection(self._resampled(x)) + convolution(F.silu(h)))

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample < 1.0:
            return halve(x)
        if self.resample > 1.0:
            return double(x)
        return x


class _Attention(nn.Module):
    """Multi-head self-attention over pixels, with a residual path.

    Two orders of the channels of `qkv` circulate: [head, (query, key, value), channel] in all
    published weights ("legacy"), and [(query, key, value), head, channel] ("new").
    """

    def __init__(self, channels: int, args: ADMArgs) -> None:
        super().__init__()
        self.heads = args.heads or channels // (args.head_channels or channels)
        self.heads_first = not args.new_attention_order
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        qkv = self.qkv(self.norm(x).flatten(2))
        width = c // self.heads
        if self.heads_first:
            parts = qkv.reshape(n, self.heads, 3, width, h * w).transpose(1, 2)
        else:
            parts = qkv.reshape(n, 3, self.heads, width, h * w)
        q, k, v = parts.transpose(3, 4).unbind(1)  # each [n, heads, pixels, width]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(n, c, h * w)
        return cast(Tensor, x + self.proj_out(mixed).reshape(x.shape))


class _StridedConvolution(nn.Module):
    """Halve height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.op(x))
