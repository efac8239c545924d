"""Images in memory, or read from their file on demand.

Files are read row by row and not mapped into memory, because the resident pages of a mapped file
count as memory of the process.
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
"""Indices of images, each in [0, n)."""


class Stored(Protocol):
    """Images in the layout and number type of their file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, ...]."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The number type."""
        ...

    def read(self, rows: Rows) -> NDArray[Any]:
        """The images of these rows, [len(rows), ...]; read-only.

        Raises:
            ImageError: the file cannot be read, or changed since it was first opened.
        """
        ...


class RawImages(NamedTuple):
    """The contents of a source: images in any layout and number type, optional labels and ids."""

    pixels: Stored
    labels: NDArray[Any] | None = None
    ids: NDArray[Any] | None = None


class Stamp(NamedTuple):
    """Size and time of modification, by which changes of a file are detected."""

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
    """The error for a file that changed since it was first opened."""
    return ImageError(f"{path}: changed while it was being read; start again")


def is_everything(rows: Rows, n: int) -> bool:
    """Whether these are all n rows in order."""
    return len(rows) == n and bool((rows == np.arange(n)).all())


@dataclass(frozen=True, slots=True)
class InMemory:
    """Images in memory.

    Attributes:
        array: [n, ...].
    """

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, ...]."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The number type."""
        return self.array.dtype

    def read(self, rows: Rows) -> NDArray[Any]:
        """A copy of these rows; of all rows the array itself."""
        return self.array if is_everything(rows, len(self.array)) else self.array[rows]


@dataclass(frozen=True, slots=True)
class InFile:
    """Images at equal distances in a file.

    Attributes:
        path: the file.
        stamp: of the file when its header was read.
        start: offset of the first image, in bytes.
        shape: [n, ...].
        dtype: number type; the order is C.
        gap: bytes between the end of an image and the next.
    """

    path: Path
    stamp: Stamp
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    gap: int = 0

    def read(self, rows: Rows) -> NDArray[Any]:
        """These rows, read from the file."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        length = prod(self.shape[1:]) * self.dtype.itemsize
        complete, buffers = True, out.view(np.uint8).reshape(len(rows), length)
        with reading(self.path), self.path.open("rb") as file:
            for buffer, row in zip(buffers, rows.tolist(), strict=True):
                file.seek(self.start + row * (length + self.gap))
                complete = complete and file.readinto(buffer.data) == length
            if not complete or stamp(file.fileno()) != self.stamp:
                raise changed(self.path)
        return out


@dataclass(frozen=True, slots=True)
class Joined:
    """Images of several sources, concatenated.

    Attributes:
        parts: of equal number type and image shape.
    """

    parts: tuple[Stored, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, ...], with n the total of all parts."""
        return sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The common number type."""
        return self.parts[0].dtype

    def read(self, rows: Rows) -> NDArray[Any]:
        """These rows, each from its part."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        first = 0
        for part in self.parts:
            inside = (rows >= first) & (rows < first + part.shape[0])
            if inside.any():
                out[inside] = part.read(rows[inside] - first)
            first += part.shape[0]
        return out
