"""Sets of images for an audit: pixels in [0, 1], labels, and permanent ids.

The id of an image is its address for randomness (`docs/noise.md`): image 17 receives the same
noise whichever other images are loaded, in whatever order.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from purify_audit.core.errors import ImageError
from purify_audit.images.arrays import read_arrays
from purify_audit.images.limits import check_memory, reading
from purify_audit.images.options import split_source
from purify_audit.images.pixels import Pixels, from_array, from_stored
from purify_audit.images.sources import read_source
from purify_audit.images.stored import is_everything

_DIGITS = Path(__file__).with_name("digits") / "digits.npz"
_DIGITS_WHITE = 16  # value of the brightest pixel
_HELD_OUT = 4  # every fourth digit is not used for training


@dataclass(frozen=True, eq=False, init=False)
class ImageSet:
    """Checked, immutable images. Pixels may be on disk until `pixels` is read.

    Attributes:
        labels: int64 [n] in [0, 2**32), or none.
        ids: int64 [n] in [0, 2**32), unique: addresses for randomness.
        source: the name that the user gave.
    """

    labels: NDArray[np.int64] | None = field(repr=False)
    ids: NDArray[np.int64] = field(repr=False)
    source: str
    _pixels: Pixels = field(repr=False)

    def __init__(
        self, pixels: NDArray[Any] | Pixels, labels: Any | None, ids: Any, source: str
    ) -> None:
        """Check the arrays and make them immutable; writable arrays are copied.

        Args:
            pixels: floats [n, c, h, w] in [0, 1], c either 1 or 3; or checked images.
            labels: integers [n] in [0, 2**32), or none.
            ids: integers [n] in [0, 2**32), unique.
            source: name for messages.

        Raises:
            ImageError: no images, or other pixels, labels or ids than above. Floats and integers
                of other widths are converted.
        """
        checked = pixels if isinstance(pixels, Pixels) else from_array(pixels, source)
        ids = _checked_integers(ids, checked.shape[0], "id", source)
        distinct, counts = np.unique(ids, return_counts=True)
        if len(distinct) < len(ids):
            repeated = int(distinct[counts > 1][0])
            rows = np.flatnonzero(ids == repeated)[:2].tolist()
            raise ImageError(f"{source}: rows {rows[0]} and {rows[1]} have the same id {repeated}")
        if labels is not None:
            labels = _checked_integers(labels, checked.shape[0], "label", source)
        for name, value in {
            "labels": labels,
            "ids": ids,
            "source": source,
            "_pixels": checked,
        }.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.ids)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self._pixels.shape[1:]

    @property
    def image_bytes(self) -> int:
        """Bytes of the pixels of one image, as float32."""
        return 4 * prod(self.image_shape)

    @cached_property
    def pixels(self) -> NDArray[np.float32]:
        """Float32 [n, c, h, w] in [0, 1], C-contiguous and read-only; kept in memory once read.

        Of a large set, `select` a subset first.

        Raises:
            ImageError: they would take more than 16 GiB, or their file cannot be read or has
                changed since it was first opened.
        """
        check_memory(self.source, self._pixels.shape, 4)
        return self._pixels.read()

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal of the shape, the ids, the labels and the pixels, in this order.

        The input is the text `purify-audit images 1 [n, c, h, w] labelled` (or `unlabelled`), then
        the arrays, little-endian; the name of the source is not included.

        Raises:
            ImageError: see `pixels`; or a picture is damaged after its header.
        """
        return self._digests[0]

    @property
    def image_digests(self) -> tuple[str, ...]:
        """The first 16 digits of the SHA-256 of each image's pixels and label.

        Raises:
            ImageError: see `digest`.
        """
        return self._digests[1]

    @cached_property
    def _digests(self) -> tuple[str, tuple[str, ...]]:
        """The digest of all images and that of each, in one pass."""
        kind = "unlabelled" if self.labels is None else "labelled"
        shape = list(self._pixels.shape)
        total = hashlib.sha256(f"purify-audit images 1 {shape} {kind}".encode())
        total.update(self.ids.astype("<i8", copy=False).data)
        labels = None if self.labels is None else self.labels.astype("<i8", copy=False)
        if labels is not None:
            total.update(labels.data)
        digests = list[str]()
        for chunk in self._pixels.chunks():
            for pixels in chunk.astype("<f4", copy=False):
                one = hashlib.sha256(b"" if labels is None else labels[len(digests)].tobytes())
                one.update(pixels.data)
                total.update(pixels.data)
                digests.append(one.hexdigest()[:16])
        return total.hexdigest(), tuple(digests)

    def check(self) -> None:
        """Read every image once, so that a damaged one is reported before the run begins.

        Raises:
            ImageError: see `digest`.
        """
        self._digests  # noqa: B018 - reads all images, and the report needs it

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> "ImageSet":
        """A subset in the given order, with its ids. No pixels are read.

        Raises:
            ImageError: no rows, or a repeated row.
            IndexError: a row is out of range.
        """
        index = np.asarray(rows, np.int64)
        if is_everything(index, len(self)):
            return self
        if not len(index):
            raise ImageError(f"{self.source}: shape {[0, *self.image_shape]} contains no images")
        labels = None if self.labels is None else _sealed(self.labels[index])
        return ImageSet(self._pixels.select(index), labels, _sealed(self.ids[index]), self.source)


