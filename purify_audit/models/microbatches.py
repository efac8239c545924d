"""Micro-batches of a fixed size.

Kernels are chosen by batch size, so with a fixed size (the last micro-batch is padded) the bits of
a row do not depend on which other rows are computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one call, by index.

    Attributes:
        rows: with padding: those after the first `count` are copies of the first.
        count: rows without padding.
    """

    rows: list[int]
    count: int


def microbatches(n: int, size: int, least: int | None = None) -> Iterator[MicroBatch]:
    """Rows 0 … n − 1 in micro-batches.

    Args:
        n: rows.
        size: of a micro-batch, without padding.
        least: smaller micro-batches are padded to this size; none: to `size`.
    """
    for first in range(0, n, size):
        rows = list(range(first, min(first + size, n)))
        padding = (size if least is None else least) - len(rows)
        yield MicroBatch(rows + padding * [first], len(rows))
