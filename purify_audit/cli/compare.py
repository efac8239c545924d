"""`purify-audit compare`: several reports side by side."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from purify_audit.cli import options as o
from purify_audit.cli.app import command
from purify_audit.core.errors import PlanError


@command()
def compare(
    reports: Annotated[list[Path], typer.Argument(help="Reports of `compress` or `attack`.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of resamples and permutations.")] = 0,
    level: o.Level = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no tables.")] = False,
) -> None:
    """Rank purifiers, and correlate what is cheap to measure with aligned robust accuracy."""
    from purify_audit.render.terminal.comparison import show_comparison
    from purify_audit.report.comparison import compare as compare_reports
    from purify_audit.report.schema import read_report

    if not 0.5 < level < 1:
        raise PlanError(f"--level {level:g} is not between 0.5 and 1")
    comparison = compare_reports([(path.name, read_report(path)) for path in reports], seed, level)
    if as_json:
        print(comparison.model_dump_json(indent=1))
    else:
        show_comparison(Console(), comparison)
