"""`purify-audit stale`: does a report match the models in this directory? No torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from purify_audit.cli.app import EXIT_FAIL, command
from purify_audit.core.errors import ReportError
from purify_audit.core.records import printable

if TYPE_CHECKING:
    from purify_audit.gate.staleness import CheckedModel


@command(alias="fresh")
def stale(
    report: Annotated[Path, typer.Argument(help="Report of `compress`, `attack` or `run`.")] = Path(
        "report.json"
    ),
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="The purifier's file. Default: the one that the report names."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Policy that must be valid. Default: the project's, if it has one."),
    ] = None,
) -> None:
    """Check whether a report matches the models in this directory: 0 current, 1 stale, 2 unknown.

    Compares digests and runs nothing; made for commit hooks.
    """
    from purify_audit.gate.policy import policy_if_any
    from purify_audit.gate.staleness import compare_models
    from purify_audit.report.schema import read_report

    rules = policy_if_any(policy, Path())
    saved = read_report(report)
    if saved.run is None:
        raise ReportError(f"{report}: has no digest of its own, so it may have been changed")
    models = compare_models(saved, (Path.cwd(), report.parent), checkpoint)
    purifier = models[0]
    if purifier.state == "unknown":
        raise ReportError(
            f"{report}: whether it matches {printable(purifier.source)} cannot be checked:"
            f" {purifier.actual.doubt}; give the file with --checkpoint, or audit again"
        )
    changed = [model for model in models if model.state == "stale"]
    print(f"{report} is {'stale' if changed else 'current'}")
    for model in models:
        print(f"  {model.role:<10}  {_line(model)}")
    if rules is not None:
        path = printable(str(policy or rules.file.path.name))
        count = len(rules.policy.rule)
        text = f"{path} {rules.file.sha256[:12]}, {count} {'rule' if count == 1 else 'rules'}"
        print(f"  {'policy':<10}  {text}")
    if changed:
        print("Audit again: `purify-audit run`.")
        raise typer.Exit(EXIT_FAIL)


def _line(model: "CheckedModel") -> str:
    source, expected = printable(model.source), model.expected[:12]
    if model.state == "current":
        return f"{source} {expected}"
    if model.state == "unknown":
        return f"{source} {expected}, not checked: {model.actual.doubt}"
    assert model.actual.value is not None, "only a known digest makes a model stale"
    return f"{source} has changed from {expected} to {model.actual.value[:12]}"
