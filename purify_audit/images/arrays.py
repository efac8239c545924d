"""Arrays of images in `.npy`, `.npz` and `.safetensors` files. Nothing in a file is executed.

Images that are stored uncompressed in C order stay on disk and are read on demand.
"""

import json
import struct
import zipfile
from collections.abc import Callable, Collection
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from purify_audit.core.errors import ImageError
from purify_audit.core.records import printable
from purify_audit.images.limits import check_memory, reading, size_error
from purify_audit.images.stored import InFile, InMemory, RawImages, Stored, stamp

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors")
_KEYS = (("x", "images", "data"), ("y", "labels"), ("idx", "ids"))
_ON_DISK = {
    "U8": "u1",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}  # number types by their names in safetensors
_PIECE = 2**20  # bytes


def read_arrays(path: Path) -> RawImages:
    """Images from a `.npy`, `.npz` or `.safetensors` file; pickled objects are never loaded.

    In the latter two, images are the array `x`, `images` or `data`; labels `y` or `labels`; ids
    `idx` or `ids`; other arrays are ignored. To be called within `reading`.

    Raises:
        ImageError: no array of images, or several, or one that is damaged or too large.
    """
    with path.open("rb") as file:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(file) as archive:
                return _read_npz(path, file, archive)
        if path.suffix.lower() == ".safetensors":
            return _read_safetensors(path, file)
        opened = stamp(file.fileno())
        header = _npy_header(file, opened.size, str(path), on_disk=True)
        if header.fortran:
            return RawImages(InMemory(_load_npy(file)))
        return RawImages(InFile(path, opened, header.start, header.shape, header.dtype))


def _named(
    path: Path,
    keys: Collection[str],
    read: Callable[[str], NDArray[Any]],
    locate: Callable[[str], Stored],
) -> RawImages:
    """Choose arrays by name: images, which are located, and labels and ids, which are read."""
    named = [[name for name in names if name in keys] for names in _KEYS]
    for names in named:
        if len(names) > 1:
            raise ImageError(f"{path}: arrays '{names[0]}' and '{names[1]}' conflict; keep one")
    if not named[0]:
        present = printable(", ".join(map(repr, sorted(keys)[:10]))) or "none"
        raise ImageError(f"{path}: no array is named 'x', 'images' or 'data'; there are: {present}")
    labels, ids = (read(names[0]) if names else None for names in named[1:])
    return RawImages(locate(named[0][0]), labels, ids)


# --- numpy --------------------------------------------------------------------------------------


class _Header(NamedTuple):
    """The header of an array in numpy's format, and its length in bytes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int


def _read_npz(path: Path, file: IO[bytes], archive: zipfile.ZipFile) -> RawImages:
    members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
    opened = stamp(file.fileno())

    def read(name: str) -> NDArray[Any]:
        where = f"{path}: array '{name}'"
        with reading(where), archive.open(members[name]) as stream:
            _npy_header(stream, members[name].file_size, where, on_disk=False)
            return _load_npy(stream)

    def locate(name: str) -> Stored:
        where, member = f"{path}: array '{name}'", members[name]
        on_disk = member.compress_type == zipfile.ZIP_STORED
        with reading(where), archive.open(member) as stream:
            header = _npy_header(stream, member.file_size, where, on_disk)
            if header.fortran or not on_disk:
                return InMemory(_load_npy(stream))
            _read_through(stream, prod(header.shape) * header.dtype.itemsize)
            start = _member_start(file, member) + header.start
            return InFile(path, opened, start, header.shape, header.dtype)

    return _named(path, members, read, locate)


def _member_start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Offset of a member's bytes: after its local header of 30 bytes, its name and extra field.

    Source: PKWARE's APPNOTE.TXT, 4.3.7.
    """
    file.seek(member.header_offset)
    name, extra = struct.unpack("<26x2H", file.read(30))
    return member.header_offset + 30 + int(name) + int(extra)


def _read_through(stream: IO[bytes], length: int) -> None:
    """Read and discard bytes, so that `zipfile` verifies their checksum.

    Raises:
        EOFError: there are fewer bytes.
    """
    while length:
        piece = stream.read(min(length, _PIECE))
        if not piece:
            raise EOFError(f"{length} bytes are missing at the end")
        length -= len(piece)


def _npy_header(file: IO[bytes], size: int, where: str, on_disk: bool) -> _Header:
    """The header of an array, checked against the `size` of its file in bytes.

    There is no memory limit for an array that is read on demand (`on_disk`, and in C order).
    """
    version, start = np.lib.format.read_magic(file), file.tell()
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    file.seek(start)
    if length > size:
        raise ImageError(f"{where}: the header declares {length} bytes of {size}: damaged")
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ImageError(f"{where}: contains Python objects; save plain numbers instead")
    declared, present = prod(shape) * dtype.itemsize, size - file.tell()
    if fortran or not on_disk or declared > present:
        check_memory(where, shape, dtype.itemsize)
    if min(shape, default=0) < 0 or declared > present:
        raise size_error(where, shape, declared, present)
    return _Header(shape, fortran, dtype, file.tell())


def _load_npy(file: IO[bytes]) -> NDArray[Any]:
    """An array whose header has been checked."""
    file.seek(0)
    return np.asarray(np.load(file, allow_pickle=False))


# --- safetensors --------------------------------------------------------------------------------


def _read_safetensors(path: Path, file: IO[bytes]) -> RawImages:
    from safetensors import safe_open

    opened = stamp(file.fileno())
    with safe_open(path, framework="numpy") as tensors:

        def read(name: str) -> NDArray[Any]:
            where = f"{path}: array '{name}'"
            with reading(where):
                check_memory(where, tuple(tensors.get_slice(name).get_shape()), 4)
                return np.asarray(tensors.get_tensor(name))

        def locate(name: str) -> Stored:
            with reading(f"{path}: array '{name}'"):
                part = tensors.get_slice(name)
                dtype = _ON_DISK.get(part.get_dtype())
                if dtype is None:
                    return InMemory(read(name))
                shape, start = tuple(part.get_shape()), _tensor_start(file, name)
                return InFile(path, opened, start, shape, np.dtype(dtype))

        return _named(path, list(tensors.keys()), read, locate)


def _tensor_start(file: IO[bytes], name: str) -> int:
    """Offset of a tensor's bytes in a file whose header `safe_open` has checked.

    Source: https://huggingface.co/docs/safetensors, "Format": the length of the header in 8 bytes,
    the header, then the tensors.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    return 8 + length + int(header[name]["data_offsets"][0])
