"""Crash-safe store of finished units, for resuming a run. No torch.

A run folder holds

- `manifest.json`: the inputs of the run; written first, and never modified;
- `units/*.safetensors`: the arrays of one unit each;
- `writer-NAME.sqlite`: which units the process that writes under this name has finished, and the
  facts (JSON) of each; `writer-NAME.lock` keeps a second process from that name.

A unit is done if a row of any writer records it and its file exists. `RunStore.put` writes
the file under another name, syncs it, renames it, syncs the folder, and only then commits the row,
in a transaction that SQLite syncs too. So, if the disk honours
syncs, a crash of the process or the machine leaves each unit either done with its bytes or not
done; a unit is done before `put` returns, and a unit that is done is not lost. Kills at every step
are tested; power loss cannot be tested, and relies on that order.
"""

import operator
import os
import re
import shlex
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from purify_audit.audit.store import disk, rows
from purify_audit.audit.store.faults import fault_of
from purify_audit.audit.store.lock import holder, lock
from purify_audit.audit.store.manifest import (
    JSON,
    begin_or_check,
    canonical,
    manifest_digest,
    read_run,
)
from purify_audit.audit.store.rows import Row
from purify_audit.audit.store.units import Unit, checked, serialised, unit_digest
from purify_audit.core.errors import PurifyAuditError, RunError
from purify_audit.core.records import printable

