"""Sequential networks, whose parameters have the names given on the card."""

from typing import cast

import torch
from torch import Tensor, nn

from purify_audit.spec.architectures import Layer, SequentialArgs

_MOST_FEATURES = 2**30  # of one image after any layer: 4 GiB


class Sequential(nn.Module):
    """Layers in sequence.

    Args:
        args: a layer named `conv1` has the tensors `conv1.weight` and so on; dots in a name make
            nested modules, as in the network the weights were taken from.

    Raises:
        ValueError: a layer has a name that PyTorch reserves (`forward`).
    """

    def __init__(self, args: SequentialArgs) -> None:
        """Build the layers with PyTorch's default weights."""
        super().__init__()
        self._chain = tuple(_module(layer) for layer in args.layers)
        for layer, module in zip(args.layers, self._chain, strict=True):
            if layer.name is not None:
                place(self, layer.name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the last layer for images [n, channels, h, w]."""
        for module in self._chain:
            x = module(x)
        return x


def build_sequential(
    args: SequentialArgs, given: tuple[int, ...], wanted: tuple[int, ...]
) -> Sequential:
    """The network, after a check that it maps features of shape `given` to shape `wanted`.

    Shapes are without the batch and are computed on the meta device, layer by layer.

    Raises:
        ValueError: a layer does not accept its input or has too large an output, the last one has
            another output shape, or see `Sequential`.
    """
    shape = given
    with torch.device("meta"):
        for number, layer in enumerate(args.layers):
            where = f"layer {number} ({f'{layer.kind} {layer.name}' if layer.name else layer.kind})"
            shape = _shape_after(where, layer, shape)
    if shape != wanted:
        raise ValueError(f"its layers turn {list(given)} into {list(shape)}, not {list(wanted)}")
    return Sequential(args)


def place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Make `module` a part of `root`, so that its tensors are named `<path>.weight` and so on.

    Raises:
        ValueError: a part of the path is a name that PyTorch reserves.
    """
    *outer, last = path.split(".")
    try:
        for name in outer:
            within = dict(root.named_children())
            if name not in within:
                root.add_module(name, nn.Module())
            root = root.get_submodule(name)
        root.add_module(last, module)
    except KeyError:
        raise ValueError(f"layer name '{path}' has a part that PyTorch keeps for itself") from None


def _shape_after(where: str, layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    x = torch.empty(1, *shape)
    if layer.kind == "linear" and len(shape) > 1:
        raise ValueError(f"{where} is given {list(shape)}; flatten it first")
    if layer.inputs not in (None, shape[0]):  # PyTorch does not check every kind
        raise ValueError(f"{where} takes {layer.inputs} inputs and is given {list(shape)}")
    try:
        after = tuple(cast(Tensor, _module(layer).eval()(x)).shape[1:])
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{where} cannot take {list(shape)}: {reason}") from None
    if torch.Size(after).numel() > _MOST_FEATURES:
        raise ValueError(f"{where} makes {list(after)} of one image, more than {_MOST_FEATURES:,}")
    return after


def _module(layer: Layer) -> nn.Module:
    inputs, outputs = layer.inputs or 0, layer.outputs or 0  # present where needed
    window = layer.kernel, layer.stride, layer.padding
    match layer.kind:
        case "conv":
            return nn.Conv2d(inputs, outputs, *window, bias=layer.bias)
        case "conv-transpose":
            return nn.ConvTranspose2d(inputs, outputs, *window, bias=layer.bias)
        case "linear":
            return nn.Linear(inputs, outputs, bias=layer.bias)
        case "batch-norm":
            return nn.BatchNorm2d(inputs)
        case "max-pool":
            return nn.MaxPool2d(*window)
        case "average-pool":
            return nn.AvgPool2d(*window)
        case "upsample":
            return nn.Upsample(scale_factor=layer.stride)
        case _:
            return _PLAIN[layer.kind]()


_PLAIN: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "flatten": nn.Flatten,
}
