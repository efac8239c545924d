"""Writing a report and what goes beside it, whole or not at all; and telling of it."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from purify_audit.cli.app import EXIT_INCONCLUSIVE
from purify_audit.errors import PlanError, PurifyAuditError

if TYPE_CHECKING:
    from purify_audit.attack_samples import AttackSamples
    from purify_audit.progress import Reporter
    from purify_audit.report.schema import Report
    from purify_audit.samples import CompressionSamples
    from purify_audit.settled import Settled


@dataclass(frozen=True, slots=True)
class Made:
    """A report, the rows it was made of, and what a report's `run` part tells.

    Attributes:
        report: what was found.
        samples: of compression.
        attacks: of the attacks.
        short: whether memory ran short on the way.
        settled: what was found out beforehand.
    """

    report: "Report"
    samples: "CompressionSamples | None"
    attacks: "AttackSamples | None"
    short: bool = False
    settled: "Settled | None" = None


def must_be_writable(out: Path) -> None:
    """Refuse, before spending anything, a report that could not be written.

    Raises:
        PlanError: the folder does not exist or cannot be written to, or the file is a folder.
    """
    if not out.parent.is_dir():
        raise PlanError(f"{out}: the folder {out.parent} does not exist")
    if out.is_dir():
        raise PlanError(f"{out}: is a folder, not a file to write")
    if not os.access(out.parent, os.W_OK):
        raise PlanError(f"{out}: the folder {out.parent} is not writable")


def write(
    out: Path,
    made: Made,
    reporter: "Reporter",
    started: str,
) -> Made:
    """Write rows and report, each whole or not at all; the report names the rows' digests.

    Raises:
        PurifyAuditError: the disk refuses.
    """
    from purify_audit.attack_samples import save_attacks
    from purify_audit.digests import file_sha256
    from purify_audit.report.schema import RunInfo
    from purify_audit.samples import save_samples

    rows, attacks = (out.with_name(f"{out.stem}.{n}.safetensors") for n in ("rows", "attack"))
    save: dict[Path, Callable[[Path], None]] = {}
    if made.samples is not None:
        samples = made.samples
        save[rows] = lambda path: save_samples(path, samples)
    if made.attacks is not None:
        attacked = made.attacks
        save[attacks] = lambda path: save_attacks(path, attacked)
    scratch = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in (out, *save)}
    try:
        for path, to in save.items():
            to(scratch[path])
        digests = {path: file_sha256(scratch[path]) for path in save}
        report = made.report.model_copy(
            update={"rows_sha256": digests.get(rows), "attacks_sha256": digests.get(attacks)}
        )
        run = RunInfo(
            command=shlex.join(["purify-audit", *sys.argv[1:]]),
            started=started,
            seconds=round(reporter.seconds, 3),
            evaluations=reporter.done,
            rows_file=rows.name if rows in save else None,
            attacks_file=attacks.name if attacks in save else None,
            settled=made.settled,
            short_of_memory=made.short,
            body_sha256=report.body_sha256(),
        )
        report = report.model_copy(update={"run": run})
        scratch[out].write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for path in (*save, out):
            os.replace(scratch[path], path)
    except OSError as error:
        raise PurifyAuditError(f"{out}: cannot be written: {error.strerror}") from None
    finally:
        for path in scratch.values():
            path.unlink(missing_ok=True)
    return replace(made, report=report)


def tell(out: Path, made: Made, reporter: "Reporter", as_json: bool) -> None:
    """Print the report and end with the exit code it deserves.

    Raises:
        Exit: interrupted, ended early, or a finding is an error.
    """
    if as_json:
        print(out.read_text(encoding="utf-8"))
    else:
        from purify_audit.report.console import show

        show(Console(), made.report)
        if made.short:
            print("Memory ran short: gradients took a second forward pass of every step.")
        print(f"\n{out}  ({reporter.seconds:.0f} s, {reporter.done:,} network evaluations)")
    if reporter.stop_signal and made.report.status == "partial":
        raise typer.Exit(128 + reporter.stop_signal)
    partial = made.report.status == "partial"
    if partial or any(f.severity == "error" for f in made.report.findings):
        raise typer.Exit(EXIT_INCONCLUSIVE)
