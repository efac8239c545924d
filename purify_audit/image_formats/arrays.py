"""Arrays of images in numpy's and safetensors' files. Nothing in a file is executed."""

import zipfile
from collections.abc import Callable, Collection
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from purify_audit.errors import ImageError
from purify_audit.image_formats.raw import RawImages, check_memory, reading
from purify_audit.record import printable

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors")
_KEYS = (("x", "images", "data"), ("y", "labels"), ("idx", "ids"))


def read_arrays(path: Path) -> RawImages:
    """Images from a `.npy`, `.npz` or `.safetensors` file; pickled objects are never loaded.

    In the latter two, images are the array `x`, `images` or `data`; labels `y` or `labels`; ids
    `idx` or `ids`; other arrays are ignored.

    Raises:
        ImageError: no array of images or several, or one that is damaged or too big. Anything
            else that a damaged file may cause is for `reading` to catch.
    """
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as archive:
            return _read_npz(path, archive)
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        return RawImages(_read_npy(file, path.stat().st_size, str(path)))


def _named(path: Path, keys: Collection[str], read: Callable[[str], NDArray[Any]]) -> RawImages:
    """The arrays of images, labels and ids among `keys`."""
    chosen = [[name for name in names if name in keys] for names in _KEYS]
    for found in chosen:
        if len(found) > 1:
            raise ImageError(f"{path}: arrays '{found[0]}' and '{found[1]}' compete; keep one")
    if not chosen[0]:
        held = printable(", ".join(map(repr, sorted(keys)[:10]))) or "nothing"
        raise ImageError(f"{path}: no array is named 'x', 'images' or 'data'; it holds {held}")
    labels, ids = (read(found[0]) if found else None for found in chosen[1:])
    return RawImages(read(chosen[0][0]), labels, ids)


def _read_npz(path: Path, archive: zipfile.ZipFile) -> RawImages:
    members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}

    def read(name: str) -> NDArray[Any]:
        where = f"{path}: array '{name}'"
        with reading(where), archive.open(members[name]) as file:
            return _read_npy(file, members[name].file_size, where)

    return _named(path, members, read)


def _read_npy(file: IO[bytes], size: int, where: str) -> NDArray[Any]:
    """One array in numpy's format, its header checked against the `size` in bytes it comes in."""
    version, start = np.lib.format.read_magic(file), file.tell()
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    file.seek(start)
    if length > size:
        raise ImageError(f"{where}: the header claims {length} bytes of {size}: damaged")
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ImageError(f"{where}: holds Python objects; save plain numbers instead")
    check_memory(where, shape, dtype.itemsize)
    declared, present = prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or declared > present:
        what = f"shape {list(shape)} of {dtype} needs {declared} bytes but {present} are there"
        raise ImageError(f"{where}: {what}: truncated or damaged")
    file.seek(0)
    return np.asarray(np.load(file, allow_pickle=False))


def _read_safetensors(path: Path) -> RawImages:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:

        def read(name: str) -> NDArray[Any]:
            where = f"{path}: array '{name}'"
            with reading(where):
                check_memory(where, tuple(file.get_slice(name).get_shape()), 4)
                return np.asarray(file.get_tensor(name))

        return _named(path, list(file.keys()), read)
