"""Crash test of audits: kills `compress` and `verify` runs with kill -9, and resumes them.

    python benchmarks/kill_runs.py --kills 64 --seed 1 --write

Each run keeps its work in a folder of its own. Its process is killed after a random delay, which
may fall while Python starts, while the folder is opened, while models load, or among the units;
then it is started again, by the same command or by `purify-audit resume`, and killed again. After a
few kills it may end. It is a fault, printed, and the exit code is 1, if the body of the final
report differs from that of a run which was never interrupted, if a unit that was kept is gone or is
computed again, or if a process ends in any other way.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random  # noqa: TID251 - when to kill, from a stated seed

from common import command_line, provenance, python_machine

from purify_audit.audit.store import open_run, read_run
from purify_audit.core.errors import RunError
from purify_audit.report.schema import read_report

HERE = Path(__file__).parent
DDPM = str(HERE.parent / "models" / "digits-ddpm.safetensors")
PHASES = ("compression", "attack", "certify")
_CHAIN = ("--t-star", "4", "--quiet")
_COMPRESS = ("--images", "32", "--probe", "sign", "--draws", "2", "--directions", "1")
_ATTACK = ("--attack", "--images", "8", "--eps", "0.15", "--steps", "2", "--held-out", "1")
RUNS = {
    "compress": ("compress", DDPM, *_COMPRESS, "--microbatch", "1", "--sampler", "ddim:steps=2"),
    "verify": ("verify", DDPM, *_ATTACK, "--microbatch", "1", "--sampler", "one-step"),
}
_KILLS_EACH = 6  # at most
_STARTUP = 4.0  # seconds: a kill falls before this, from the start
_AMONG = 0.8  # or before this, from the first new unit
_ENDED_WELL = (0, 3)

Files = dict[str, tuple[int, int]]


@dataclass
class Tally:
    """What happened.

    Attributes:
        kills: by what was killed, and where.
        runs: that were user_images to their end, by kind.
        again: kept units that were computed again.
        faults: sentences.
    """

    kills: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    again: int = 0
    faults: list[str] = field(default_factory=list)


def start(*arguments: str) -> subprocess.Popen[str]:
    """`purify-audit` with these arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", "purify_audit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def end(process: subprocess.Popen[str], tally: Tally, expected: tuple[int, ...]) -> int:
    """Wait for a process; its exit code."""
    _, errors = process.communicate(timeout=300)
    if process.returncode not in expected or errors:
        tally.faults.append(f"a process ended with {process.returncode}: {errors[-2000:]}")
    return process.returncode


def kept(folder: Path) -> Files:
    """The file of every finished unit: when it was written, and its number on the disk."""
    try:
        manifest = read_run(folder)
    except RunError:
        return {}  # not yet begun
    with open_run(folder, manifest, "reader") as store:
        done = {f"{phase}-{place:08d}-" for phase in PHASES for place in store.done(phase)}
    files = {}
    for path in (folder / "units").iterdir():
        if path.name.startswith(tuple(done)):
            state = path.stat()
            files[path.name] = state.st_mtime_ns, state.st_ino
    return files


def kill_once(folder: Path, command: tuple[str, ...], draw: Random, tally: Tally) -> bool:
    """Start a process and kill it at a random moment; whether it ended before that."""
    before = kept(folder)
    process = start(*command)
    if draw.random() < 0.3:
        time.sleep(draw.uniform(0, _STARTUP))
    else:
        units = folder / "units"
        while process.poll() is None and len(list(units.glob("[a-z]*"))) <= len(before):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, _AMONG))
    process.kill()
    ended = end(process, tally, (-signal.SIGKILL, *_ENDED_WELL)) != -signal.SIGKILL
    after = kept(folder)
    tally.again += sum(after.get(name) != state for name, state in before.items())
    if not ended:
        where = "among units" if len(after) > len(before) else "before the first unit"
        tally.kills[f"{command[0]}, {where}"] += 1
    return ended


def try_run(kind: str, place: Path, reference: Path, draw: Random, tally: Tally) -> None:
    """Kill one run a few times, let it end, and check what it says."""
    folder, out = place / "r.run", place / "r.json"
    first = (*RUNS[kind], *_CHAIN, "--run-dir", str(folder), "--out", str(out))
    for n in range(_KILLS_EACH):
        command = first if n % 2 == 0 or not (folder / "manifest.json").exists() else _again(folder)
        if kill_once(folder, command, draw, tally):
            break
    before = kept(folder)
    if not (folder / "manifest.json").exists() or not out.exists():
        command = _again(folder) if (folder / "manifest.json").exists() else first
        end(start(*command), tally, _ENDED_WELL)
    after = kept(folder)
    tally.again += sum(after.get(name) != state for name, state in before.items())
    tally.runs[kind] += 1
    name = f"{kind} {place.name}"
    if not out.exists() or digest(out) != digest(reference):
        tally.faults.append(f"{name}: the report is not that of an uninterrupted run")
    if list(folder.rglob("*.tmp")):
        tally.faults.append(f"{name}: half-written files are left")


def _again(folder: Path) -> tuple[str, ...]:
    return "resume", str(folder), "--quiet"


def digest(report: Path) -> str | None:
    """Of what a report says, whoever computed it."""
    run = read_report(report).run
    return None if run is None else run.body_sha256


def main() -> None:
    """Kill, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write kill_runs.json")
    options = parser.parse_args()
    tally, began, draw = Tally(), time.monotonic(), Random(options.seed)
    units = dict[str, int]()
    with tempfile.TemporaryDirectory() as scratch:
        references = {kind: Path(scratch) / f"{kind}.json" for kind in RUNS}
        for kind, out in references.items():
            folder = out.with_suffix(".run")
            end(
                start(*RUNS[kind], *_CHAIN, "--run-dir", str(folder), "--out", str(out)),
                tally,
                _ENDED_WELL,
            )
            units[kind] = len(kept(folder))
        while sum(tally.kills.values()) < options.kills:
            number = sum(tally.runs.values())
            kind = list(RUNS)[number % len(RUNS)]
            place = Path(scratch) / str(number)
            place.mkdir()
            try_run(kind, place, references[kind], draw, tally)
            print(f"{number + 1} runs, {sum(tally.kills.values())} kills", file=sys.stderr)
    if tally.again:
        tally.faults.append(f"{tally.again} kept units were lost or computed again")
    result = {
        **provenance(command_line(), python_machine(), began),
        "kills": sum(tally.kills.values()),
        "kills_by_place": dict(sorted(tally.kills.items())),
        "runs": dict(sorted(tally.runs.items())),
        "units_of_a_run": units,
        "kept_units_computed_again": tally.again,
        "faults": len(tally.faults),
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, "\n".join(tally.faults), sep="")
    if options.write:
        HERE.joinpath("kill_runs.json").write_text(text)
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
