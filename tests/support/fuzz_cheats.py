"""Readers that do what no reader may, for the fuzzer to notice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fuzz_worker import Sample

from purify_audit.core.errors import CheckpointError

_CONTENT = b"0123456789" * 9


def _raises_key_error(path):
    raise KeyError(path)


def _hides_memory(path):
    try:
        bytearray(2**40)
    except MemoryError:
        raise CheckpointError(f"{path}: cannot be read") from None


def _rambles(path):
    raise CheckpointError("a line\nand another")


def _only_when_damaged(act):
    """The undamaged sample is read; so the fuzzer starts."""

    def read(path):
        if path.read_bytes() != _CONTENT:
            act(path)

    return read


ACTS = {
    "raises": _raises_key_error,
    "hides memory": _hides_memory,
    "rambles": _rambles,
    "writes": lambda _: Path("found").write_text("x"),
    "writes and removes": lambda _: (open("x", "w").close(), os.unlink("x")),
    "runs": lambda _: subprocess.run(["true"], check=False),
    "hangs": lambda _: time.sleep(60),
    "dies": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
}

SAMPLES = tuple(
    Sample(
        name,
        "f.bin",
        lambda path: path.write_bytes(_CONTENT),
        _only_when_damaged(act),
        share=0.2 if name == "dies" else 1,
    )
    for name, act in ACTS.items()
)
