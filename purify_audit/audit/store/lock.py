"""File locks, which the operating system releases when a process ends."""

import os
import platform
import sys
import time
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt

    _FAR = 2**30  # the locked byte; the text before it stays readable to others

    def _try_lock(file: BinaryIO) -> bool:
        file.seek(_FAR)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(file: BinaryIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


_WIDTH = 100  # bytes of the holder's line
_POLL = 0.01  # seconds


def lock(path: Path, patience: float = 0.0) -> BinaryIO | None:
    """Lock a file, created if necessary, until the returned file is closed or this process ends.

    A forked child shares the lock. The file is not removed on release: otherwise two processes
    could lock two files of one name.

    Args:
        path: the file.
        patience: seconds to wait for another holder.

    Returns:
        The open file, or None if another holds it.

    Raises:
        OSError: the file cannot be created, or the file system does not support locks.
    """
    end = time.monotonic() + patience
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    try:
        while not _try_lock(file):
            if time.monotonic() >= end:
                file.close()
                return None
            time.sleep(_POLL)
        # Of one width, and never truncated: to write it again takes no space on a full disk.
        file.seek(0)
        line = f"process {os.getpid()} on {platform.node()}"
        file.write(line.encode()[: _WIDTH - 1].ljust(_WIDTH - 1) + b"\n")
    except BaseException:
        file.close()
        raise
    return file


def holder(path: Path) -> str:
    """Who locked a file last: `process 4711 on hydra`."""
    with path.open("rb") as file:
        line = file.read(_WIDTH).decode("utf-8", "replace").strip()
    return line or "another process"
