"""Works on a run folder until its units are done; made to be killed anywhere.

    python tests/support/store_worker.py FOLDER --units 20 --seed 3 --log LOG [--writer 0 --of 1]

Unit N of the run is a few arrays that the seed and N decide. Each line of LOG is `start N` or
`done N`, written before a unit is computed and after it was put. A line on standard output says
that the run is open. `--die POINT --at K` is a SIGKILL from within, in the K-th put.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from purify_audit.audit.store import RunStore, open_run
from purify_audit.audit.store.rows import Row, insert

PHASE = "work"
POINTS = (
    "torn-file",
    "before-fsync",
    "before-replace",
    "after-replace",
    "before-commit",
    "mid-commit",
    "after-commit",
)
_DTYPES = ("float64", "float32", "float16", "int64", "uint8", "bool")


def manifest(seed, units):
    return {"seed": seed, "units": units, "eps": 0.1}


def unit(seed, place):
    """Arrays and facts of a unit, always the same."""
    generator = np.random.default_rng([seed, place])
    arrays = {}
    for i in range(generator.integers(0, 5)):
        shape = tuple(generator.integers(0, 20, generator.integers(0, 4)))
        raw = generator.integers(0, 200, shape)
        arrays[f"a{i}"] = np.asarray(raw).astype(str(generator.choice(_DTYPES)))
    return arrays, {"place": place, "mean": float(generator.normal()), "names": sorted(arrays)}


class Death:
    """Has this process killed at a point of its nth put, counted from 0."""

    def __init__(self, point, nth):
        self.point, self.nth, self.puts = point, nth, -1
        self.fsync, self.replace, self.commit = os.fsync, os.replace, RunStore._commit
        os.fsync, os.replace = self.at_fsync, self.at_replace
        RunStore._commit = lambda store, row: self.at_commit(store, row)

    def pass_by(self, *points):
        if self.puts == self.nth and self.point in points:
            os.kill(os.getpid(), signal.SIGKILL)

    def at_fsync(self, handle):
        name = os.readlink(f"/proc/self/fd/{handle}")
        self.puts += "/units/" in name and name.endswith(".tmp")
        if self.point == "torn-file" and self.puts == self.nth:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
        self.pass_by("torn-file", "before-fsync")
        self.fsync(handle)

    def at_replace(self, source, target):
        self.pass_by("before-replace")
        self.replace(source, target)
        self.pass_by("after-replace")

    def at_commit(self, store, row):
        if self.point == "mid-commit" and self.puts == self.nth:
            half_commit(store._connect(store._own))
        self.pass_by("before-commit", "mid-commit")
        self.commit(store, row)
        self.pass_by("after-commit")


def half_commit(connection):
    """Rows that are in the file and not committed: more than SQLite's cache holds back."""
    connection.execute("PRAGMA cache_size=2")
    connection.execute("BEGIN")
    for i in range(60):
        row = Row(PHASE, 10**6 + i, "0" * 64, "x" * 3000)
        insert(connection, row)


def work(options):
    log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    naps = np.random.default_rng(os.getpid())
    run = manifest(options.seed, options.units)
    with open_run(options.folder, run, options.writer) as store:
        print("open", flush=True)
        for place in range(options.share, options.units, options.of):
            if place in store.done(PHASE) and not options.overlap:
                continue
            os.write(log, f"start {place}\n".encode())
            time.sleep(naps.exponential(options.nap))
            store.put(PHASE, place, *unit(options.seed, place))
            os.write(log, f"done {place}\n".encode())


def hold(options):
    """Be in the middle of a put until standard input ends."""
    run = manifest(options.seed, options.units)
    with open_run(options.folder, run, options.writer):
        (options.folder / "units" / f".{options.writer}.tmp").write_bytes(b"half")
        print("open", flush=True)
        sys.stdin.read()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--units", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--writer", default="0")
    parser.add_argument("--share", type=int, default=0, help="the first unit of this writer")
    parser.add_argument("--of", type=int, default=1, help="writers that share the units")
    parser.add_argument("--overlap", action="store_true", help="do units that are done, too")
    parser.add_argument("--nap", type=float, default=0.002, help="mean seconds to compute a unit")
    parser.add_argument("--hold", action="store_true", help="stay until standard input ends")
    parser.add_argument("--die", choices=POINTS)
    parser.add_argument("--at", type=int, default=0)
    options = parser.parse_args()
    if options.die:
        Death(options.die, options.at)
    if options.hold:
        hold(options)
    else:
        work(options)


if __name__ == "__main__":
    main()
