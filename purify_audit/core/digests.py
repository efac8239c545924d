"""Digests of files."""

import hashlib
from pathlib import Path

from purify_audit.core.errors import InputError
from purify_audit.core.files import read_errors


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        InputError: it cannot be read.
    """
    with read_errors(path, InputError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
