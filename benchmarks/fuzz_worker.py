"""Worker of `fuzz_formats.py`: reads damaged files and reports how each attempt ended.

    python fuzz_worker.py MODULE FOLDER SEED SECONDS MEGABYTES

`MODULE.SAMPLES` are the files to damage. Each line of standard input, `FIRST LAST`, is a range of
numbers of files to make; each line of standard output is JSON about one file. Only writing in
FOLDER/work is allowed, and only before a file is read.
"""

import faulthandler
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random  # noqa: TID251 - damage, addressed by a seed
from typing import Any

from fuzz_mutations import damage

from purify_audit.core.errors import InputError

_LONGEST = 2000  # characters of a message
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ACTS = ("os.", "shutil.", "subprocess.", "socket.", "pty.", "ftplib.", "urllib.", "webbrowser.")
_LOOKS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.listxattr", "os.getxattr"}


@dataclass(frozen=True)
class Sample:
    """A kind of file.

    Attributes:
        name: in the counts.
        file: its name, or that of its folder.
        make: writes a valid one at a path.
        read: what a user's command would call; raises InputError for a file that is refused.
        share: how often it is chosen, against others' 1.
        refused: whether even the valid one is refused.
    """

    name: str
    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    share: float = 1.0
    refused: bool = False

    def check(self, folder: Path) -> None:
        """Read the undamaged sample, so that it is damage and not the sample that is refused.

        Raises:
            ValueError: it is refused and should not be, or the other way about.
        """
        fault = "is read"
        try:
            self.read(folder / self.file)
        except InputError as error:
            fault = str(error)
        if (fault != "is read") != self.refused:
            raise ValueError(f"the undamaged sample '{self.name}' {fault}")


class TooLongError(BaseException):
    """Not an Exception: readers turn those into messages."""


class Watchdog:
    """Notices what code does to the world while a file is read (`sys.addaudithook`)."""

    def __init__(self) -> None:
        """From now on, for the life of the process; it sees nothing until it is on."""
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and path != os.devnull:
                self.seen.append(f"opened {path!r} for writing")
        elif event.startswith(_ACTS) and event not in _LOOKS:
            self.seen.append(f"{event}{arguments!r:.200}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Notice, in this block."""
        self.seen, self.on = [], True
        try:
            yield
        finally:
            self.on = False


class Worker:
    """Files by number, and how reading each of them ended."""

    def __init__(self, module: str, folder: Path, seed: int, seconds: float) -> None:
        """Make the samples, where that was not done before, and read each undamaged."""
        self.samples = importlib.import_module(module).SAMPLES
        self.folder, self.seed, self.seconds = folder, seed, seconds
        places = [folder / "samples" / str(k) for k in range(len(self.samples))]
        for sample, place in zip(self.samples, places, strict=True):
            if not (place / "made").exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True)
                sample.make(place / sample.file)
                (place / "made").touch()
            sample.check(place)
        for left in self._left():  # PyTorch and onnxruntime have folders of their own
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self.contents = [_contents(p / s.file) for s, p in zip(self.samples, places, strict=True)]
        self.pool = [content for files in self.contents for content in files.values()]
        self.watch = Watchdog()

    def file(self, number: int) -> tuple[int, Path]:
        """Write a damaged file; the sample it was, and its path."""
        rng = Random(f"{self.seed} {number}")
        weights = [sample.share for sample in self.samples]
        (which,) = rng.choices(range(len(self.samples)), weights)
        files = dict(self.contents[which])
        name = rng.choice(sorted(files))
        files[name] = damage(rng, files[name], self.pool)
        root = self.folder / "work" / self.samples[which].file
        for inner, content in files.items():
            (root / inner).parent.mkdir(parents=True, exist_ok=True)
            (root / inner).write_bytes(content)
        return which, root

    def read(self, number: int) -> dict[str, Any]:
        """Make a file, read it, and tell what came of it; `fault` where that must not be."""
        which, path = self.file(number)
        start = time.perf_counter()
        record = self._outcome(self.samples[which].read, path)
        record |= {"number": number, "sample": self.samples[which].name}
        record["seconds"] = round(time.perf_counter() - start, 3)
        if left := [str(path) for path in self._left()]:
            record["fault"] = f"left files {left}"
        elif self.watch.seen:
            record["fault"] = f"did {self.watch.seen[:3]}"
        if "fault" in record:
            self._set_aside(number)
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        return record

    def _set_aside(self, number: int) -> None:
        """Keep the file that made a fault, and what was left behind, for whoever started this."""
        kept = self.folder / "faults" / str(number)
        shutil.copytree(self.folder / "work", kept, dirs_exist_ok=True)
        for path in self._left():
            shutil.move(path, kept / f"{path.parent.name}-{path.name}")

    def _left(self) -> list[Path]:
        """Files in the folders that reading has no business in."""
        return [p for name in ("cwd", "home", "tmp") for p in (self.folder / name).iterdir()]

    def _outcome(self, read: Any, path: Path) -> dict[str, Any]:
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            with self.watch.reading():
                read(path)
        except InputError as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return {"outcome": type(error).__name__, **_judged(error)}
        except TooLongError:
            return {"outcome": "too long", "fault": f"took more than {self.seconds} seconds"}
        except BaseException as error:  # whatever it is, it is no answer to a user
            fault = "".join(traceback.format_exception(error)[-6:])
            return {"outcome": type(error).__name__, "fault": fault}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return {"outcome": "read"}


def _contents(path: Path) -> dict[str, bytes]:
    """The files of a sample: one called "." or those of a folder."""
    if path.is_file():
        return {".": path.read_bytes()}
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def _judged(error: InputError) -> dict[str, str]:
    """What is wrong about a refusal, if anything: its words, or memory that it took to refuse."""
    message, cause = str(error), error.__context__
    while cause is not None:
        if isinstance(cause, MemoryError) or "alloc" in str(cause):
            return {"outcome": "out of memory", "fault": message[:_LONGEST]}
        cause = cause.__context__
    if not message.isprintable() or not 1 < len(message) < _LONGEST:
        return {"fault": f"a message that is no sentence: {message[:_LONGEST]!r}"}
    return {}


def _limit(megabytes: int) -> None:
    """More address space than now by so much, and no core dumps."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _too_long(*_: object) -> None:
    raise TooLongError


def main() -> None:
    """Serve until standard input ends."""
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries may print
    module, folder, seed, seconds, megabytes = sys.argv[1:]
    worker = Worker(module, Path(folder), int(seed), float(seconds))
    signal.signal(signal.SIGALRM, _too_long)
    _limit(int(megabytes))
    answers.write(json.dumps({"samples": [sample.name for sample in worker.samples]}) + "\n")
    for line in sys.stdin:
        first, last = map(int, line.split())
        for number in range(first, last):
            answers.write(json.dumps(worker.read(number)) + "\n")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        answers.write(json.dumps({"peak": peak}) + "\n")


if __name__ == "__main__":
    main()
