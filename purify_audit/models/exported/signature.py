"""What a graph takes and gives, as its file says."""

from dataclasses import dataclass

from purify_audit.core.records import printable


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows a graph takes in one call: from `least` to `most`, or any number above."""

    least: int = 1
    most: int | None = None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        name: in the graph.
        dtype: by torch's name, such as `float32`; `other` for what no purifier takes.
        shape: the length of each axis, none where it is free; none where even the axes are.
        rows: the lengths that the first axis may have.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    rows: Rows = Rows()

    def __str__(self) -> str:
        """As messages tell it: `x: float32 [n, 1, 8, 8]`."""
        if self.shape is None:
            return printable(f"{self.name}: {self.dtype}")
        axes = ", ".join("n" if size is None else str(size) for size in self.shape)
        return printable(f"{self.name}: {self.dtype} [{axes}]")


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors of a call, in order.

    Attributes:
        inputs: what is given; weights are not among them.
        output: what comes back.
        random: names of operators in it that draw random numbers; none where that is not known.
    """

    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    random: tuple[str, ...] | None = ()
