"""Conversion of stored images to float32 [n, c, h, w] in [0, 1], on demand."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from purify_audit.core.errors import ImageError
from purify_audit.images.limits import check_memory
from purify_audit.images.stored import InMemory, Rows, Stored

_CHUNK_BYTES = 2 * 2**20  # of float32 at a time, in a pass over all images


@dataclass(frozen=True, slots=True)
class Pixels:
    """Checked images in a given order, converted on demand.

    Attributes:
        stored: a superset of the images.
        channels: axis of the channels in `stored`, 1 or 3; none if images are [h, w].
        rows: indices into `stored`, in order.
    """

    stored: Stored
    channels: int | None
    rows: Rows

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[n, c, h, w]."""
        size = list(self.stored.shape[1:])
        channels = 1 if self.channels is None else size.pop(self.channels - 1)
        return len(self.rows), channels, size[0], size[1]

    def select(self, places: Rows) -> "Pixels":
        """A subset in the given order; nothing is read.

        Raises:
            IndexError: an index is out of range.
        """
        return replace(self, rows=self.rows[places])

    def read(self) -> NDArray[np.float32]:
        """All images, float32 [n, c, h, w] in [0, 1], C-contiguous and read-only.

        Raises:
            ImageError: the file cannot be read, or has changed.
        """
        return self._converted(self.rows)

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """The images in parts of a few MiB, none of them empty; see `read`."""
        size = max(1, _CHUNK_BYTES // (4 * prod(self.shape[1:])))
        for first in range(0, len(self.rows), size):
            yield self._converted(self.rows[first : first + size])

    def _converted(self, rows: Rows) -> NDArray[np.float32]:
        raw = self.stored.read(rows)
        if self.channels is None:
            raw = raw[:, None]
        elif self.channels == 3:
            raw = raw.transpose(0, 3, 1, 2)
        if raw.dtype == np.uint8:
            pixels = np.true_divide(raw, np.float32(255), dtype=np.float32, order="C")
        else:
            with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, rejected
                pixels = np.asarray(raw, np.float32, order="C")
        pixels.setflags(write=False)
        return cast(NDArray[np.float32], pixels)


def from_stored(stored: Stored, source: str) -> Pixels:
    """Check images of any layout and number type.

    Raises:
        ImageError: neither uint8 nor floats in [0, 1]; a layout other than [n, h, w],
            [n, h, w, c] and [n, c, h, w], or ambiguous between them; or no images.
    """
    if stored.dtype != np.uint8 and stored.dtype.kind != "f":
        raise ImageError(
            f"{source}: pixels are of type {stored.dtype}; save them as uint8 (0 to 255) or as"
            " floats in [0, 1]"
        )
    return _checked(stored, _axis_of_channels(list(stored.shape), source), source)


def from_array(array: Any, source: str) -> Pixels:
    """Check floats [n, c, h, w]; they are copied unless they are read-only float32.

    Raises:
        ImageError: another kind of array, or values outside [0, 1].
    """
    array = np.asarray(array)
    if array.dtype.kind != "f" or array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ImageError(
            f"{source}: pixels are {array.dtype} {list(array.shape)}, not floats [n, c, h, w]"
            " with 1 or 3 channels"
        )
    if array.dtype != np.float32 or not array.flags.c_contiguous or array.flags.writeable:
        with np.errstate(over="ignore"):
            array = np.array(array, np.float32, order="C")
        array.setflags(write=False)
    return _checked(InMemory(array), 1, source)


def _axis_of_channels(shape: list[int], source: str) -> int | None:
    """1 or 3; none for grey images [n, h, w]."""
    if len(shape) == 3:
        if shape[0] == 3 or shape[2] in (1, 3):
            raise ImageError(
                f"{source}: shape {shape} is ambiguous: one image, or several grey ones; use"
                " four axes, [n, c, h, w] or [n, h, w, c]"
            )
        return None
    if len(shape) != 4:
        raise ImageError(
            f"{source}: pixels have shape {shape}; expected [n, h, w], [n, h, w, c] or [n, c, h, w]"
        )
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first and last:
        raise ImageError(
            f"{source}: shape {shape} is ambiguous: both axis 1 and axis 3 could be the channels"
        )
    if not first and not last:
        raise ImageError(
            f"{source}: shape {shape} has neither 1 nor 3 channels on axis 1 or axis 3; images"
            " must be grey or RGB"
        )
    return 1 if first else 3


def _checked(stored: Stored, channels: int | None, source: str) -> Pixels:
    n, empty = stored.shape[0], Pixels(stored, channels, np.arange(0))
    if not prod((n, *empty.shape[1:])):
        raise ImageError(f"{source}: shape {[n, *empty.shape[1:]]} contains no images")
    check_memory(source, (n,), 8)  # of the ids
    pixels = replace(empty, rows=np.arange(n))
    if stored.dtype == np.uint8:
        return pixels  # in [0, 1] by construction
    lowest, highest, first = np.inf, -np.inf, 0
    for part in pixels.chunks():
        low, high = float(part.min()), float(part.max())
        if not np.isfinite([low, high]).all():
            row = first + int(np.flatnonzero(~np.isfinite(part).all(axis=(1, 2, 3)))[0])
            raise ImageError(f"{source}: pixels of row {row} are NaN or infinite")
        lowest, highest, first = min(lowest, low), max(highest, high), first + len(part)
    if lowest < 0 or highest > 1:
        remedy = _remedy(lowest, highest)
        raise ImageError(f"{source}: pixels are in [{lowest:.9g}, {highest:.9g}]; {remedy}")
    return pixels


def _remedy(low: float, high: float) -> str:
    if low < 0:
        standard = low >= -1 and high <= 1
        return "map from [-1, 1] to [0, 1]" if standard else "undo their normalisation"
    return "divide by 255" if high <= 255 else "rescale them to [0, 1]"
