"""Fuzz test: are damaged files refused with an error message? Mutates small valid files.

    python benchmarks/fuzz_formats.py --files 50000 --seed 1 --write

Each file is a valid one of `fuzz_samples.py` with damage of `fuzz_mutations.py`, decided by the
seed and its number. A process of its own reads it (`fuzz_worker.py`), with limits on memory and
time, and watched for writing files, starting processes and opening sockets. A file must be read or
refused with an `InputError`; anything else is a fault: it is printed and kept, and the exit code
is 1. `--first N --files 1` makes file N again.
"""

import argparse
import json
import os
import platform
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import parser, write

HERE = Path(__file__).parent
_BATCH = 500
_START_SECONDS = 120.0  # to import everything and to make the samples
_PATIENCE = 20.0  # seconds beyond the worker's own limit, before it is killed


class Reader:
    """A worker process, started again whenever it dies."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        """Make the folders that it works in, and those that must stay empty."""
        self.folder, self.options = folder, options
        self.process: subprocess.Popen[bytes] | None = None
        self.text = b""
        for name in ("cwd", "home", "tmp"):
            (folder / name).mkdir()

    def _start(self) -> subprocess.Popen[bytes]:
        o = self.options
        command = [sys.executable, str(HERE / "fuzz_worker.py"), o.samples, str(self.folder)]
        command += [str(o.seed), str(o.seconds), str(o.megabytes)]
        folders = {"HOME": "home", "TMPDIR": "tmp", "XDG_CACHE_HOME": "home", "HF_HOME": "home"}
        environment = os.environ | {k: str(self.folder / v) for k, v in folders.items()}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.text = b""
        with (self.folder / "errors.txt").open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=self.folder / "cwd",
                env=environment,
            )
        if self._line(self.process, _START_SECONDS) is None:
            raise RuntimeError(f"the worker does not start: {self._errors()}")
        return self.process

    def _errors(self) -> str:
        return (self.folder / "errors.txt").read_text(errors="replace")[-3000:]

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        """The worker's next line, or none if it is dead or silent for too long."""
        assert process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self.text:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            more = os.read(process.stdout.fileno(), 2**16) if ready else b""
            if not more:
                return None
            self.text += more
        line, _, self.text = self.text.partition(b"\n")
        return dict(json.loads(line))

    def read(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        """What the worker tells of files in a range; of one that kills it, what is left to say."""
        process = self.process or self._start()
        assert process.stdin is not None
        process.stdin.write(f"{first} {last}\n".encode())
        process.stdin.flush()
        number = first
        while (record := self._line(process, self.options.seconds + _PATIENCE)) is not None:
            yield record
            if "peak" in record:
                return
            number += 1
        self.stop()
        fault = f"the process ended with {process.returncode}: {self._errors()}"
        yield {"number": number, "sample": "?", "outcome": "died", "fault": fault, "seconds": 0.0}
        if number + 1 < last:
            yield from self.read(number + 1, last)

    def stop(self) -> None:
        """Kill the worker, if there is one, and clear away what it left."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


def fuzz(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Read all files; counts of outcomes by sample, faults, the slowest file, peak memory in MB."""
    reader = Reader(options, folder)
    counts: dict[str, Counter[str]] = {}
    summary: dict[str, Any] = {"faults": [], "slowest": {"seconds": 0.0}, "peak_megabytes": 0}
    last = options.first + options.files
    try:
        for first in range(options.first, last, _BATCH):
            for record in reader.read(first, min(first + _BATCH, last)):
                if "peak" in record:
                    summary["peak_megabytes"] = max(summary["peak_megabytes"], record["peak"])
                    continue
                counts.setdefault(record["sample"], Counter())[record["outcome"]] += 1
                if record["seconds"] > summary["slowest"]["seconds"]:
                    summary["slowest"] = {k: record[k] for k in ("number", "sample", "seconds")}
                if "fault" in record:
                    summary["faults"].append(record)
                    _keep(record, options, folder)
            print(
                f"{min(first + _BATCH, last) - options.first} files, "
                f"{len(summary['faults'])} faults",
                flush=True,
            )
    finally:
        reader.stop()
    ordered = {name: dict(counts[name].most_common()) for name in sorted(counts)}
    total: Counter[str] = sum(counts.values(), Counter())
    return {"outcomes": dict(total.most_common()), "by_sample": ordered, **summary}


def _keep(record: dict[str, Any], options: argparse.Namespace, folder: Path) -> None:
    """Print a fault, and move the file that made it to where it can be looked at."""
    kept = options.keep / f"{options.seed}-{record['number']}"
    place = f"seed {options.seed} file {record['number']} ({record['sample']})"
    print(f"FAULT {place}: {record['outcome']}")
    print(f"  {record['fault']}\n  kept in {kept}", flush=True)
    shutil.rmtree(kept, ignore_errors=True)
    aside = folder / "faults" / str(record["number"])  # unless it killed the worker
    shutil.copytree(aside if aside.exists() else folder / "work", kept)


def main() -> None:
    """Fuzz, print, write."""
    flags = parser(__doc__, "fuzz_formats.json")
    flags.add_argument("--files", type=int, default=1000)
    flags.add_argument("--first", type=int, default=0, help="number of the first file")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--seconds", type=float, default=10.0, help="allowed for one file")
    flags.add_argument("--megabytes", type=int, default=1024, help="allowed above the imports")
    flags.add_argument("--samples", default="fuzz_samples", help="module with SAMPLES")
    flags.add_argument("--keep", type=Path, default=HERE.parent / "out" / "fuzz")
    flags.add_argument("--write", action="store_true", help="record the counts")
    options = flags.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        found = fuzz(options, Path(folder))
    result = {
        "command": f"python benchmarks/fuzz_formats.py --files {options.files} --seed"
        f" {options.seed} --write",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "torch": version("torch"),
        "files": options.files,
        "seed": options.seed,
        "duration_seconds": round(time.monotonic() - start),
        **found,
    }
    if options.write:
        write(options.out, result)
    print(json.dumps({k: result[k] for k in result if k != "faults"}, indent=1))
    sys.exit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
