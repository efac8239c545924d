"""Crash test of run folders: kills writers with kill -9, and checks the finished units.

    python benchmarks/kill_store.py --kills 300 --seed 1 --write

Each folder gets one to three writers (`tests/support/store_worker.py`) that share its units. They
are killed in turn: by themselves at a named step inside `put`, or from outside after a random
delay, which may fall while Python starts or while the run is opened. Then one to three writers
finish it. It is a fault, printed, and the exit code is 1, if a unit that was put is computed
again, if more units are computed again than processes were killed, if a unit differs from the
reference in one bit, if a file is left over, or if a worker ends in any other way or says
anything on standard error.
"""

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random  # noqa: TID251 - when to kill, from a stated seed

from common import command_line, provenance, python_machine

HERE = Path(__file__).parent
WORKER = HERE.parent / "tests" / "support" / "store_worker.py"
sys.path.insert(0, str(WORKER.parent))

from store_worker import PHASE, POINTS, manifest, unit  # noqa: E402

from purify_audit.audit.store import RunStore, open_run  # noqa: E402
from purify_audit.core.errors import PurifyAuditError  # noqa: E402

_UNITS = 60
_LONGEST = 0.25  # seconds from the start of a worker to its kill, on average half of it


@dataclass
class Tally:
    """What happened.

    Attributes:
        kills: by where they fell.
        units: put in all folders.
        again: of these, computed a second time.
        lost: of these, put before.
        faults: sentences.
    """

    kills: Counter[str] = field(default_factory=Counter)
    units: int = 0
    again: int = 0
    lost: int = 0
    faults: list[str] = field(default_factory=list)


def start(folder: Path, seed: int, writer: int, of: int, *more: object) -> subprocess.Popen[str]:
    """A worker on its share of a folder's units."""
    command = [sys.executable, WORKER, folder, "--units", _UNITS, "--seed", seed]
    command += ["--log", folder.with_suffix(".log"), "--nap", 0.004]
    command += ["--writer", f"w{writer}", "--share", writer, "--of", of, *more]
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def end(process: subprocess.Popen[str], tally: Tally, expected: tuple[int, ...]) -> int:
    """Wait for a worker; its exit code."""
    _, errors = process.communicate(timeout=120)
    if process.returncode not in expected or errors:
        tally.faults.append(f"a worker ended with {process.returncode}: {errors[-2000:]}")
    return process.returncode


def kill_once(folder: Path, seed: int, of: int, draw: Random, tally: Tally) -> None:
    """Start all writers, have one of them killed, let the others end as they may."""
    victim, point = draw.randrange(of), draw.choice((*POINTS, *["outside"] * 5))
    inside = ("--die", point, "--at", draw.randrange(3)) if point != "outside" else ()
    others = [start(folder, seed, w, of) for w in range(of) if w != victim]
    process = start(folder, seed, victim, of, *inside)
    if point == "outside":
        time.sleep(draw.uniform(0, _LONGEST))
        if draw.randrange(2) and process.stdout is not None:
            process.stdout.readline()  # the run is open: the kill falls among the puts
            time.sleep(draw.uniform(0, _LONGEST))
        process.kill()
    if end(process, tally, (0, -signal.SIGKILL)) == -signal.SIGKILL:
        tally.kills[point] += 1
    for other in others:
        other.kill()
        if end(other, tally, (0, -signal.SIGKILL)) == -signal.SIGKILL:
            tally.kills["outside"] += 1


def try_folder(folder: Path, seed: int, most: int, tally: Tally) -> None:
    """Kill workers on a folder until it is done or enough were killed; then check it."""
    draw = Random(seed)
    of, of_last = draw.randint(1, 3), draw.randint(1, 3)
    before = sum(tally.kills.values())
    for _ in range(12):
        if sum(tally.kills.values()) >= most:
            break
        kill_once(folder, seed, of, draw, tally)
    last = [start(folder, seed, w, of_last) for w in range(of_last)]
    for process in last:
        end(process, tally, (0,))
    check(folder, seed, sum(tally.kills.values()) - before, tally)


def check(folder: Path, seed: int, kills: int, tally: Tally) -> None:
    """Is every unit there, right, and computed no more often than it had to be?"""
    events = [tuple(x.split()) for x in folder.with_suffix(".log").read_text().splitlines()]
    again = sum(what == "start" for what, _ in events) - _UNITS
    tally.units, tally.again = tally.units + _UNITS, tally.again + again
    lost = [e for i, e in enumerate(events) if e[0] == "done" and ("start", e[1]) in events[i:]]
    tally.lost += len(lost)
    faults = [f"unit {place} was put and lost" for _, place in lost]
    if not 0 <= again <= kills:
        faults.append(f"{again} units computed again after {kills} kills")
    with open_run(folder, manifest(seed, _UNITS), "reader") as store:
        if store.done(PHASE) != set(range(_UNITS)):
            faults.append(f"done are {sorted(store.done(PHASE))}")
        faults += [f"unit {n}: {why}" for n in range(_UNITS) if (why := wrong(store, seed, n))]
    left = [p.name for p in folder.rglob("*") if p.name.endswith((".tmp", "-journal"))]
    if left or len(list((folder / "units").iterdir())) != _UNITS:
        faults.append(f"files are left over: {left}")
    tally.faults += [f"folder {seed}: {fault}" for fault in faults]


def wrong(store: RunStore, seed: int, place: int) -> str:
    """What is wrong with a unit; nothing, if it is the reference bit for bit."""
    try:
        found = store.get(PHASE, place)
    except PurifyAuditError as error:
        return str(error)
    arrays, facts = unit(seed, place)
    one, other = (
        {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in some.items()}
        for some in (found.arrays, arrays)
    )
    return "" if (one, found.facts) == (other, facts) else "differs from the reference"


def main() -> None:
    """Kill, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write kill_store.json")
    options = parser.parse_args()
    tally, began, folders = Tally(), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as scratch:
        while sum(tally.kills.values()) < options.kills:
            seed = options.seed * 10_000 + folders
            try_folder(Path(scratch) / f"run-{folders}", seed, options.kills, tally)
            folders += 1
            print(f"{folders} folders, {sum(tally.kills.values())} kills", file=sys.stderr)
    result = {
        **provenance(command_line(), python_machine(), began),
        "sqlite": sqlite3.sqlite_version,
        "folders": folders,
        "units": tally.units,
        "kills": sum(tally.kills.values()),
        "kills_by_place": dict(sorted(tally.kills.items())),
        "units_computed_again": tally.again,
        "finished_units_lost": tally.lost,
        "faults": len(tally.faults),
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, "\n".join(tally.faults), sep="")
    if options.write:
        HERE.joinpath("kill_store.json").write_text(text)
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
