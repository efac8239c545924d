"""What a format is: how its keys are recognised, and what they say of the network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from purify_audit.core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""Tensors by name, as a file has them."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A card as far as names and shapes of tensors write it.

    Attributes:
        fields: of the card; `network` is a mapping too.
        tensors: the file's name of each of the network's tensors.
        conventions: fields, by dotted name, that no tensor tells and that published files of the
            layout have alike; they are recorded, and the user may say otherwise.
    """

    fields: dict[str, Any]
    tensors: dict[str, str] = field(default_factory=dict)
    conventions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """A layout of tensors that many files share.

    Attributes:
        name: in reports and in the table of presets.
        title: in sentences: "... is <title>".
        marks: names that together tell this layout from all others.
        draft: what the tensors say; raises CheckpointError where they contradict the layout.
    """

    name: str
    title: str
    marks: Callable[[State], bool]
    draft: Callable[[State], Draft]


def shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that the layout has.

    Raises:
        CheckpointError: it is not there, or has another number of axes.
    """
    if name not in state:
        raise CheckpointError(f"tensor '{name}' is missing from this layout")
    found = tuple(state[name].shape)
    if len(found) != axes:
        raise CheckpointError(f"tensor '{name}' of shape {list(found)} should have {axes} axes")
    return found


def indices(state: State, prefix: str) -> list[int]:
    """The numbers N for which a name begins with `prefix` + N + '.', in order."""
    found = set()
    for name in state:
        head, _, _ = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and head.isdecimal() and len(head) < 6:
            found.add(int(head))
    return sorted(found)


def ratio(part: int, whole: int, what: str) -> int:
    """Part / whole, if it is a whole number above 0.

    Raises:
        CheckpointError: it is not.
    """
    if whole < 1 or part < 1 or part % whole:
        raise CheckpointError(f"{what} of {part} is no multiple of {whole}")
    return part // whole