def load_images(source: str) -> ImageSet:
    """Load images by name or path. Without ids in the source, they are numbered from 0.

    Args:
        source: `digits` (bundled: the 450 held out from training), `digits:train` (the other
            1347) or `digits:all`; a `.npy`, `.npz` or `.safetensors` file (`read_arrays`; uint8
            is divided by 255, floats must be in [0, 1]; [n, h, w], [n, h, w, c] or
            [n, c, h, w]); a folder of CIFAR-10 or CIFAR-100 in the Python or the binary version
            (the test set; `:train` for the training set, `:coarse` for 20 coarse classes), or a
            `.bin` file of either; an idx file such as MNIST's (`read_idx`) or a folder of them; a
            Parquet file of the Hugging Face Hub or a folder of them (`read_parquet`); or a folder
            of PNG or JPEG images (`read_folder`). `docs/data.md` lists the options after a path.

    Raises:
        ImageError: there is no such source, or it is not as described.
    """
    with reading(source):
        if source == "digits" or source.startswith("digits:"):
            return _digits(source)
        raw = read_source(*split_source(source))
    pixels = from_stored(raw.pixels, source)
    ids = np.arange(pixels.shape[0]) if raw.ids is None else raw.ids
    return ImageSet(pixels, raw.labels, ids, source)


def restrict(images: ImageSet, first: int, last: int) -> ImageSet:
    """The images with ids in [first, last), in their order.

    Raises:
        ImageError: there are none.
    """
    rows = np.flatnonzero((images.ids >= first) & (images.ids < last))
    if not len(rows):
        raise ImageError(
            f"{images.source}: no id is in [{first}, {last}); ids range from"
            f" {images.ids.min()} to {images.ids.max()}"
        )
    return images.select(rows)


def choose(images: ImageSet, n: int, seed: int) -> ImageSet:
    """A seeded, class-balanced sample of n images.

    Within a class, images are ordered by their rank, a hash of (seed, id). The sample takes the
    first image of each class, then the second of each, and so on; within such a round, images are
    ordered by rank, which also decides an incomplete last round. The first m of n images are thus
    exactly the sample of size m. Without labels the order is that of the ranks.

    Raises:
        ImageError: n is less than 1, or more than there are.
    """
    if not 1 <= n <= len(images):
        raise ImageError(
            f"{images.source}: {n} images were requested; choose between 1 and {len(images)}"
        )
    order = np.lexsort((images.ids, _ranks(images.ids, seed)))  # by rank, then by id
    labels = np.zeros(len(images)) if images.labels is None else images.labels[order]
    return images.select(order[np.argsort(_rounds(labels), kind="stable")[:n]])


def _ranks(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A hash of each id and the seed."""
    addresses = (f"purify-audit choice {seed} {number}".encode() for number in ids.tolist())
    hashes = (hashlib.blake2b(address, digest_size=8).digest() for address in addresses)
    return np.fromiter((int.from_bytes(h, "big") for h in hashes), np.uint64, len(ids))


def _rounds(labels: NDArray[Any]) -> NDArray[np.int64]:
    """For each position, the number of earlier positions with the same label."""
    by_label = np.argsort(labels, kind="stable")
    ordered = labels[by_label]
    rounds = np.empty(len(labels), np.int64)
    rounds[by_label] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return rounds


def _digits(source: str) -> ImageSet:
    raw = read_arrays(_DIGITS)
    ids = np.arange(raw.pixels.shape[0])
    held_out = ids % _HELD_OUT == 0
    parts = {"digits": held_out, "digits:train": ~held_out, "digits:all": ids >= 0}
    if source not in parts:
        raise ImageError(f"{source}: there is no such part; choose one of {', '.join(parts)}")
    grey = raw.pixels.read(ids)[:, None]
    pixels = np.true_divide(grey, np.float32(_DIGITS_WHITE), dtype=np.float32)
    return ImageSet(pixels, raw.labels, ids, source).select(np.flatnonzero(parts[source]))


def _sealed(array: NDArray[Any]) -> NDArray[Any]:
    """Make an array read-only in place."""
    array.setflags(write=False)
    return array


def _checked_integers(values: Any, n: int, what: str, source: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ImageError(f"{source}: {what}s are of type {array.dtype}, not integers")
    if array.shape != (n,):
        raise ImageError(
            f"{source}: {what}s have shape {list(array.shape)} but there are {n} images; provide"
            f" one {what} per image"
        )
    wrong = np.flatnonzero((array < 0) | (array > 2**32 - 1))
    if len(wrong):
        row = int(wrong[0])
        raise ImageError(f"{source}: {what} {array[row]} of row {row} is not in [0, 2**32)")
    if array.dtype == np.int64 and array.flags.c_contiguous and not array.flags.writeable:
        return array
    return _sealed(np.array(array, np.int64, order="C"))
