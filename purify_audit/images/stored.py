"""Images before anybody asks for them: numbers in memory, or still in the file they came in.

A file is read by the row and never mapped into memory: pages of a mapped file count as memory of
the process for as long as the system likes.
"""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from purify_audit.core.errors import ImageError
from purify_audit.images.limits import reading

Rows = NDArray[np.int64]
"""Places of images, each in [0, n)."""


class Stored(Protocol):
    """Images in the layout and the number type that their file has."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, ...], whichever axes follow."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers."""
        ...

    def read(self, rows: Rows) -> NDArray[Any]:
        """The images of these rows, [len(rows), ...], not to be written to.

        Raises:
            ImageError: the file cannot be read, or is another than when it was opened first.
        """
        ...


class RawImages(NamedTuple):
    """What a source holds: images in any layout and number type, perhaps labels, perhaps ids."""

    pixels: Stored
    labels: NDArray[Any] | None = None
    ids: NDArray[Any] | None = None


class Stamp(NamedTuple):
    """What shows that a file is still the same."""

    size: int
    modified_ns: int


def stamp(file: int | str) -> Stamp:
    """The stamp of a path or an open file.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(file)
    return Stamp(status.st_size, status.st_mtime_ns)


def changed(path: str | Path) -> ImageError:
    """The error for a file that is another than when it was opened first."""
    return ImageError(f"{path}: changed while it was being read; start again")


def is_everything(rows: Rows, n: int) -> bool:
    """Whether these are all n rows in their order."""
    return len(rows) == n and bool((rows == np.arange(n)).all())


@dataclass(frozen=True, slots=True)
class InMemory:
    """Images that are in memory already.

    Attributes:
        array: [n, ...].
    """

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the array."""
        return self.array.dtype

    def read(self, rows: Rows) -> NDArray[Any]:
        """A copy of these rows; of all rows the array itself."""
        return self.array if is_everything(rows, len(self.array)) else self.array[rows]


@dataclass(frozen=True, slots=True)
class InFile:
    """Images that follow each other in a file, as many bytes apart.

    Attributes:
        path: the file.
        stamp: of the file, when its header was read.
        start: the first image's first byte.
        shape: [n, ...].
        dtype: of the numbers, in C order.
        gap: bytes between the end of an image and the next.
    """

    path: Path
    stamp: Stamp
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    gap: int = 0

    def read(self, rows: Rows) -> NDArray[Any]:
        """These rows, read now."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        length = prod(self.shape[1:]) * self.dtype.itemsize
        whole, places = True, out.view(np.uint8).reshape(len(rows), length)
        with reading(self.path), self.path.open("rb") as file:
            for place, row in zip(places, rows.tolist(), strict=True):
                file.seek(self.start + row * (length + self.gap))
                whole = whole and file.readinto(place.data) == length
            if not whole or stamp(file.fileno()) != self.stamp:
                raise changed(self.path)
        return out


@dataclass(frozen=True, slots=True)
class Joined:
    """Images of several sources, one source after the other.

    Attributes:
        parts: of one number type, and of one shape but for the number of images.
    """

    parts: tuple[Stored, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of all parts together."""
        return sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of every part."""
        return self.parts[0].dtype

    def read(self, rows: Rows) -> NDArray[Any]:
        """These rows, each from its part."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        first = 0
        for part in self.parts:
            here = (rows >= first) & (rows < first + part.shape[0])
            if here.any():
                out[here] = part.read(rows[here] - first)
            first += part.shape[0]
        return out
