"""`purify-audit fresh`: is the committed report about the committed models? No torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from purify_audit.cli.app import EXIT_FAIL, app
from purify_audit.errors import ReportError
from purify_audit.record import printable

if TYPE_CHECKING:
    from purify_audit.gate.fresh import Held


@app.command()
def fresh(
    report: Annotated[
        Path, typer.Argument(help="A report of `compress`, `verify` or `run`.")
    ] = Path("report.json"),
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="The purifier's file. Default: where the report says that it was."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="A policy that must be valid. Default: the project's, if it has one."),
    ] = None,
) -> None:
    """Tell whether a report is about the models that lie here: 0 fresh, 1 stale, 2 unknown.

    Compares digests and runs nothing; made for hooks.
    """
    from purify_audit.gate.fresh import held_against
    from purify_audit.gate.policy import policy_if_any
    from purify_audit.report.schema import read_report

    rules = policy_if_any(policy, Path())
    saved = read_report(report)
    if saved.run is None:
        raise ReportError(f"{report}: holds no digest of its own, so it may have been changed")
    held = held_against(saved, (Path.cwd(), report.parent), checkpoint)
    purifier = held[0]
    if purifier.state == "unknown":
        raise ReportError(
            f"{report}: whether it is about this {printable(purifier.source)} cannot be told:"
            f" {purifier.here.doubt}; name its file with --checkpoint, or audit again"
        )
    stale = [model for model in held if model.state == "stale"]
    print(f"{report} is {'stale' if stale else 'fresh'}")
    for model in held:
        print(f"  {model.role:<10}  {_told(model)}")
    if rules is not None:
        path = printable(str(policy or rules.file.path.name))
        count = len(rules.policy.rule)
        told = f"{path} {rules.file.sha256[:12]}, {count} {'rule' if count == 1 else 'rules'}"
        print(f"  {'policy':<10}  {told}")
    if stale:
        print("Audit again: `purify-audit run`.")
        raise typer.Exit(EXIT_FAIL)


def _told(model: "Held") -> str:
    source, expected = printable(model.source), model.expected[:12]
    if model.state == "fresh":
        return f"{source} {expected}"
    if model.state == "unknown":
        return f"{source} {expected}, not checked: {model.here.doubt}"
    assert model.here.value is not None, "a model is stale by its digest"
    return f"{source} is {model.here.value[:12]}; the report is about {expected}"
