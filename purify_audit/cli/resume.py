"""`purify-audit resume` and `purify-audit merge`: continue an interrupted or divided run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from purify_audit.cli import options as o
from purify_audit.cli.app import command
from purify_audit.cli.execute import Request, finish, now
from purify_audit.cli.output import must_be_writable

if TYPE_CHECKING:
    from purify_audit.audit.resume import StoredRun

Out = Annotated[
    Path | None,
    typer.Option(
        help="Report file. Default: X.json for a folder X.run, else report.json in it.",
        rich_help_panel="Output",
    ),
]


@command()
def resume(
    output: o.OutputOptions,
    folder: Annotated[Path, typer.Argument(help="The folder given as --run-dir.")],
    out: Out = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Continue an interrupted run; the report equals that of an uninterrupted run."""
    from purify_audit.audit.resume import open_stored_run

    _finish(open_stored_run(folder, allow_pickle=allow_pickle), out, output)


@command()
def merge(
    output: o.OutputOptions,
    folders: Annotated[list[Path], typer.Argument(help="Folders of all parts of one run.")],
    out: Out = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Make the report of a run whose parts were computed by --shard; refuse if one is missing."""
    from purify_audit.audit.resume import merge_parts, open_stored_run

    run = open_stored_run(folders[0], allow_pickle=allow_pickle)
    merge_parts(folders, run)
    _finish(run, out, output)


def _finish(run: "StoredRun", out: Path | None, output: o.OutputOptions) -> None:
    from purify_audit.audit.cost import planned_evaluations
    from purify_audit.audit.resume import resume_run
    from purify_audit.audit.run import RunFolder
    from purify_audit.cli.progress import Reporter

    folder = run.folder
    default = folder.with_suffix(".json") if folder.suffix == ".run" else folder / "report.json"
    path = default if out is None else out
    must_be_writable(path)
    started = now()
    total = planned_evaluations(run.subject, compression=run.basis is None)
    reporter = Reporter(Console(stderr=True), total, output.quiet)
    with reporter.running():
        result = resume_run(run, reporter.progress)
    finish(result, reporter, Request(path, RunFolder(folder), o.RunOptions(), output), started)
