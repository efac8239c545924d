"""Set-up shared by the benchmark scripts: paths, options, provenance and output files."""

import argparse
import json
import platform
import shlex
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from purify_audit.statistics.estimates import Estimate

HERE = Path(__file__).parent
ROOT = HERE.parent
MODELS = ROOT / "models"
DDPM = MODELS / "digits-ddpm.safetensors"
CLASSIFIER = MODELS / "digits-classifier.safetensors"


def parser(doc: str | None, out: str) -> argparse.ArgumentParser:
    """Options of a script, described by the first line of its docstring, with `--out`."""
    options = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    options.add_argument("--out", type=Path, default=HERE / out)
    return options


def command_line() -> str:
    """The command that runs this process."""
    return shlex.join(["python", *sys.argv])


def torch_machine() -> str:
    """Processor kind, threads and torch build."""
    import torch

    threads = torch.get_num_threads()
    return f"{platform.machine()}, {threads} threads, torch {torch.__version__}"


def python_machine() -> str:
    """Processor kind, operating system and Python version."""
    return f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"


def provenance(command: str, machine: str, start: float | None = None) -> dict[str, Any]:
    """Command, date and machine of a measurement, and its duration since `time.monotonic`."""
    origin: dict[str, Any] = {"command": command, "date": date.today().isoformat()}
    origin["machine"] = machine
    return origin if start is None else origin | {"seconds": round(time.monotonic() - start)}


def write(path: Path, result: object) -> None:
    """Write a result as JSON."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def interval(estimate: Estimate) -> list[float | None]:
    """Value, lower and upper limit."""
    return [estimate.value, estimate.lower, estimate.upper]
