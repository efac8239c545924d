"""Writing files from the command line."""

import os
import sys
from pathlib import Path

from purify_audit.core.errors import PlanError, PurifyAuditError


def must_be_writable(out: Path) -> None:
    """Refuse, before anything is computed, a file that could not be written.

    Raises:
        PlanError: the folder does not exist or cannot be written to, or the file is a folder.
    """
    if not out.parent.is_dir():
        raise PlanError(f"{out}: the folder {out.parent} does not exist")
    if out.is_dir():
        raise PlanError(f"{out}: is a folder, not a file to write")
    if not os.access(out.parent, os.W_OK):
        raise PlanError(f"{out}: the folder {out.parent} is not writable")


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all; `-` is standard output.

    Raises:
        PurifyAuditError: the disk refuses.
    """
    if str(path) == "-":
        sys.stdout.write(text)
        return
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        raise PurifyAuditError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        scratch.unlink(missing_ok=True)
