"""One-pass denoisers under the parameter names of their authors' weights (KAIR).

A network conditioned on the noise level takes its standard deviation, in units of the input
image, as a second argument: a number, or a tensor [n, 1, 1, 1] with one for each image.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify_audit.spec.architectures import DnCNNArgs, DRUNetArgs, FFDNetArgs

_KAIR_EPS = 1e-4  # of its batch normalisation; PyTorch's default is 1e-5


class DnCNN(nn.Module):
    """Predicts and subtracts the noise (Zhang et al., "Beyond a Gaussian denoiser", 2017).

    Section III and figure 1: `depth` 3×3 convolutions, ReLU after each but the last, and batch
    normalisation before each ReLU but the first, unless it was merged into the convolutions.
    Published: depth 17, width 64 for one level of noise.
    """

    def __init__(self, channels: int, args: DnCNNArgs) -> None:
        """Build the layers with PyTorch's default weights."""
        super().__init__()
        self.model = _convolutions(channels, channels, args.width, args.depth, args.batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Denoise images [n, channels, h, w] of any size."""
        return x - cast(Tensor, self.model(x))


class FFDNet(nn.Module):
    """Denoises at half resolution, given the noise level (Zhang et al., "FFDNet", 2018).

    Section III: squares of 2×2 pixels become channels, a map of the level is one channel more,
    `depth` 3×3 convolutions with ReLU between them give the clean image, and channels become
    squares again. Odd sizes are made even by repeating the last row and column.
    """

    def __init__(self, channels: int, args: FFDNetArgs) -> None:
        """Build the layers with PyTorch's default weights."""
        super().__init__()
        self.model = _convolutions(4 * channels + 1, 4 * channels, args.width, args.depth)

    def forward(self, x: Tensor, level: Tensor | float) -> Tensor:
        """Denoise images [n, channels, h, w] of any size."""
        h = F.pixel_unshuffle(_padded(x, 2), 2)
        h = F.pixel_shuffle(self.model(_with_level(h, level)), 2)
        return h[..., : x.shape[2], : x.shape[3]]


class DRUNet(nn.Module):
    """A residual U-Net conditioned on the noise level (Zhang et al., DPIR, 2021).

    "Plug-and-play image restoration with deep denoiser prior", section III.A and figure 1: strided
    2×2 convolutions down, transposed ones up, sums for skips, and no biases, so that the output
    scales with the image and the level. Sizes are made multiples of 2 ** (levels − 1) by repeating
    the last row and column. Published: widths 64, 128, 256, 512 and 4 blocks.
    """

    def __init__(self, channels: int, args: DRUNetArgs) -> None:
        """Build the layers with PyTorch's default weights."""
        super().__init__()
        widths, self.levels = args.widths, len(args.widths)
        self.m_head = _convolution(channels + 1, widths[0])
        for level, (here, below) in enumerate(pairwise(widths), 1):
            down = nn.Conv2d(here, below, 2, stride=2, bias=False)
            up = nn.ConvTranspose2d(below, here, 2, stride=2, bias=False)
            self.add_module(f"m_down{level}", nn.Sequential(*_blocks(here, args.blocks), down))
            self.add_module(f"m_up{level}", nn.Sequential(up, *_blocks(here, args.blocks)))
        self.m_body = nn.Sequential(*_blocks(widths[-1], args.blocks))
        self.m_tail = _convolution(widths[0], channels)

    def forward(self, x: Tensor, level: Tensor | float) -> Tensor:
        """Denoise images [n, channels, h, w] of any size."""
        h = self.m_head(_with_level(_padded(x, 2 ** (self.levels - 1)), level))
        skips = [h]
        for number in range(1, self.levels):
            h = self.get_submodule(f"m_down{number}")(h)
            skips.append(h)
        h = self.m_body(h)
        for number in range(self.levels - 1, 0, -1):
            h = self.get_submodule(f"m_up{number}")(h + skips.pop())
        clean = cast(Tensor, self.m_tail(h + skips.pop()))
        return clean[..., : x.shape[2], : x.shape[3]]


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.res = nn.Sequential(_convolution(width, width), nn.ReLU(), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.res(x))


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [_ResidualBlock(width) for _ in range(count)]


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def _convolutions(
    inputs: int, outputs: int, width: int, depth: int, batch_norm: bool = False
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 2):
        layers.append(nn.Conv2d(width, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width, eps=_KAIR_EPS)] if batch_norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Conv2d(width, outputs, 3, padding=1))


def _padded(x: Tensor, unit: int) -> Tensor:
    """Images padded to multiples of `unit` rows and columns, by repeating the last ones.

    (The gradient of `F.pad` by replication is summed in no fixed order on a GPU.)
    """
    for axis in (2, 3):
        last = x.narrow(axis, x.shape[axis] - 1, 1)
        x = torch.cat((x, *[last] * (-x.shape[axis] % unit)), axis)
    return x


def _with_level(x: Tensor, level: Tensor | float) -> Tensor:
    """Images and, as a last channel, the level of their noise."""
    n, _, height, width = x.shape
    levels = torch.as_tensor(level, dtype=x.dtype, device=x.device).expand(n, 1, height, width)
    return torch.cat((x, levels), 1)
