"""`purify-audit report`: render a saved report; measures nothing. No torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from purify_audit.cli import judging as j
from purify_audit.cli.app import command
from purify_audit.cli.output import write_text
from purify_audit.core.errors import PlanError

if TYPE_CHECKING:
    from purify_audit.report.saved import SavedReport

Where = Annotated[Path | None, typer.Option(help="Write it there; - is standard output.")]


@command()
def report(
    source: Annotated[
        Path | None, typer.Argument(help="Report of `compress`, `attack` or `run`.")
    ] = None,
    level: Annotated[
        float | None, typer.Option(help="Intervals at this confidence level. Default: its own.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Judge it too; see `gate`. Default: nothing is judged.")
    ] = None,
    baseline: j.BaselineFile = None,
    html: j.Html = None,
    markdown: j.Markdown = None,
    csv: Annotated[Path | None, typer.Option(help="Write per-image results as CSV.")] = None,
    per_image: Annotated[
        Path | None, typer.Option("--per-image", help="The same as safetensors.")
    ] = None,
    model_card: Annotated[
        Path | None,
        typer.Option("--model-card", help="Hugging Face model-card metadata (YAML front matter)."),
    ] = None,
    eval_results: Annotated[
        Path | None, typer.Option("--eval-results", help="Hugging Face evaluation results (YAML).")
    ] = None,
    ml_bom: Annotated[
        Path | None, typer.Option("--ml-bom", help="CycloneDX ML-BOM (JSON).")
    ] = None,
    gitlab_metrics: j.GitlabMetrics = None,
    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", help="Write the JSON Schema of reports.")
    ] = None,
    policy_schema: Annotated[
        Path | None, typer.Option("--policy-schema", help="Write the JSON Schema of policies.")
    ] = None,
) -> None:
    """Render a saved report: HTML, Markdown, CSV and files for other tools; or print it."""
    if json_schema is not None:
        from purify_audit.report.schema import json_schema as schema_of_reports

        write_text(json_schema, schema_of_reports())
    if policy_schema is not None:
        from purify_audit.gate.policy import policy_schema as schema_of_policies

        write_text(policy_schema, schema_of_policies())
    if source is None:
        if json_schema is None and policy_schema is None:
            raise PlanError("name a report to render")
        return
    from purify_audit.report.saved import open_report

    saved, judgement = open_report(source, level), None
    if policy is not None:
        from purify_audit.gate.policy import read_policy
        from purify_audit.gate.saved import judge_saved, policy_baseline

        rules = read_policy(policy, Path())
        judgement = judge_saved(saved, rules, policy_baseline(rules, baseline))
    files = j.Files(html=html, markdown=markdown, gitlab_metrics=gitlab_metrics)
    files.write(saved, judgement)
    _write_data(saved, csv, per_image)
    wanted = {"model_card": model_card, "eval_results": eval_results, "ml_bom": ml_bom}
    _write_metadata(saved, {name: path for name, path in wanted.items() if path is not None})
    written = (html, markdown, gitlab_metrics, csv, per_image, *wanted.values())
    if not any((*written, json_schema, policy_schema)):
        from purify_audit.render.terminal.report import show

        show(Console(), saved.report)


def _write_data(saved: "SavedReport", csv: Path | None, per_image: Path | None) -> None:
    if csv is None and per_image is None:
        return
    from purify_audit.render.tables import csv_text, per_image_rows, save_per_image

    rows = per_image_rows(saved.report, saved.samples(), saved.attacks())
    if csv is not None:
        write_text(csv, csv_text(rows))
    if per_image is not None:
        save_per_image(per_image, rows)


def _write_metadata(saved: "SavedReport", wanted: dict[str, Path]) -> None:
    if not wanted:
        return
    from purify_audit.render.bom import ml_bom
    from purify_audit.render.markdown.model_card import eval_results, model_index

    make = {"model_card": model_index, "eval_results": eval_results, "ml_bom": ml_bom}
    for name, path in wanted.items():
        write_text(path, make[name](saved.report))
