"""Atomic and durable file writes."""

import errno
import os
from pathlib import Path


def write_whole(path: Path, data: bytes, scratch: Path) -> None:
    """Write a file atomically: a reader, also after a crash, sees all of it or none.

    The bytes are synced before the name, and the name before this returns.

    Args:
        path: the file.
        data: its content.
        scratch: a name in the same folder that no other process writes.

    Raises:
        OSError: the disk refuses. Nothing is left under either name that was not there before.
    """
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk."""
    if os.name == "nt":
        return  # Windows cannot open folders; NTFS journals its names
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system whose folders cannot be synced
            raise
    finally:
        os.close(handle)
