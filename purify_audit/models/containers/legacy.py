"""PyTorch's format before 1.6: five pickles in a row, then the numbers of each storage.

The layout is that of `torch.serialization._legacy_save`: a magic number, the version of the
protocol, the sizes of C types, the object, the keys of its storages; then for each key the count of
numbers (8 bytes, little-endian) and the numbers.
"""

import os
import struct
import tarfile
from io import BytesIO
from pathlib import Path
from typing import IO

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.containers.pickle_checks import MAX_PICKLE, Scan, scan_pickle
from purify_audit.models.containers.pickle_stand_ins import Storage

START = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""The magic number 0x1950a86a20f9469cfc6c, pickled."""

_VERSION = 1001
_COUNT = struct.Struct("<q")


def is_tar(start: bytes) -> bool:
    """Whether a file with this start, of 512 bytes, is a tar archive (PyTorch's format of 2016)."""
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def scan_legacy(path: Path) -> Scan:
    """Follow the pickles of a legacy file, and check that its storages lie in it.

    Raises:
        CheckpointError: it is damaged or truncated, or claims more numbers than it has.
    """
    with path.open("rb") as file:
        head = BytesIO(file.read(MAX_PICKLE))
        scans = []
        for part in ("magic number", "version", "system", "object", "list of storages"):
            scans.append(scan_pickle(f"{path}: {part}", head))
            if scans[-1].disallowed or scans[-1].beyond:
                return scans[-1]
        _, version, _, scan, keys = scans
        if version.value != _VERSION:
            raise CheckpointError(f"{path}: is of an unknown version of PyTorch's old format")
        if not isinstance(keys.value, list) or sorted(keys.value) != sorted(scan.storages):
            raise CheckpointError(f"{path}: its storages are not those that its tensors need")
        place = head.tell()
        for key in keys.value:
            place = _check_storage(path, file, place, scan.storages[key])
    return scan


def _check_storage(path: Path, file: IO[bytes], place: int, storage: Storage) -> int:
    """The first byte after a storage that begins at `place`."""
    file.seek(place)
    count = file.read(_COUNT.size)
    end = place + _COUNT.size + storage.bytes
    if len(count) < _COUNT.size or end > os.fstat(file.fileno()).st_size:
        raise CheckpointError(
            f"{path}: storage '{printable(storage.key)}' should end at byte {end}, and the file is"
            " shorter: truncated"
        )
    if _COUNT.unpack(count) != (storage.numbers,):
        raise CheckpointError(
            f"{path}: storage '{printable(storage.key)}' has not the {storage.numbers} numbers that"
            " its tensors need: damaged"
        )
    return end