__all__ = ["JSON", "RunStore", "Unit", "manifest_digest", "open_run", "read_run"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # one file, also where case does not count
_PATIENCE = 1.0  # seconds: another process may be checking whether this writer is dead


def open_run(folder: Path, manifest: Mapping[str, JSON], writer: str = "0") -> "RunStore":
    """Begin a run in a folder, or resume it.

    Args:
        folder: created if it does not exist.
        manifest: everything that determines the results; a folder with another one is refused.
        writer: unique name of this process among the concurrent processes of the run.

    Raises:
        RunError: the folder is another run's, or no run's; another process writes under this
            name; a file is damaged; the folder cannot be written.
        PurifyAuditError: the disk is full.
        ValueError: a writer's name that makes no file name, or NaN in the manifest.
    """
    if not _NAME.fullmatch(writer):
        raise ValueError(f"a writer's name is like 'rank-3', not {writer!r}")
    locked = None
    try:
        begin_or_check(folder, manifest)
        path = folder / f"writer-{writer}.lock"
        locked = lock(path, _PATIENCE)
        if locked is None:
            who = printable(holder(path))
            raise RunError(
                f"{folder}: is in use by {who}, which writes as '{writer}'; wait for it, end it, or"
                " give this process another writer's name"
            )
        return RunStore(folder, writer, locked)
    except OSError as error:
        if locked is not None:
            locked.close()
        fault, why = fault_of(error)
        if fault == "full":
            raise PurifyAuditError(
                f"the disk with {folder} is full: finished units are kept; free space and start"
                " again"
            ) from None
        raise RunError(f"{folder}: cannot hold a run: {why}") from None
    except BaseException:
        if locked is not None:
            locked.close()
        raise


class RunStore:
    """The units of a run, to which this process can add. For one thread.

    Attributes:
        folder: the run folder.
        writer: the name that this process writes under.
    """

    def __init__(self, folder: Path, writer: str, locked: BinaryIO) -> None:
        """Use `open_run`."""
        self.folder, self.writer, self._lock = folder, writer, locked
        self._units = folder / "units"
        self._scratch = self._units / f".{writer}.tmp"
        self._own = folder / f"writer-{writer}.sqlite"
        self._files: dict[Path, sqlite3.Connection] = {}
        self._resume = f"`purify-audit resume {shlex.quote(str(folder))}`"
        self._units.mkdir(exist_ok=True)
        self._scratch.unlink(missing_ok=True)
        self._remove_scratch_of_the_dead()
        try:
            with self._faults(self._own):
                self._connect(self._own)
            disk.sync_folder(folder)
        except BaseException:
            self._disconnect()
            raise

    def __enter__(self) -> Self:
        """The store itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the files and release the writer's name."""
        self._disconnect()
        self._lock.close()

    def done(self, phase: str) -> frozenset[int]:
        """Indices of the units of a phase that this or another process has finished.

        Their files exist; `get` checks their content.

        Raises:
            RunError: a writer's file is damaged.
        """
        with self._faults():
            return frozenset(place for _, place in self._standing(self._rows(phase)))

    def put(
        self,
        phase: str,
        place: int,
        arrays: Mapping[str, np.ndarray],
        facts: Mapping[str, JSON] | None = None,
    ) -> None:
        """Store a finished unit. When this returns, it is on the disk.

        A unit that this writer has already stored is not changed.

        Args:
            phase: of the run, like `anchors`: small letters, digits, `-`, `_`.
            place: index of the unit within the phase, 0 or more.
            arrays: by name; stored bit for bit, in native byte order.
            facts: other values; floats are stored exactly.

        Raises:
            PurifyAuditError: the disk is full, or refuses otherwise; nothing is left of the unit.
            ValueError: a phase, place, name or dtype that cannot be kept, or NaN in `facts`.
        """
        place = operator.index(place)
        if not _NAME.fullmatch(phase) or not 0 <= place < 2**63:
            raise ValueError(f"no unit: phase {phase!r}, place {place}")
        data, text = serialised(arrays), canonical(facts or {})
        row = Row(phase, place, unit_digest(phase, place, text, data), text)
        with self._faults():
            own = self._connect(self._own)
            if any((self._units / r.file).exists() for r in rows.select(own, phase, place)):
                return
            path = self._units / row.file
            stood = path.exists()  # by another writer's hand
            try:
                disk.write_whole(path, data, self._scratch)
                self._commit(row)
            except (OSError, sqlite3.Error):
                if not stood:
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
                raise

    def get(self, phase: str, place: int) -> Unit:
        """A finished unit.

        If several writers finished it, the first by name whose file exists is returned. If no file
        has the stored content, its files are removed, so that it is computed again.

        Raises:
            RunError: the unit is not done, or is damaged.
        """
        with self._faults():
            damaged = False
            for row in self._rows(phase, place):
                with suppress(FileNotFoundError):
                    unit = checked(row, (self._units / row.file).read_bytes())
                    if unit is not None:
                        return unit
                    damaged = True
            if damaged:
                self.forget(phase, place)
        what = f"{self.folder}: unit {place} of phase '{printable(phase)}'"
        if damaged:
            raise RunError(f"{what} is damaged and was removed; {self._resume} computes it again")
        raise RunError(f"{what} is not done; {self._resume} computes it")

    def forget(self, phase: str, place: int) -> None:
        """Mark a unit as not done, for all writers, by removing its files.

        Rows of other writers remain, without effect.
        """
        with self._faults():
            for row in self._rows(phase, place):
                (self._units / row.file).unlink(missing_ok=True)

    def _commit(self, row: Row) -> None:
        rows.insert(self._connect(self._own), row)

    def _rows(self, phase: str | None = None, place: int | None = None) -> Iterator[Row]:
        for path in self._writers():
            with self._faults(path):
                found = rows.select(self._connect(path), phase, place)
            yield from found

    def _writers(self) -> list[Path]:
        return sorted(self.folder.glob("writer-*.sqlite"))

    def _standing(self, found: Iterable[Row]) -> set[tuple[str, int]]:
        vouched = list(found)
        files = set(os.listdir(self._units))  # after the rows, which follow their files
        return {(row.phase, row.place) for row in vouched if row.file in files}

    def _connect(self, path: Path) -> sqlite3.Connection:
        if self._lock.closed:
            raise ValueError("the run store is closed")
        if path not in self._files:
            self._files[path] = rows.connect(path, create=path == self._own)
        return self._files[path]

    def _disconnect(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def _remove_scratch_of_the_dead(self) -> None:
        """Remove partial files of writers whose process has ended."""
        for scratch in self._units.glob(".*.tmp"):
            writer = scratch.name.removeprefix(".").removesuffix(".tmp")
            if not _NAME.fullmatch(writer):
                continue
            if locked := lock(self.folder / f"writer-{writer}.lock"):
                with locked:
                    scratch.unlink(missing_ok=True)

    @contextmanager
    def _faults(self, path: Path | None = None) -> Iterator[None]:
        """Translate disk errors into messages; `path` is the writer's file that is read."""
        again = self._resume
        try:
            yield
        except sqlite3.ProgrammingError:  # not the disk's fault
            raise
        except (OSError, sqlite3.Error) as error:
            fault, why = fault_of(error)
            if fault == "full":
                raise PurifyAuditError(
                    f"the disk with {self.folder} is full: {self._kept()}; free space and run"
                    f" {again}"
                ) from None
            if fault == "damaged":
                raise RunError(
                    f"{path or self._own}: is damaged ({why}); delete this file, and {again}"
                    " computes its units again"
                ) from None
            raise PurifyAuditError(
                f"{path or self.folder}: the disk refuses ({why}): {self._kept()}; run {again}"
                " when it works"
            ) from None

    def _kept(self) -> str:
        """How many units are done, where that can still be read."""
        try:
            files = [rows.select(self._connect(path)) for path in self._writers()]
            n = len(self._standing(row for found in files for row in found))
        except (OSError, sqlite3.Error):
            return "finished units are kept"
        return f"{n} unit{' is' if n == 1 else 's are'} kept"
