"""Files: errors of reading, regular files, atomic writes, links out of a folder."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from purify_audit.core.errors import InputError


@contextmanager
def read_errors(path: str | Path, kind: type[InputError]) -> Iterator[None]:
    """Raise `kind`, with the path, for an OSError raised within."""
    try:
        yield
    except FileNotFoundError:
        raise kind(f"{path}: no such file") from None
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror}") from None


def regular_size(path: Path, kind: type[InputError], expected: str) -> int:
    """Size of a regular file in bytes; opening another kind of file could block.

    Raises:
        InputError: it is not a regular file, or an OSError, as `kind`.
    """
    with read_errors(path, kind):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        actual = "directory" if stat.S_ISDIR(status.st_mode) else "device or pipe"
        raise kind(f"{path}: is a {actual}, not {expected}")
    return status.st_size


@contextmanager
def written_atomically(path: Path, kind: type[InputError]) -> Iterator[Path]:
    """A scratch file that replaces `path` at the end: readers see the old file or the new one.

    Raises:
        InputError: an OSError, as `kind`.
    """
    scratch = path.parent / f".purify-audit.{os.getpid()}{path.suffix}"
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        raise kind(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):  # after a replacement there is none
            scratch.unlink()


def leaves_folder(folder: Path, path: Path) -> bool:
    """Whether a file in a folder is a link to a place outside of it.

    The Hugging Face Hub's cache is allowed: its `snapshots/REVISION/` contains only links into
    `blobs/` (https://huggingface.co/docs/hub/local-cache).
    """
    root, target = folder.resolve(), path.resolve()
    blobs = [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]
    return not any(target.is_relative_to(allowed) for allowed in (root, *blobs))
