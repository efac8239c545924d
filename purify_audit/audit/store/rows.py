"""The SQLite file of one writer: which units it finished."""

import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from purify_audit.audit.store.faults import BrokenFile

_BUSY = 60.0  # seconds to wait while another process reads or commits
_SHA256 = re.compile("[0-9a-f]{64}")  # part of a file's name
_TABLE = """
CREATE TABLE IF NOT EXISTS units(
    phase TEXT, place INTEGER, file TEXT, sha256 TEXT, facts TEXT, PRIMARY KEY(phase, place)
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Row:
    """The record of one finished unit.

    Attributes:
        phase: of the run.
        place: index of the unit within the phase.
        sha256: of the unit (`purify_audit.audit.store`).
        facts: canonical JSON.
    """

    phase: str
    place: int
    sha256: str
    facts: str

    @property
    def file(self) -> str:
        """The name of the unit's file.

        It contains the digest, so two processes that finish the same unit cannot overwrite each
        other's file with different bytes.
        """
        return f"{self.phase}-{self.place:08d}-{self.sha256[:16]}.safetensors"


def connect(path: Path, create: bool) -> sqlite3.Connection:
    """Open a writer's file; a file of zero bytes is empty.

    Raises:
        sqlite3.Error: it cannot be opened or is damaged.
    """
    # Not `mode=ro`: a reader of a dead writer's file must roll back its last transaction.
    uri = f"{path.resolve().as_uri()}?mode={'rwc' if create else 'rw'}"
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY, isolation_level=None)
    try:
        # Text that is not UTF-8 is damaged; it fails the comparison of digests.
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        # The rollback journal, since WAL needs memory that all writers share: one host.
        connection.execute("PRAGMA journal_mode=DELETE")
        # FULL, and the folder is synced once the journal is gone, which is the commit.
        connection.execute("PRAGMA synchronous=EXTRA")
        (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise BrokenFile(state)
        if create:
            connection.execute(_TABLE)
    except BaseException:
        connection.close()
        raise
    return connection


def insert(connection: sqlite3.Connection, row: Row) -> None:
    """Add a row, or replace the row of a removed file, in its own transaction."""
    connection.execute(
        "INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?)",
        (row.phase, row.place, row.file, row.sha256, row.facts),
    )


def select(
    connection: sqlite3.Connection, phase: str | None = None, place: int | None = None
) -> list[Row]:
    """The rows of all units, of a phase, or of one unit.

    A row whose columns do not agree is damaged and is left out.
    """
    where = {"phase": phase, "place": place}
    given = {k: v for k, v in where.items() if v is not None}
    text = "SELECT phase, place, file, sha256, facts FROM units"
    if given:
        text += " WHERE " + " AND ".join(f"{k} = :{k}" for k in given)
    try:
        found = connection.execute(text, given).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return []  # its writer has just begun
    read = [
        (Row(this_phase, this_place, sha256, facts), file)
        for this_phase, this_place, file, sha256, facts in found
        if isinstance(this_place, int) and _SHA256.fullmatch(str(sha256)) and isinstance(facts, str)
    ]
    return [row for row, file in read if row.file == file]
