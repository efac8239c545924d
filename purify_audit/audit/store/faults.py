"""Classification of errors of the file system and of SQLite."""

import errno
import sqlite3
from typing import Literal, TypeAlias

from purify_audit.core.records import printable

Fault: TypeAlias = Literal["full", "damaged", "refused"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class BrokenFile(sqlite3.DatabaseError):
    """SQLite's own check of a file finds a fault."""


def fault_of(error: OSError | sqlite3.Error) -> tuple[Fault, str]:
    """The kind of an error, and its message.

    `full` is the disk or the user's quota; `damaged` is a file that is no database, or a broken
    one; `refused` is all else.
    """
    if isinstance(error, OSError):
        fault: Fault = "full" if error.errno in _FULL else "refused"
        return fault, printable(error.strerror or str(error))
    # The low byte, without the extended code's details.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "full", str(error)
    broken = isinstance(error, BrokenFile) or code in _DAMAGED
    return "damaged" if broken else "refused", printable(str(error))
