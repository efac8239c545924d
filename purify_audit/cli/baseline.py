"""`purify-audit baseline`: save a report to compare later ones with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from purify_audit.cli.app import app
from purify_audit.cli.output import must_be_writable

if TYPE_CHECKING:
    from purify_audit.gate.baseline import Baseline, Comparison
    from purify_audit.statistics.estimates import Estimate

group = typer.Typer(
    help="Save a report as a baseline, show it, or compare a later report with it.",
    no_args_is_help=True,
)
app.add_typer(group, name="baseline")

BaselinePath = Annotated[
    Path, typer.Argument(help="A baseline file, or a report with its rows beside it.")
]
ReportPath = Annotated[Path, typer.Argument(help="A report with its rows beside it.")]


@group.command()
def save(
    report: ReportPath,
    out: Annotated[Path, typer.Argument(help="The baseline file.")] = Path("baseline.safetensors"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a report and its values image by image to one file."""
    from purify_audit.core.errors import PlanError
    from purify_audit.gate.baseline import open_baseline, save_baseline, values_of
    from purify_audit.report.schema import read_report

    must_be_writable(out)
    values = values_of(read_report(report), report.parent)
    if out.exists() and not force:
        before = open_baseline(out)
        raise PlanError(
            f"{out}: holds the baseline {describe(before)}; --force replaces it by"
            f" {describe(values)}"
        )
    save_baseline(out, values)
    print(f"{out}: {describe(values)}")


@group.command()
def show(baseline: BaselinePath) -> None:
    """Print what a baseline holds."""
    from purify_audit.gate.baseline import open_baseline
    from purify_audit.render.terminal.report import show as show_report

    opened = open_baseline(baseline)
    print(describe(opened))
    show_report(Console(), opened.report)


@group.command()
def diff(
    baseline: BaselinePath,
    report: ReportPath,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
) -> None:
    """Print the change of every estimate, paired by image under the same draws."""
    from purify_audit.core.errors import PlanError, ReportError
    from purify_audit.gate.baseline import compare, open_baseline, values_of
    from purify_audit.report.schema import read_report

    if not 0.5 < level < 1:
        raise PlanError(f"--level {level:g} is not between 0.5 and 1")
    new, old = values_of(read_report(report), report.parent), open_baseline(baseline)
    comparison = compare(new, old)
    table = Table(title=f"{describe(new)} against {describe(old)}, {level:.0%} intervals", box=None)
    for column in ("metric", "baseline", "change", "interval", "images"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    refused = set()
    for e in new.report.estimates:
        if e.metric == "rms_gain":
            continue  # a root of a mean: no paired difference
        try:
            table.add_row(*_row(comparison, e, level))
        except ReportError as error:
            refused.add(str(error))
    Console().print(table)
    for message in sorted(refused):
        print(f"not compared: {message}")


def _row(comparison: "Comparison", e: "Estimate", level: float) -> tuple[str, ...]:
    from purify_audit.report.wording import named, number
    from purify_audit.statistics.confidence import looks_behind

    paired = comparison(e, level, looks_behind(e.metric, comparison.new.report.plan))
    change = paired.change
    ends = "—"
    if change.lower is not None and change.upper is not None:
        ends = f"{number(change.lower)} to {number(change.upper)}"
    p = "" if paired.p_value is None else f", p {paired.p_value:.2g}"
    text = f"{change.value:+.4g}"
    return named(e), number(paired.baseline), text, ends + p, str(change.n_images)


def describe(baseline: "Baseline") -> str:
    """A baseline in a few words."""
    report = baseline.report
    when = "" if report.run is None else f", {report.run.started[:10]}"
    name = report.checkpoint.card.name
    return f"{name} {report.checkpoint.sha256[:12]} ({len(report.data.ids)} images{when})"
