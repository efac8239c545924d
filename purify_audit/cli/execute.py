"""Run an audit from the command line: plan, progress, report, exit code."""

import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from purify_audit.cli.app import EXIT_INCONCLUSIVE
from purify_audit.cli.options import OutputOptions, RunOptions

if TYPE_CHECKING:
    from purify_audit.audit.result import AuditResult
    from purify_audit.audit.run import Basis, RunFolder
    from purify_audit.audit.save import RunRecord
    from purify_audit.audit.subject import Subject
    from purify_audit.audit.tuning.tune import OpenSettings
    from purify_audit.cli.progress import Reporter


@dataclass(frozen=True, slots=True)
class Request:
    """What a command asks for beside its subject.

    Attributes:
        out: the report.
        folder: where finished work is stored, and which part is this process's.
        run: options of the run.
        output: what is printed.
        basis: a finished compression report to attack.
    """

    out: Path
    folder: "RunFolder"
    run: RunOptions
    output: OutputOptions
    basis: "Basis | None" = None


def execute(subject: "Subject", request: Request, left_open: "OpenSettings") -> None:
    """Tune, measure and attack as planned, write the report, print it, and exit.

    Raises:
        Exit: see `finish`.
    """
    from purify_audit.audit.cost import planned_evaluations
    from purify_audit.audit.run import run_in_folder
    from purify_audit.audit.tuning.tune import tune
    from purify_audit.cli.progress import Reporter

    started, quiet = now(), request.output.quiet
    console = Console(stderr=True)
    subject, tuning = tune(subject, left_open, teller(console, quiet))
    total = planned_evaluations(subject, compression=request.basis is None)
    if request.run.dry_run:
        return print(cost_line(subject, total))
    if subject.plan.attack is not None and not quiet:
        console.print(cost_line(subject, total), highlight=False)
    limit = request.run.max_seconds
    reporter = Reporter(console, total, quiet, math.inf if limit is None else limit)
    with reporter.running():
        result = run_in_folder(
            subject,
            reporter.progress,
            request.folder,
            basis=request.basis,
            measure_anyway=request.run.measure_anyway,
            tuning=tuning,
        )
    finish(result, reporter, request, started)


def finish(
    result: "AuditResult | None", reporter: "Reporter", request: Request, started: str
) -> None:
    """Write the report and print it; of a part of a run, say that it is stored.

    Raises:
        Exit: interrupted, ended early, or a finding is an error.
    """
    from purify_audit.audit.save import save_result

    out, folder = request.out, request.folder
    if result is None:
        state = "is stored"
        if reporter.stop_signal:
            state = "was interrupted; the same command continues it"
        print(f"part {folder.shard} of {folder.path} {state}")
        raise typer.Exit(128 + reporter.stop_signal if reporter.stop_signal else 0)
    result = save_result(out, result, run_record(reporter, started))
    partial = result.report.status == "partial"
    if folder.path is not None and partial and not request.output.as_json:
        again = shlex.join(["purify-audit", "resume", str(folder.path), "--out", str(out)])
        print(f"Finished work is stored; to continue: {again}")
    _show(result, out, reporter, request.output.as_json)
    if reporter.stop_signal and partial:
        raise typer.Exit(128 + reporter.stop_signal)
    if partial or result.has_errors:
        raise typer.Exit(EXIT_INCONCLUSIVE)


def _show(result: "AuditResult", out: Path, reporter: "Reporter", as_json: bool) -> None:
    if as_json:
        return print(out.read_text(encoding="utf-8"))
    from purify_audit.render.terminal.report import show

    show(Console(), result.report)
    if result.short_of_memory:
        print("Memory ran short: gradients took a second forward pass of every step.")
    print(f"\n{out}  ({reporter.seconds:.0f} s, {reporter.done:,} network evaluations)")


def run_record(reporter: "Reporter", started: str) -> "RunRecord":
    """How this command made its report."""
    from purify_audit.audit.save import RunRecord

    command = shlex.join(["purify-audit", *sys.argv[1:]])
    return RunRecord(command, started, reporter.seconds, reporter.done)


def cost_line(subject: "Subject", evaluations: int) -> str:
    """Planned cost and estimated time."""
    if subject.plan.attack is None:
        from purify_audit.audit.tuning.microbatch import seconds

        time = seconds(subject)
    else:
        from purify_audit.audit.cost import seconds_per_evaluation

        time = evaluations * seconds_per_evaluation(subject)
    # Images that an attack has broken leave it, so its cost is an upper bound.
    most = "" if subject.plan.attack is None else "at most "
    return f"{most}{evaluations:,} network evaluations, about {duration(time)}"


def teller(console: Console, quiet: bool) -> "Callable[[str], None]":
    """Prints a line of progress, unless quiet."""
    return lambda line: None if quiet else console.print(line, highlight=False)


def now() -> str:
    """Local time, ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def duration(seconds: float) -> str:
    """A time in the unit that people would use."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
