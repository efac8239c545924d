"""Images to audit with: pixels in [0, 1], labels, and ids that never change.

An image's id is its address for randomness (`docs/noise.md`): whichever images are loaded beside
it, and in whatever order, the image with id 17 meets the same noise.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from purify_audit.errors import ImageError
from purify_audit.image_formats import read_arrays, read_source, reading, split_source

_DIGITS = Path(__file__).with_name("data") / "digits.npz"
_DIGITS_WHITE = 16  # the value of the brightest pixel
_HELD_OUT = 4  # every fourth digit is kept from training


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images, checked and immutable: arrays are copied unless they are already read-only.

    Attributes:
        pixels: float32 [n, c, h, w] in [0, 1], c either 1 or 3, C-contiguous.
        labels: int64 [n] in [0, 2**32), or none.
        ids: int64 [n] in [0, 2**32), each once: addresses for randomness.
        source: what the user called these images.

    Raises:
        ImageError: no images, or pixels, labels or ids that are not as above. Floats of other
            sizes and integers of other sizes are converted.
    """

    pixels: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.int64] | None = field(repr=False)
    ids: NDArray[np.int64] = field(repr=False)
    source: str

    def __post_init__(self) -> None:
        """Check and freeze the arrays."""
        pixels = _checked_pixels(self.pixels, self.source)
        ids = _checked_integers(self.ids, len(pixels), "id", self.source)
        distinct, counts = np.unique(ids, return_counts=True)
        if len(distinct) < len(ids):
            twice = int(distinct[counts > 1][0])
            rows = np.flatnonzero(ids == twice)[:2].tolist()
            raise ImageError(f"{self.source}: id {twice} is given to rows {rows[0]} and {rows[1]}")
        object.__setattr__(self, "pixels", pixels)
        object.__setattr__(self, "ids", ids)
        if self.labels is not None:
            labels = _checked_integers(self.labels, len(pixels), "label", self.source)
            object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.ids)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over the shape, the ids, the labels and the pixels, in order.

        Hashed are the text `purify-audit images 1 [n, c, h, w] labelled` (or `unlabelled`), then
        the arrays, little-endian; what the source is called does not count.
        """
        kind = "unlabelled" if self.labels is None else "labelled"
        shape = list(self.pixels.shape)
        total = hashlib.sha256(f"purify-audit images 1 {shape} {kind}".encode())
        total.update(self.ids.astype("<i8", copy=False).data)
        if self.labels is not None:
            total.update(self.labels.astype("<i8", copy=False).data)
        total.update(self.pixels.astype("<f4", copy=False).reshape(-1).data)
        return total.hexdigest()

    @property
    def image_digests(self) -> tuple[str, ...]:
        """Of each image, the first 16 digits of a SHA-256 over its pixels and label."""
        labels = None if self.labels is None else self.labels.astype("<i8", copy=False)
        found = []
        for n, pixels in enumerate(self.pixels.astype("<f4", copy=False)):
            one = hashlib.sha256(b"" if labels is None else labels[n].tobytes())
            one.update(np.ascontiguousarray(pixels).data)
            found.append(one.hexdigest()[:16])
        return tuple(found)

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> "ImageSet":
        """The images of these rows, in the order given, with their ids.

        Raises:
            ImageError: no rows, or a row twice.
            IndexError: there is no such row.
        """
        index = np.asarray(rows, np.int64)
        labels = None if self.labels is None else _sealed(self.labels[index])
        pixels, ids = _sealed(self.pixels[index]), _sealed(self.ids[index])
        return ImageSet(pixels, labels, ids, self.source)


def load_images(source: str) -> ImageSet:
    """Images by name or path. Where a source gives no ids, they count from 0 in its own order.

    Args:
        source: `digits` (bundled: the 450 held out from training), `digits:train` (the other
            1347) or `digits:all`; a `.npy`, `.npz` or `.safetensors` file (`read_arrays`; uint8
            is divided by 255, floats must lie in [0, 1]; [n, h, w], [n, h, w, c] or
            [n, c, h, w]); a CIFAR-10 folder in the Python or the binary version (the test batch,
            or with `:train` after it the five training batches), a CIFAR-100 folder (likewise;
            with `:coarse` its 20 coarse labels), or a `.bin` file of either; an idx file such as
            MNIST's (`read_idx`) or a folder of them; a Parquet file of the Hugging Face Hub or a
            folder of them (`read_parquet`); or a folder of PNG or JPEG images (`read_folder`).
            `docs/data.md` lists what may follow a path (`split_source`).

    Raises:
        ImageError: there is no such source, or it is not as described.
    """
    with reading(source):
        if source == "digits" or source.startswith("digits:"):
            return _digits(source)
        raw = read_source(*split_source(source))
    pixels = _channels_first(raw.pixels, source)
    if not pixels.size:
        raise ImageError(f"{source}: shape {list(pixels.shape)} holds no images")
    if pixels.dtype == np.uint8:
        pixels = np.true_divide(pixels, np.float32(255), dtype=np.float32)
    ids = np.arange(len(pixels)) if raw.ids is None else raw.ids
    return ImageSet(_sealed(pixels), raw.labels, ids, source)


def restrict(images: ImageSet, first: int, last: int) -> ImageSet:
    """The images with ids in [first, last), in their order.

    Raises:
        ImageError: there are none.
    """
    rows = np.flatnonzero((images.ids >= first) & (images.ids < last))
    if not len(rows):
        raise ImageError(
            f"{images.source}: no id lies in [{first}, {last}); ids here go from"
            f" {images.ids.min()} to {images.ids.max()}"
        )
    return images.select(rows)


def choose(images: ImageSet, n: int, seed: int) -> ImageSet:
    """A seeded choice of n images in which every class has an equal share, as far as it reaches.

    Within a class, images are ordered by their rank, a hash of (seed, id) alone. Classes then take
    turns: first the first image of each class, then the second of each; within a turn images are
    ordered by rank, which decides who gets the places that are left over. So the first m of n
    chosen images are exactly those chosen for n = m, and as evenly spread. Without labels the
    order is that of the ranks.

    Raises:
        ImageError: n is less than 1, or more than there are.
    """
    if not 1 <= n <= len(images):
        raise ImageError(
            f"{images.source}: {n} images were asked for; choose from 1 to the {len(images)} here"
        )
    ranks = [_rank(seed, int(number)) for number in images.ids]
    labels = [0] * len(images) if images.labels is None else images.labels.tolist()
    taken: dict[int, int] = {}
    places = []
    for row in sorted(range(len(images)), key=ranks.__getitem__):
        turn = taken[labels[row]] = taken.get(labels[row], -1) + 1
        places.append((turn, ranks[row], row))
    return images.select([row for _, _, row in sorted(places)[:n]])


def _rank(seed: int, number: int) -> tuple[bytes, int]:
    """A hash of seed and image id, with the id to settle ties."""
    address = f"purify-audit choice {seed} {number}".encode()
    return hashlib.blake2b(address, digest_size=8).digest(), number


def _digits(source: str) -> ImageSet:
    raw = read_arrays(_DIGITS)
    ids = np.arange(len(raw.pixels))
    held_out = ids % _HELD_OUT == 0
    parts = {"digits": held_out, "digits:train": ~held_out, "digits:all": ids >= 0}
    if source not in parts:
        raise ImageError(f"{source}: there is no such part; give {', '.join(parts)}")
    pixels = np.true_divide(raw.pixels[:, None], np.float32(_DIGITS_WHITE), dtype=np.float32)
    return ImageSet(pixels, raw.labels, ids, source).select(np.flatnonzero(parts[source]))


def _channels_first(pixels: NDArray[Any], source: str) -> NDArray[Any]:
    """[n, c, h, w] from [n, h, w], [n, h, w, c] or [n, c, h, w]."""
    shape = list(pixels.shape)
    if pixels.dtype != np.uint8 and pixels.dtype.kind != "f":
        raise ImageError(
            f"{source}: pixels are of type {pixels.dtype}; save them as uint8 (0 to 255) or as"
            " floats in [0, 1]"
        )
    if len(shape) == 3:
        if shape[0] == 3 or shape[2] in (1, 3):
            raise ImageError(
                f"{source}: shape {shape} may be one image or a row of grey ones; write it with"
                " four axes, [n, c, h, w] or [n, h, w, c]"
            )
        return pixels[:, None]
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
    return np.ascontiguousarray(pixels if first else pixels.transpose(0, 3, 1, 2))


def _sealed(array: NDArray[Any]) -> NDArray[Any]:
    """An array that nobody else holds, made read-only in place."""
    array.setflags(write=False)
    return array


def _frozen(array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """The same numbers C-contiguous and read-only; a copy unless they are so already."""
    if array.dtype == dtype and array.flags.c_contiguous and not array.flags.writeable:
        return array
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite: refused later
        return _sealed(np.array(array, dtype, order="C"))


def _checked_pixels(pixels: Any, source: str) -> NDArray[np.float32]:
    array = np.asarray(pixels)
    if array.dtype.kind != "f" or array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ImageError(
            f"{source}: pixels are {array.dtype} {list(array.shape)}, not floats [n, c, h, w]"
            " with 1 or 3 channels"
        )
    if not array.size:
        raise ImageError(f"{source}: shape {list(array.shape)} holds no images")
    array = _frozen(array, np.float32)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=(1, 2, 3)))[0])
        raise ImageError(f"{source}: pixels of row {row} are NaN or infinite")
    if low < 0 or high > 1:
        raise ImageError(f"{source}: pixels lie in [{low:.9g}, {high:.9g}]; {_remedy(low, high)}")
    return array


def _remedy(low: float, high: float) -> str:
    if low < 0:
        standard = low >= -1 and high <= 1
        return "map from [-1, 1] to [0, 1]" if standard else "undo their normalisation"
    return "divide by 255" if high <= 255 else "rescale them to [0, 1]"


def _checked_integers(values: Any, n: int, what: str, source: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ImageError(f"{source}: {what}s are of type {array.dtype}, not whole numbers")
    if array.shape != (n,):
        raise ImageError(
            f"{source}: {what}s have shape {list(array.shape)} but there are {n} images; give one"
            f" {what} for each image"
        )
    wrong = np.flatnonzero((array < 0) | (array > 2**32 - 1))
    if len(wrong):
        row = int(wrong[0])
        raise ImageError(f"{source}: {what} {array[row]} of row {row} is not in [0, 2**32)")
    return _frozen(array, np.int64)
