"""Images to audit with: pixels in [0, 1], labels, and ids that never change.

An image's id is its address for randomness (`docs/noise.md`): whichever images are loaded beside
it, and in whatever order, the image with id 17 meets the same noise.
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
from purify_audit.images.sources import (
    Pixels,
    check_memory,
    from_array,
    from_stored,
    read_arrays,
    read_source,
    reading,
    split_source,
)

_DIGITS = Path(__file__).with_name("digits") / "digits.npz"
_DIGITS_WHITE = 16  # the value of the brightest pixel
_HELD_OUT = 4  # every fourth digit is kept from training


@dataclass(frozen=True, eq=False, init=False)
class ImageSet:
    """Images, checked and immutable. Pixels may still be in a file: `pixels` is what reads them.

    Attributes:
        labels: int64 [n] in [0, 2**32), or none.
        ids: int64 [n] in [0, 2**32), each once: addresses for randomness.
        source: what the user called these images.
    """

    labels: NDArray[np.int64] | None = field(repr=False)
    ids: NDArray[np.int64] = field(repr=False)
    source: str
    _held: Pixels = field(repr=False)

    def __init__(
        self, pixels: NDArray[Any] | Pixels, labels: Any | None, ids: Any, source: str
    ) -> None:
        """Check and freeze the arrays: they are copied unless they are already read-only.

        Args:
            pixels: floats [n, c, h, w] in [0, 1], c either 1 or 3; or images that are checked and
                may be elsewhere.
            labels: whole numbers [n] in [0, 2**32), or none.
            ids: whole numbers [n] in [0, 2**32), each once.
            source: what to call these images.

        Raises:
            ImageError: no images, or pixels, labels or ids that are not as above. Floats of other
                sizes and integers of other sizes are converted.
        """
        held = pixels if isinstance(pixels, Pixels) else from_array(pixels, source)
        ids = _checked_integers(ids, held.shape[0], "id", source)
        distinct, counts = np.unique(ids, return_counts=True)
        if len(distinct) < len(ids):
            twice = int(distinct[counts > 1][0])
            rows = np.flatnonzero(ids == twice)[:2].tolist()
            raise ImageError(f"{source}: id {twice} is given to rows {rows[0]} and {rows[1]}")
        if labels is not None:
            labels = _checked_integers(labels, held.shape[0], "label", source)
        for name, value in {"labels": labels, "ids": ids, "source": source, "_held": held}.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.ids)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self._held.shape[1:]

    @property
    def image_bytes(self) -> int:
        """Of the pixels of one image, as float32."""
        return 4 * prod(self.image_shape)

    @cached_property
    def pixels(self) -> NDArray[np.float32]:
        """Float32 [n, c, h, w] in [0, 1], C-contiguous and read-only; from now on in memory.

        Of many images, `select` those that are needed first.

        Raises:
            ImageError: they would take more than 16 GiB, or their file cannot be read any more or
                is another than when it was opened first.
        """
        check_memory(self.source, self._held.shape, 4)
        return self._held.read()

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over the shape, the ids, the labels and the pixels, in order.

        Hashed are the text `purify-audit images 1 [n, c, h, w] labelled` (or `unlabelled`), then
        the arrays, little-endian; what the source is called does not count.

        Raises:
            ImageError: see `pixels`; also a picture that is damaged after its header.
        """
        return self._digests[0]

    @property
    def image_digests(self) -> tuple[str, ...]:
        """Of each image, the first 16 digits of a SHA-256 over its pixels and label.

        Raises:
            ImageError: see `digest`.
        """
        return self._digests[1]

    @cached_property
    def _digests(self) -> tuple[str, tuple[str, ...]]:
        """That of all images and that of each, in one reading."""
        kind = "unlabelled" if self.labels is None else "labelled"
        shape = list(self._held.shape)
        total = hashlib.sha256(f"purify-audit images 1 {shape} {kind}".encode())
        total.update(self.ids.astype("<i8", copy=False).data)
        labels = None if self.labels is None else self.labels.astype("<i8", copy=False)
        if labels is not None:
            total.update(labels.data)
        found = list[str]()
        for chunk in self._held.chunks():
            for pixels in chunk.astype("<f4", copy=False):
                one = hashlib.sha256(b"" if labels is None else labels[len(found)].tobytes())
                one.update(pixels.data)
                total.update(pixels.data)
                found.append(one.hexdigest()[:16])
        return total.hexdigest(), tuple(found)

    def check(self) -> None:
        """Read every image once, so that none that is damaged ends a run that has begun.

        Raises:
            ImageError: see `digest`.
        """
        self._digests  # noqa: B018 - it reads them, and a run needs it anyway

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> "ImageSet":
        """The images of these rows, in the order given, with their ids. No pixels are read.

        Raises:
            ImageError: no rows, or a row twice.
            IndexError: there is no such row.
        """
        index = np.asarray(rows, np.int64)
        if len(index) == len(self) and (index == np.arange(len(self))).all():
            return self
        if not len(index):
            raise ImageError(f"{self.source}: shape {[0, *self.image_shape]} holds no images")
        labels = None if self.labels is None else _sealed(self.labels[index])
        return ImageSet(self._held.select(index), labels, _sealed(self.ids[index]), self.source)


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
    order = np.lexsort((images.ids, _ranks(images.ids, seed)))  # by rank; of two the same, by id
    labels = np.zeros(len(images)) if images.labels is None else images.labels[order]
    return images.select(order[np.argsort(_turns(labels), kind="stable")[:n]])


def _ranks(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Of each id, a hash of it and the seed."""
    addresses = (f"purify-audit choice {seed} {number}".encode() for number in ids.tolist())
    hashes = (hashlib.blake2b(address, digest_size=8).digest() for address in addresses)
    return np.fromiter((int.from_bytes(h, "big") for h in hashes), np.uint64, len(ids))


def _turns(labels: NDArray[Any]) -> NDArray[np.int64]:
    """At each place, how often its label comes before it."""
    by_label = np.argsort(labels, kind="stable")
    together = labels[by_label]
    turns = np.empty(len(labels), np.int64)
    turns[by_label] = np.arange(len(labels)) - np.searchsorted(together, together)
    return turns


def _digits(source: str) -> ImageSet:
    raw = read_arrays(_DIGITS)
    ids = np.arange(raw.pixels.shape[0])
    held_out = ids % _HELD_OUT == 0
    parts = {"digits": held_out, "digits:train": ~held_out, "digits:all": ids >= 0}
    if source not in parts:
        raise ImageError(f"{source}: there is no such part; give {', '.join(parts)}")
    grey = raw.pixels.read(ids)[:, None]
    pixels = np.true_divide(grey, np.float32(_DIGITS_WHITE), dtype=np.float32)
    return ImageSet(pixels, raw.labels, ids, source).select(np.flatnonzero(parts[source]))


def _sealed(array: NDArray[Any]) -> NDArray[Any]:
    """An array that nobody else holds, made read-only in place."""
    array.setflags(write=False)
    return array


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
    if array.dtype == np.int64 and array.flags.c_contiguous and not array.flags.writeable:
        return array
    return _sealed(np.array(array, np.int64, order="C"))
