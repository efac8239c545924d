"""The U-Net of Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020.

Appendix B describes it. Names and shapes of the weights are those under which the converted
checkpoints circulate (`temb.dense.0`, `down.0.block.0.norm1`, `mid.attn_1.q`, ...).
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify_audit.models.networks.layers import Upsample, sines_and_cosines
from purify_audit.spec.architectures import DDPMUNetArgs
from purify_audit.spec.card import ImageSpec


class DDPMUNet(nn.Module):
    """Residual U-Net conditioned on a time; single-head self-attention at the coarse levels.

    Args:
        image: its input; height and width can be halved between all levels.
        args: its settings.
        out_channels: by default those of the image.
    """

    def __init__(
        self, image: ImageSpec, args: DDPMUNetArgs, out_channels: int | None = None
    ) -> None:
        """Build the layers with PyTorch's default weights."""
        super().__init__()
        c_in = args.width
        time = 4 * c_in
        self.temb = _Time(c_in)
        self.conv_in = nn.Conv2d(image.channels, c_in, 3, padding=1)
        self.down, skips = nn.ModuleList(), [c_in]
        for level, factor in enumerate(args.multipliers):
            widths = [c_in, *[factor * args.width] * args.blocks]
            c_in = widths[-1]
            stage = _Level(widths[:-1], c_in, time, level in args.attention)
            skips += widths[1:]
            if level < len(args.multipliers) - 1:
                stage.downsample = _Downsample(c_in)
                skips.append(c_in)
            self.down.append(stage)
        self.mid = _Middle(c_in, time)
        coarse_to_fine: list[nn.Module] = []
        for level, factor in reversed(list(enumerate(args.multipliers))):
            out = factor * args.width
            widths = [before + skips.pop() for before in (c_in, *[out] * args.blocks)]
            c_in = out
            stage = _Level(widths, c_in, time, level in args.attention)
            if level > 0:
                stage.upsample = Upsample(c_in)
            coarse_to_fine.append(stage)
        self.up = nn.ModuleList(reversed(coarse_to_fine))  # numbered from fine to coarse
        self.norm_out = _group_norm(c_in)
        self.conv_out = nn.Conv2d(c_in, out_channels or image.channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict [n, out_channels, h, w] from noisy images at indices of the schedule.

        Args:
            x: [n, channels, h, w], in [−1, 1] before noise.
            t: [n], in [0, steps).
        """
        time = self.temb(t.to(x.dtype))
        h = self.conv_in(x)
        skips = [h]
        for stage in self.down:
            skips += cast(_Level, stage).encode(skips[-1], time)
        h = self.mid(skips[-1], time)
        for stage in reversed(self.up):
            h = cast(_Level, stage).decode(h, skips, time)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(h))))


class _Level(nn.Module):
    """The blocks of one resolution of encoder or decoder, each optionally with attention.

    Args:
        widths: channels into each block.
        out: channels out of every block.
        time: channels of the embedded time.
        attend: whether there is attention.
    """

    def __init__(self, widths: list[int], out: int, time: int, attend: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList([_Block(width, out, time) for width in widths])
        self.attn = nn.ModuleList([_Attention(out) for _ in widths] if attend else [])
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def encode(self, h: Tensor, time: Tensor) -> list[Tensor]:
        """Output of each block, and of the downsampling."""
        outputs = []
        for n in range(len(self.block)):
            h = self._step(n, h, time)
            outputs.append(h)
        return outputs if self.downsample is None else [*outputs, self.downsample(h)]

    def decode(self, h: Tensor, skips: list[Tensor], time: Tensor) -> Tensor:
        """Output after blocks that take `skips` from the end, and upsampling."""
        for n in range(len(self.block)):
            h = self._step(n, torch.cat((h, skips.pop()), 1), time)
        return h if self.upsample is None else cast(Tensor, self.upsample(h))

    def _step(self, n: int, h: Tensor, time: Tensor) -> Tensor:
        h = self.block[n](h, time)
        return cast(Tensor, self.attn[n](h)) if len(self.attn) else h


class _Middle(nn.Module):
    """A block, attention and a block at the coarsest resolution."""

    def __init__(self, channels: int, time: int) -> None:
        super().__init__()
        self.block_1, self.attn_1 = _Block(channels, channels, time), _Attention(channels)
        self.block_2 = _Block(channels, channels, time)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return cast(Tensor, self.block_2(self.attn_1(self.block_1(x, time)), time))


class _Time(nn.Module):
    """Sines and cosines of the time, and two layers: [n] to [n, 4 width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, time = width, 4 * width
        self.dense = nn.ModuleList([nn.Linear(width, time), nn.Linear(time, time)])

    def forward(self, t: Tensor) -> Tensor:
        h = self.dense[0](sines_and_cosines(t, self.width))
        return cast(Tensor, self.dense[1](F.silu(h)))


class _Block(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with the time added in between, and a residual path."""

    def __init__(self, c_in: int, c_out: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _group_norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.temb_proj = nn.Linear(time, c_out)
        self.norm2, self.conv2 = _group_norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return cast(Tensor, self.nin_shortcut(x) + h)


class _Attention(nn.Module):
    """Single-head self-attention over pixels, with a residual path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return cast(Tensor, x + self.proj_out(mixed))


class _Downsample(nn.Module):
    """A strided convolution, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)
