"""Formats of weights: recognition by tensor names, and the card fields that tensors imply."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from purify_audit.core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""Tensors by their names in a file."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A partial card, derived from names and shapes of tensors.

    Attributes:
        fields: of the card; `network` is a mapping too.
        tensors: the file's name of each of the network's tensors.
        conventions: fields, by dotted name, that tensors do not determine and that all published
            files of the layout share; they are recorded, and the user can override them.
    """

    fields: dict[str, Any]
    tensors: dict[str, str]
    conventions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """A layout of tensors shared by many files.

    Attributes:
        name: in reports and in the table of presets.
        title: in sentences: "... is <title>".
        matches: whether tensors have this layout and no other.
        draft: the partial card; raises CheckpointError if tensors contradict the layout.
    """

    name: str
    title: str
    matches: Callable[[State], bool]
    draft: Callable[[State], Draft]


def shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor.

    Raises:
        CheckpointError: it is missing, or has another number of axes.
    """
    if name not in state:
        raise CheckpointError(f"tensor '{name}' is missing from this layout")
    actual = tuple(state[name].shape)
    if len(actual) != axes:
        raise CheckpointError(f"tensor '{name}' of shape {list(actual)} should have {axes} axes")
    return actual


def whole(state: State) -> dict[str, str]:
    """All tensors under their own names."""
    return {name: name for name in state}


def refuse_class_conditional(state: State, name: str) -> None:
    """Raise CheckpointError if there is a tensor of class embeddings."""
    if name in state:
        label = name.removeprefix("model.")
        raise CheckpointError(
            f"the network is class-conditional ({label}), and a purifier has no class labels"
        )


def learned_variance(inputs: int, outputs: int, hint: str = "") -> bool:
    """Whether a network that predicts noise also predicts its variance, by its channels.

    Raises:
        CheckpointError: it has neither as many output channels as inputs, nor twice as many.
    """
    if outputs not in (inputs, 2 * inputs):
        raise CheckpointError(f"{inputs} input channels do not fit {outputs} output channels{hint}")
    return outputs == 2 * inputs


def indices(state: State, prefix: str) -> list[int]:
    """The numbers N for which a name begins with `prefix` + N + '.', sorted."""
    numbers = set()
    for name in state:
        head, _, _ = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and head.isdecimal() and len(head) < 6:
            numbers.add(int(head))
    return sorted(numbers)


def ratio(size: int, unit: int, what: str = "width of a level") -> int:
    """Size / unit, if that is a positive integer.

    Raises:
        CheckpointError: it is not.
    """
    if unit < 1 or size < 1 or size % unit:
        raise CheckpointError(f"{what} of {size} is not a multiple of {unit}")
    return size // unit
