"""Image restoration networks that `spandrel` (an extra) recognises by their tensors."""

from typing import Any

import torch
from torch import Tensor, nn

from purify_audit.core.errors import CardError, CheckpointError
from purify_audit.core.records import printable

_SAME = 1e-4  # two ways to run one network on the CPU differ by float32 rounding only


def spandrel_network(
    state: dict[str, Tensor], shape: tuple[int, int, int], source: str
) -> nn.Module:
    """The network that spandrel detects in some tensors, with these as its weights, in eval mode.

    Only its `model` is used: a spandrel descriptor runs without gradients and clamps. Models
    whose descriptor does more (choosing a noise level, padding, selecting one of several outputs)
    are refused: the two are compared on an image of all grey levels.

    Args:
        state: float tensors under the names of their file, on the CPU.
        shape: (channels, height, width) of its input.
        source: the file, for messages.

    Raises:
        CardError: spandrel cannot be imported.
        CheckpointError: spandrel does not know such tensors, or what it detects does not map
            images of this shape to images of the same shape.
    """
    loader = _loader(source)
    try:
        with torch.random.fork_rng(devices=()):  # weights that are replaced at once are drawn first
            descriptor = loader.load_from_state_dict(state)
    except Exception as error:  # as many kinds as spandrel has architectures
        raise CheckpointError(
            f"{source}: spandrel cannot use these tensors ({_reason(error)}); name their"
            " architecture on the card, or wrap it in a factory of your own"
        ) from None
    name = f"{source}: the {printable(descriptor.architecture.name)} network that spandrel detects"
    channels = descriptor.input_channels, descriptor.output_channels
    if descriptor.scale != 1 or channels != (shape[0], shape[0]):
        raise CheckpointError(
            f"{name} has scale {descriptor.scale} and maps {channels[0]} channels to {channels[1]},"
            f" where the card needs scale 1 and {shape[0]} to {shape[0]}; correct the card's"
            " channels or per_channel, or take other weights"
        )
    network: nn.Module = descriptor.model.eval().requires_grad_(False)
    _check_plain(descriptor, network, shape, name)
    return network


def _loader(source: str) -> Any:
    try:
        from spandrel import ModelLoader
    except (ImportError, RuntimeError) as error:  # a torchvision of another build: RuntimeError
        raise CardError(
            f"{source}: its network is detected by spandrel, which cannot be imported"
            f" ({_reason(error)}); install purify-audit[restoration]"
        ) from None
    return ModelLoader(device="cpu")


def _check_plain(
    descriptor: Any, network: nn.Module, shape: tuple[int, int, int], name: str
) -> None:
    """Raise CheckpointError unless the model alone does what its descriptor does."""
    picture = torch.linspace(0.0, 1.0, torch.Size(shape).numel()).reshape(1, *shape)
    try:
        with torch.no_grad():
            alone, wanted = network(picture), descriptor(picture)
        plain = alone.shape == picture.shape and bool(
            torch.allclose(alone.clamp(0.0, 1.0), wanted, rtol=0.0, atol=_SAME)
        )
    except Exception:  # as many kinds as spandrel has architectures
        plain = False
    if not plain:
        raise CheckpointError(
            f"{name} does not map images of {' x '.join(map(str, shape))} to images by itself;"
            " name its architecture on the card, or wrap it in a factory of your own"
        )


def _reason(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}".partition("\n")[0])
