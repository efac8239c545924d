"""From images as they are stored to float32 [n, c, h, w] in [0, 1], as many as somebody needs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from purify_audit.core.errors import ImageError
from purify_audit.images.limits import check_memory
from purify_audit.images.stored import InMemory, Rows, Stored

_CHUNK_BYTES = 2 * 2**20  # of float32 at a time, when all images are gone through


@dataclass(frozen=True, slots=True)
class Pixels:
    """Checked images in an order, converted when they are asked for and not before.

    Attributes:
        stored: the images, and perhaps others.
        channels: their axis in `stored`, 1 or 3; none where images are [h, w].
        rows: which of the stored images, in order.
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
        """Those at these places, in the order given; nothing is read.

        Raises:
            IndexError: there is no such place.
        """
        return replace(self, rows=self.rows[places])

    def read(self) -> NDArray[np.float32]:
        """All of them, float32 [n, c, h, w] in [0, 1], C-contiguous and read-only.

        Raises:
            ImageError: they cannot be read, or not any more.
        """
        return self._converted(self.rows)

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """The same in parts of a few MiB, none of them empty.

        Raises:
            ImageError: see `read`.
        """
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
            made: NDArray[np.float32] = np.true_divide(
                raw, np.float32(255), dtype=np.float32, order="C"
            )
        else:
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite: refused
                made = np.asarray(raw, np.float32, order="C")
        made.setflags(write=False)
        return made


def from_stored(stored: Stored, source: str) -> Pixels:
    """Images of any layout and number type, checked.

    Raises:
        ImageError: neither uint8 nor floats in [0, 1], a layout that is none of [n, h, w],
            [n, h, w, c] and [n, c, h, w] or might be two of them, or no images.
    """
    if stored.dtype != np.uint8 and stored.dtype.kind != "f":
        raise ImageError(
            f"{source}: pixels are of type {stored.dtype}; save them as uint8 (0 to 255) or as"
            " floats in [0, 1]"
        )
    return _checked(stored, _axis_of_channels(list(stored.shape), source), source)


def from_array(array: Any, source: str) -> Pixels:
    """Floats [n, c, h, w], checked; copied unless they are read-only float32 already.

    Raises:
        ImageError: not such an array, or not in [0, 1].
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
    """1 or 3; none for grey images without such an axis."""
    if len(shape) == 3:
        if shape[0] == 3 or shape[2] in (1, 3):
            raise ImageError(
                f"{source}: shape {shape} may be one image or a row of grey ones; write it with"
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
            f"{source}: shape {shape} does not tell which axis is the channels: axis 1 and axis 3"
            " both could be"
        )
    if not first and not last:
        raise ImageError(
            f"{source}: shape {shape} has neither 1 nor 3 channels on axis 1 or axis 3; images"
            " must be grey or RGB"
        )
    return 1 if first else 3


def _checked(stored: Stored, channels: int | None, source: str) -> Pixels:
    n, none = stored.shape[0], Pixels(stored, channels, np.arange(0))
    if not prod((n, *none.shape[1:])):
        raise ImageError(f"{source}: shape {[n, *none.shape[1:]]} holds no images")
    check_memory(source, (n,), 8)  # of the ids
    pixels = replace(none, rows=np.arange(n))
    if stored.dtype == np.uint8:
        return pixels  # whatever they are, they lie in [0, 1]
    lowest, highest, first = np.inf, -np.inf, 0
    for part in pixels.chunks():
        low, high = float(part.min()), float(part.max())
        if not np.isfinite([low, high]).all():
            row = first + int(np.flatnonzero(~np.isfinite(part).all(axis=(1, 2, 3)))[0])
            raise ImageError(f"{source}: pixels of row {row} are NaN or infinite")
        lowest, highest, first = min(lowest, low), max(highest, high), first + len(part)
    if lowest < 0 or highest > 1:
        remedy = _remedy(lowest, highest)
        raise ImageError(f"{source}: pixels lie in [{lowest:.9g}, {highest:.9g}]; {remedy}")
    return pixels


def _remedy(low: float, high: float) -> str:
    if low < 0:
        standard = low >= -1 and high <= 1
        return "map from [-1, 1] to [0, 1]" if standard else "undo their normalisation"
    return "divide by 255" if high <= 255 else "rescale them to [0, 1]"
