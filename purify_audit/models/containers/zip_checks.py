"""Zip archives checked before PyTorch sees them: layout, names and sizes, from the headers alone.

PyTorch's reader and Python's `zipfile` may disagree about an archive that bends the rules (APPNOTE
6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT), and what one of them checks
the other would not read. So only archives that leave no room for that are let through.
"""

import os
import stat
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable

MAX_ENTRIES = 100_000
"""A network has one entry for each tensor; the largest known have some thousands."""

MAX_EXPANSION = 16
"""How many times the file's size its unpacked entries may have, with `_SMALL` in any case."""

_SMALL = 2**20
_MAX_DIRECTORY = 200 * MAX_ENTRIES  # bytes; a name of 150 characters is long already
_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), 20
_LOCAL = struct.Struct("<4s5H3L2H")

Kind = Literal["pickle", "torchscript", "exported program", "other"]


@dataclass(frozen=True, slots=True)
class Entry:
    """Offsets of one file in an archive, and its unpacked size, in bytes."""

    offset: int
    size: int
    stored: bool


@dataclass(frozen=True, slots=True)
class Archive:
    """A checked archive.

    Attributes:
        path: the file.
        top: the folder that all entries lie in, with its slash; empty where there is none.
        entries: those of files, by name without the top folder.
    """

    path: Path
    top: str
    entries: dict[str, Entry]

    @property
    def kind(self) -> Kind:
        """What wrote it, by the names of its entries."""
        names = self.entries.keys()
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            return "torchscript"
        if "archive_format" in names or "serialized_exported_program.json" in names:
            return "exported program"
        return "pickle" if "data.pkl" in names and self.top else "other"

    def read(self, name: str) -> bytes:
        """The bytes of an entry; its checksum is verified.

        Raises:
            CheckpointError: they are damaged.
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.top + name)
        except Exception as error:  # zipfile and its decompressors promise no list
            fault = printable(str(error) or type(error).__name__)
            raise CheckpointError(f"{self.path}: entry '{name}' cannot be read: {fault}") from None


def check_archive(path: Path) -> Archive:
    """Read and check the directory of a zip archive; nothing is unpacked.

    Raises:
        CheckpointError: the directory is missing or not at the end, has too many entries, or names
            one twice or outside the archive; an entry is a link, encrypted, overlaps another or
            lies outside the file; or unpacked they would have more than `MAX_EXPANSION` times the
            file's size.
    """
    try:
        with path.open("rb") as file:
            directory = _directory_start(path, file)
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
            _check_names(path, infos)
            placed = [(info, _data_start(path, file, info)) for info in infos]
    except (OSError, ValueError, struct.error, zipfile.BadZipFile, NotImplementedError) as error:
        fault = printable(str(error))
        raise CheckpointError(
            f"{path}: is a zip archive that cannot be read: {fault}: truncated or damaged"
        ) from None
    _check_places(path, placed, directory)
    _check_sizes(path, infos)
    top = _top_folder(infos)
    entries = {
        info.filename.removeprefix(top): Entry(start, info.file_size, info.compress_type == 0)
        for info, start in placed
        if not info.is_dir()
    }
    return Archive(path, top, entries)


def _directory_start(path: Path, file: IO[bytes]) -> int:
    """The first byte of the central directory, which must reach to the end records.

    Raises:
        CheckpointError: it is not there or too large to read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size))
    tail = file.read()
    if len(tail) < _END.size or not tail.startswith(b"PK\x05\x06"):
        raise CheckpointError(
            f"{path}: is a zip archive whose directory is not at its end: truncated, or something"
            " was appended"
        )
    *_, length, begin, _comment = _END.unpack(tail)
    end = size - _END.size
    if (longer := _end64(file, end)) is not None:
        length, begin, end = longer
    if length > _MAX_DIRECTORY:
        raise CheckpointError(
            f"{path}: is a zip archive with a directory of {length} bytes; {_MAX_DIRECTORY} would"
            f" do for {MAX_ENTRIES} entries"
        )
    if begin + length != end:
        raise CheckpointError(
            f"{path}: is a zip archive whose directory is not where it says: truncated or damaged"
        )
    return int(begin)


def _end64(file: IO[bytes], end: int) -> tuple[int, int, int] | None:
    """Length, start and end of the directory as the 64-bit record tells, where there is one."""
    start = end - _LOCATOR - _END64.size
    if start < 0:
        return None
    file.seek(start)
    record, locator = file.read(_END64.size), file.read(_LOCATOR)
    if not locator.startswith(b"PK\x06\x07"):
        return None
    (place,) = struct.unpack_from("<Q", locator, 8)
    if place != start or not record.startswith(b"PK\x06\x06"):
        raise ValueError("the 64-bit end of its directory is not where it says")
    *_, length, begin = _END64.unpack(record)
    return length, begin, start


def _check_names(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    where = f"{path}: is a zip archive"
    if len(infos) > MAX_ENTRIES:
        raise CheckpointError(f"{where} of {len(infos)} entries; {MAX_ENTRIES} are allowed")
    seen: set[str] = set()
    for info in infos:
        name, shown = info.orig_filename, f"'{printable(info.orig_filename)}'"
        if "\0" in name or "\\" in name or name.startswith("/") or _leaves(name):
            raise CheckpointError(f"{where} with an entry outside of it: {shown}")
        if (folded := name.lower()) in seen:  # PyTorch's reader ignores case
            raise CheckpointError(f"{where} with two entries called {shown}")
        seen.add(folded)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise CheckpointError(f"{where} with a link in it: {shown}")
        if info.flag_bits & 1:
            raise CheckpointError(f"{where} with an encrypted entry: {shown}; decrypt it first")


def _leaves(name: str) -> bool:
    return ".." in PurePosixPath(name).parts


def _data_start(path: Path, file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin, by its local header, which must tell the same name."""
    file.seek(info.header_offset)
    signature, *_, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
    name = file.read(name_length).decode("utf-8" if info.flag_bits & 0x800 else "cp437")
    if signature != b"PK\x03\x04" or name != info.orig_filename:
        raise CheckpointError(
            f"{path}: is a zip archive whose entry '{printable(info.orig_filename)}' is not where"
            " its directory says: truncated or damaged"
        )
    return int(info.header_offset + _LOCAL.size + name_length + extra_length)


def _check_places(
    path: Path, placed: Iterable[tuple[zipfile.ZipInfo, int]], directory: int
) -> None:
    """No entry reaches into another or into the directory."""
    reached = 0
    for info, start in sorted(placed, key=lambda place: place[0].header_offset):
        if info.header_offset < reached or start + info.compress_size > directory:
            raise CheckpointError(
                f"{path}: is a zip archive whose entry '{printable(info.filename)}' overlaps"
                " another or the directory"
            )
        reached = start + info.compress_size


def _check_sizes(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    for info in infos:
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise CheckpointError(
                f"{path}: is a zip archive whose entry '{printable(info.filename)}' has two sizes,"
                f" {info.file_size} and {info.compress_size} bytes"
            )
    unpacked, size = sum(info.file_size for info in infos), path.stat().st_size
    if unpacked > max(MAX_EXPANSION * size, _SMALL):
        raise CheckpointError(
            f"{path}: is a zip archive of {size} bytes that would unpack to {unpacked}, more than"
            f" {MAX_EXPANSION} times as many"
        )


def _top_folder(infos: list[zipfile.ZipInfo]) -> str:
    tops = {info.filename.partition("/")[0] for info in infos}
    folded = all("/" in info.filename for info in infos)
    return f"{tops.pop()}/" if len(tops) == 1 and folded else ""
