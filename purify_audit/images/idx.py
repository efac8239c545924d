"""Idx files, plain or gzipped: MNIST, Fashion-MNIST, KMNIST, EMNIST.

Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", section
"File formats": two zero bytes, a number type, the number of axes, the length of each axis as a
big-endian uint32, then the numbers, the last axis fastest.
"""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import GzipFile
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from purify_audit.core.errors import ImageError
from purify_audit.images.limits import check_inside, check_memory, reading, size_error
from purify_audit.images.stored import InFile, InMemory, RawImages, Stored, stamp

_IDX = re.compile(r".*[-.]idx\d-[a-z]+(\.gz)?")
_IMAGES = re.compile(r"(?P<before>.*)images(?P<joint>[-.])idx3-ubyte(?P<gz>\.gz)?")
_SET = re.compile(r"(?P<before>.*?)(?P<part>train|t10k|test)-images[-.]idx3-ubyte(\.gz)?")
_NUMBERS = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32"}
_NUMBERS |= {0x0D: "float32", 0x0E: "float64"}
_GZIP = b"\x1f\x8b"
_MAX_DEFLATED = 1032  # ratio: "Maximum Compression Factor", https://zlib.net/zlib_tech.html


def is_idx(path: Path) -> bool:
    """Whether a file has an idx name, such as `t10k-images-idx3-ubyte.gz`."""
    return path.is_file() and bool(_IDX.fullmatch(path.name))


def is_idx_folder(folder: Path) -> bool:
    """Whether a folder contains a test or training set of images in idx files."""
    return folder.is_dir() and any(_SET.fullmatch(p.name) and p.is_file() for p in folder.iterdir())


def read_idx(path: Path) -> RawImages:
    """Images of one idx file, with the labels in the same folder, if any.

    Labels of `t10k-images-idx3-ubyte.gz` are in `t10k-labels-idx1-ubyte.gz`; any prefix, a dot
    before `idx`, and either file without `.gz` are accepted. Pixels are not transposed, although
    EMNIST stores them so.

    Returns:
        Pixels uint8 [n, 1, h, w], labels uint8 [n].

    Raises:
        ImageError: not idx, not bytes [n, h, w], of another length than declared, too large, or
            unequal numbers of labels and images.
    """
    pixels = _find_images(path)
    label_path = _label_file(path)
    if label_path is None:
        return RawImages(pixels)
    labels, n = _read_labels(label_path), pixels.shape[0]
    if len(labels) != n:
        counts = f"{len(labels)} labels, but {path.name} contains {n} images"
        raise ImageError(f"{label_path}: contains {counts}; download both again")
    return RawImages(pixels, labels)


def read_idx_folder(folder: Path, train: bool) -> RawImages:
    """The test or training set of a folder of idx files; a plain file precedes its .gz.

    Raises:
        ImageError: there is no such set, or several; or see `read_idx`.
    """
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=str):
        match = _SET.fullmatch(path.name)
        if match and path.is_file() and (match["part"] == "train") == train:
            images.setdefault(match["before"] + match["part"], path)
    if not images:
        name, other = ("train", "") if train else ("t10k", ", or append ':train' to the folder")
        raise ImageError(f"{folder}: has no {name}-images-idx3-ubyte; download it{other}")
    if len(images) > 1:
        names = [path.name for path in images.values()][:2]
        raise ImageError(f"{folder}: '{names[0]}' and '{names[1]}' are ambiguous; name one file")
    (path,) = images.values()
    check_inside(folder, path)
    return read_idx(path)


def _label_file(path: Path) -> Path | None:
    """The label file of an image file; an exact match of the name is preferred."""
    match = _IMAGES.fullmatch(path.name)
    if match is None:
        return None
    joints = (match["joint"], "-", ".")
    endings = (match["gz"] or "", "", ".gz")
    names = [f"{match['before']}labels{j}idx1-ubyte{e}" for j in joints for e in endings]
    for candidate in map(path.with_name, names):
        if candidate.is_file():
            check_inside(path.parent, candidate)
            return candidate
    return None


@contextmanager
def _unpacked(path: Path) -> Iterator[tuple[IO[bytes] | GzipFile, int]]:
    """The uncompressed stream, and an upper bound on its length."""
    with path.open("rb") as file:
        size, gzipped = path.stat().st_size, file.read(2) == _GZIP
        file.seek(0)
        if not gzipped:
            yield file, size
            return
        with GzipFile(fileobj=file) as stream:
            yield stream, size * _MAX_DEFLATED


def _find_images(path: Path) -> Stored:
    """Images of bytes, [n, 1, h, w]; those of a plain file stay on disk."""
    with reading(path), _unpacked(path) as (file, longest):
        shape = _read_header(path, file, 3)
        n, height, width = shape
        if not isinstance(file, GzipFile):
            seen, start = stamp(file.fileno()), file.tell()
            if seen.size - start == prod(shape):
                return InFile(path, seen, start, (n, 1, height, width), np.dtype(np.uint8))
        return InMemory(_read_numbers(path, file, shape, longest)[:, None])


def _read_labels(path: Path) -> NDArray[np.uint8]:
    with reading(path), _unpacked(path) as (file, longest):
        return _read_numbers(path, file, _read_header(path, file, 1), longest)


def _read_header(path: Path, file: IO[bytes] | GzipFile, axes: int) -> tuple[int, ...]:
    """The shape of the array of bytes."""
    head = file.read(4 + 4 * axes)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _NUMBERS:
        raise ImageError(f"{path}: does not begin like an idx file; download it again")
    if (head[2], head[3]) != (0x08, axes):
        actual = f"{_NUMBERS[head[2]]} on {head[3]} ax{'i' if head[3] == 1 else 'e'}s"
        wanted = "images are uint8 on 3 axes" if axes == 3 else "labels are uint8 on 1 axis"
        raise ImageError(f"{path}: contains {actual}; {wanted}")
    if len(head) < 4 + 4 * axes:
        raise ImageError(f"{path}: ends within its header: truncated or damaged")
    return struct.unpack(f">{axes}I", head[4:])


def _read_numbers(
    path: Path, file: IO[bytes] | GzipFile, shape: tuple[int, ...], longest: int
) -> NDArray[np.uint8]:
    """The array after the header; reads at most one byte beyond the declared length."""
    check_memory(path, shape, 1)
    declared = prod(shape)
    content = file.read(declared + 1) if declared <= longest else b""
    if len(content) != declared:
        present = "more" if len(content) > declared else "fewer"
        raise size_error(path, shape, declared, present)
    return np.frombuffer(content, np.uint8).reshape(shape)
