"""Limits of every image reader, and the conversion of parser errors into `ImageError`."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

from purify_audit.core.errors import ImageError
from purify_audit.core.files import leaves_folder
from purify_audit.core.records import printable

_MAX_BYTES = 16 * 2**30  # memory of one array, after conversion to float32


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Raise an ImageError for any exception of a parser on a damaged or hostile file."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and PIL do not document which
        text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        reason = printable(text.splitlines()[0])
        raise ImageError(f"{where}: cannot be read: {reason}") from error


def check_memory(where: str | Path, shape: tuple[int, ...], item_bytes: int) -> None:
    """Reject an array that exceeds the memory limit.

    Raises:
        ImageError: as float32 or at `item_bytes` per number it takes more than 16 GiB.
    """
    needed = prod(shape) * max(item_bytes, 4)
    if needed > _MAX_BYTES:
        raise ImageError(
            f"{where}: shape {list(shape)} would take {needed / 2**30:.0f} GiB of memory, more than"
            f" the {_MAX_BYTES / 2**30:.0f} GiB allowed; give fewer images"
        )


def check_inside(folder: Path, path: Path) -> None:
    """Reject a link out of the folder (`leaves_folder`) with an ImageError."""
    if leaves_folder(folder, path):
        raise ImageError(f"{path}: is a link that leaves its folder; put the file itself there")


def size_error(
    where: str | Path, shape: tuple[int, ...], needed: int, present: int | str
) -> ImageError:
    """The error for an array of another length, in bytes, than its header declares."""
    return ImageError(
        f"{where}: shape {list(shape)} needs {needed} bytes but {present} are present: truncated or"
        " damaged"
    )
