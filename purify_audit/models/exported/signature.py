"""Signatures of exported graphs: input and output tensors as declared in the file."""

from dataclasses import dataclass

from purify_audit.core.records import printable


@dataclass(frozen=True, slots=True)
class Rows:
    """Batch sizes that a graph accepts: `least` to `most`, or unbounded if `most` is none."""

    least: int = 1
    most: int | None = None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        name: in the graph.
        dtype: by torch's name, such as `float32`; `other` for types that no purifier takes.
        shape: the length of each axis, none where it varies; none where the rank is unknown.
        rows: the lengths allowed for the first axis.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    rows: Rows = Rows()

    def __str__(self) -> str:
        """As messages show it: `x: float32 [n, 1, 8, 8]`."""
        if self.shape is None:
            return printable(f"{self.name}: {self.dtype}")
        axes = ", ".join("n" if size is None else str(size) for size in self.shape)
        return printable(f"{self.name}: {self.dtype} [{axes}]")


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs, in order, and output of a graph.

    Attributes:
        inputs: without the weights.
        output: its one output.
        random: names of its operators that draw random numbers; none if unknown.
    """

    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    random: tuple[str, ...] | None = ()
