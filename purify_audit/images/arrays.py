"""Arrays of images in numpy's and safetensors' files. Nothing in a file is executed.

Images stay in the file where they lie there plainly, row after row: `.npy`, `.npz` members that
are not compressed, and `.safetensors`.
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
from purify_audit.images.limits import check_memory, reading
from purify_audit.images.stored import InFile, InMemory, RawImages, Stored, stamp

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors")
_KEYS = (("x", "images", "data"), ("y", "labels"), ("idx", "ids"))
_KEPT = {"U8": "u1", "F16": "<f2", "F32": "<f4", "F64": "<f8"}  # by their names in safetensors
_PIECE = 2**20  # bytes


def read_arrays(path: Path) -> RawImages:
    """Images from a `.npy`, `.npz` or `.safetensors` file; pickled objects are never loaded.

    In the latter two, images are the array `x`, `images` or `data`; labels `y` or `labels`; ids
    `idx` or `ids`; other arrays are ignored.

    Raises:
        ImageError: no array of images or several, or one that is damaged or too big. Anything
            else that a damaged file may cause is for `reading` to catch.
    """
    with path.open("rb") as file:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(file) as archive:
                return _read_npz(path, file, archive)
        if path.suffix.lower() == ".safetensors":
            return _read_safetensors(path, file)
        seen = stamp(file.fileno())
        header = _npy_header(file, seen.size, str(path), stays=True)
        if header.fortran:
            return RawImages(InMemory(_load_npy(file)))
        return RawImages(InFile(path, seen, header.start, header.shape, header.dtype))


def _named(
    path: Path,
    keys: Collection[str],
    read: Callable[[str], NDArray[Any]],
    find: Callable[[str], Stored],
) -> RawImages:
    """The images among `keys`, where they are found, with their labels and ids, which are read."""
    chosen = [[name for name in names if name in keys] for names in _KEYS]
    for found in chosen:
        if len(found) > 1:
            raise ImageError(f"{path}: arrays '{found[0]}' and '{found[1]}' compete; keep one")
    if not chosen[0]:
        held = printable(", ".join(map(repr, sorted(keys)[:10]))) or "nothing"
        raise ImageError(f"{path}: no array is named 'x', 'images' or 'data'; it holds {held}")
    labels, ids = (read(found[0]) if found else None for found in chosen[1:])
    return RawImages(find(chosen[0][0]), labels, ids)


# --- numpy --------------------------------------------------------------------------------------


class _Header(NamedTuple):
    """What the header of an array in numpy's format says, and where it ends."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int


def _read_npz(path: Path, file: IO[bytes], archive: zipfile.ZipFile) -> RawImages:
    members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
    seen = stamp(file.fileno())

    def read(name: str) -> NDArray[Any]:
        where = f"{path}: array '{name}'"
        with reading(where), archive.open(members[name]) as stream:
            _npy_header(stream, members[name].file_size, where, stays=False)
            return _load_npy(stream)

    def find(name: str) -> Stored:
        where, member = f"{path}: array '{name}'", members[name]
        stays = member.compress_type == zipfile.ZIP_STORED
        with reading(where), archive.open(member) as stream:
            header = _npy_header(stream, member.file_size, where, stays)
            if header.fortran or not stays:
                return InMemory(_load_npy(stream))
            _read_through(stream, prod(header.shape) * header.dtype.itemsize)
            start = _member_start(file, member) + header.start
            return InFile(path, seen, start, header.shape, header.dtype)

    return _named(path, members, read, find)


def _member_start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin: after its local header, 30 bytes and two lengths of text.

    Source: PKWARE's APPNOTE.TXT, 4.3.7.
    """
    file.seek(member.header_offset)
    name, extra = struct.unpack("<26x2H", file.read(30))
    return member.header_offset + 30 + int(name) + int(extra)


def _read_through(stream: IO[bytes], length: int) -> None:
    """Read bytes and forget them: whoever unpacks them compares their checksum at the end.

    Raises:
        EOFError: there are fewer.
    """
    while length:
        piece = stream.read(min(length, _PIECE))
        if not piece:
            raise EOFError(f"{length} bytes are missing at the end")
        length -= len(piece)


def _npy_header(file: IO[bytes], size: int, where: str, stays: bool) -> _Header:
    """The header of an array, checked against the `size` in bytes that it comes in.

    Where the array `stays` in its file, whole and in C order, it takes no memory and may be big.
    """
    version, start = np.lib.format.read_magic(file), file.tell()
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    file.seek(start)
    if length > size:
        raise ImageError(f"{where}: the header claims {length} bytes of {size}: damaged")
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ImageError(f"{where}: holds Python objects; save plain numbers instead")
    declared, present = prod(shape) * dtype.itemsize, size - file.tell()
    if fortran or not stays or declared > present:
        check_memory(where, shape, dtype.itemsize)
    if min(shape, default=0) < 0 or declared > present:
        what = f"shape {list(shape)} of {dtype} needs {declared} bytes but {present} are there"
        raise ImageError(f"{where}: {what}: truncated or damaged")
    return _Header(shape, fortran, dtype, file.tell())


def _load_npy(file: IO[bytes]) -> NDArray[Any]:
    """An array whose header has been checked."""
    file.seek(0)
    return np.asarray(np.load(file, allow_pickle=False))


# --- safetensors --------------------------------------------------------------------------------


def _read_safetensors(path: Path, file: IO[bytes]) -> RawImages:
    from safetensors import safe_open

    seen = stamp(file.fileno())
    with safe_open(path, framework="numpy") as tensors:

        def read(name: str) -> NDArray[Any]:
            where = f"{path}: array '{name}'"
            with reading(where):
                check_memory(where, tuple(tensors.get_slice(name).get_shape()), 4)
                return np.asarray(tensors.get_tensor(name))

        def find(name: str) -> Stored:
            with reading(f"{path}: array '{name}'"):
                part = tensors.get_slice(name)
                kept = _KEPT.get(part.get_dtype())
                if kept is None:
                    return InMemory(read(name))
                shape, start = tuple(part.get_shape()), _tensor_start(file, name)
                return InFile(path, seen, start, shape, np.dtype(kept))

        return _named(path, list(tensors.keys()), read, find)


def _tensor_start(file: IO[bytes], name: str) -> int:
    """Where a tensor's bytes begin, in a file whose header `safe_open` has checked.

    Source: https://huggingface.co/docs/safetensors, "Format": the length of the header in 8 bytes,
    the header, then the tensors.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    return 8 + length + int(header[name]["data_offsets"][0])
