"""Wide residual networks, under the two naming schemes of published weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from purify_audit.models.networks.sequential import place
from purify_audit.spec.architectures import WideResNetArgs


@dataclass(frozen=True, slots=True)
class _Layout:
    """Parameter names of an implementation, and its differences.

    Attributes:
        block: with places for the number of the stage and of the block in it.
        first_stage: the number of the first stage.
        same: pad strided convolutions as TensorFlow's SAME does: an even size on the right and
            below only. Else on every side.
    """

    stem: str
    block: str
    first_stage: int
    norms: tuple[str, str]
    convolutions: tuple[str, str]
    shortcut: str
    norm: str
    linear: str
    activation: Callable[[Tensor], Tensor]
    same: bool


_LAYOUTS = {
    "classic": _Layout(
        stem="conv1",
        block="block{}.layer.{}",
        first_stage=1,
        norms=("bn1", "bn2"),
        convolutions=("conv1", "conv2"),
        shortcut="convShortcut",
        norm="bn1",
        linear="fc",
        activation=F.relu,
        same=False,
    ),
    "deepmind": _Layout(
        stem="init_conv",
        block="layer.{}.block.{}",
        first_stage=0,
        norms=("batchnorm_0", "batchnorm_1"),
        convolutions=("conv_0", "conv_1"),
        shortcut="shortcut",
        norm="batchnorm",
        linear="logits",
        activation=F.silu,
        same=True,
    ),
}


class WideResNet(nn.Module):
    """WRN-depth-width (Zagoruyko and Komodakis, "Wide residual networks", 2016, table 1).

    Three stages of (depth − 4) / 6 pre-activated blocks with 16, 32 and 64 times `width` channels;
    the second and third stage halve the resolution. The `deepmind` layout has SiLU for ReLU (Gowal
    et al., "Uncovering the limits of adversarial training", 2020).

    Args:
        channels: of images, normalised by the card's mean and std. Weights of the classic layout
            are published for pixels in [0, 1], mean 0 and std 1; code of the deepmind layout
            normalises inside the network, by the mean and std that a card has to give instead.
        classes: number of logits.
        args: depth, width and layout.
    """

    def __init__(self, channels: int, classes: int, args: WideResNetArgs) -> None:
        """Build the layers with PyTorch's default weights."""
        super().__init__()
        self._layout = layout = _LAYOUTS[args.layout]
        self._blocks: list[str] = []
        c_in = 16
        place(self, layout.stem, nn.Conv2d(channels, c_in, 3, padding=1, bias=False))
        for stage, wider in enumerate((16 * args.width, 32 * args.width, 64 * args.width)):
            for number in range((args.depth - 4) // 6):
                path = layout.block.format(stage + layout.first_stage, number)
                place(self, path, _Block(c_in, wider, 2 if stage and not number else 1, layout))
                self._blocks.append(path)
                c_in = wider
        place(self, layout.norm, nn.BatchNorm2d(c_in))
        place(self, layout.linear, nn.Linear(c_in, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, h, w] of any size."""
        h = self.get_submodule(self._layout.stem)(x)
        for path in self._blocks:
            h = self.get_submodule(path)(h)
        h = self._layout.activation(self.get_submodule(self._layout.norm)(h))
        return cast(Tensor, self.get_submodule(self._layout.linear)(h.mean((2, 3))))


class _Block(nn.Module):
    """Batch norm, activation, convolution, twice; where the width changes, a shortcut of 1×1."""

    def __init__(self, inputs: int, outputs: int, stride: int, layout: _Layout) -> None:
        super().__init__()
        self._layout, self._stride, self._wider = layout, stride, inputs != outputs
        shapes = (inputs, stride, 0), (outputs, 1, 1)
        for norm, conv, (given, step, padding) in zip(
            layout.norms, layout.convolutions, shapes, strict=True
        ):
            self.add_module(norm, nn.BatchNorm2d(given))
            convolution = nn.Conv2d(given, outputs, 3, stride=step, padding=padding, bias=False)
            self.add_module(conv, convolution)
        if self._wider:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.add_module(layout.shortcut, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        part, layout = self.get_submodule, self._layout
        h = layout.activation(part(layout.norms[0])(x))
        skip = part(layout.shortcut)(h) if self._wider else x
        h = part(layout.convolutions[0])(self._padded(h))
        h = layout.activation(part(layout.norms[1])(h))
        return cast(Tensor, skip + part(layout.convolutions[1])(h))

    def _padded(self, h: Tensor) -> Tensor:
        same = self._layout.same and self._stride == 2
        top, left = (0 if same and size % 2 == 0 else 1 for size in h.shape[2:])
        return F.pad(h, (left, 1, top, 1))
