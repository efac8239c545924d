"""The limits that every reader of images keeps, and how its errors become sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

from purify_audit.core.errors import ImageError
from purify_audit.core.records import printable

_MAX_BYTES = 16 * 2**30  # of memory for one array, after conversion to float32


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Turn whatever a parser raises over a damaged or hostile file into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and PIL promise no list of what they raise
        text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        reason = printable(text.splitlines()[0])
        raise ImageError(f"{where}: cannot be read: {reason}") from error


def check_memory(where: str | Path, shape: tuple[int, ...], item_bytes: int) -> None:
    """Refuse an array that would not fit.

    Raises:
        ImageError: as float32 or with `item_bytes` a number, it takes more than 16 GiB.
    """
    needed = prod(shape) * max(item_bytes, 4)
    if needed > _MAX_BYTES:
        raise ImageError(
            f"{where}: shape {list(shape)} would take {needed / 2**30:.0f} GiB of memory, more than"
            f" the {_MAX_BYTES / 2**30:.0f} GiB allowed; give fewer images"
        )


def check_inside(folder: Path, path: Path) -> None:
    """Refuse a file found in a folder that is a link to somewhere else.

    The Hugging Face Hub's cache is let through: its `snapshots/REVISION/` holds nothing but links
    into `blobs/` beside it (https://huggingface.co/docs/hub/local-cache).

    Raises:
        ImageError: the link leaves the folder.
    """
    root, target = folder.resolve(), path.resolve()
    blobs = [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]
    if not any(target.is_relative_to(allowed) for allowed in (root, *blobs)):
        raise ImageError(f"{path}: is a link that leaves its folder; put the file itself there")
