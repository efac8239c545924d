"""A report in a terminal."""

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from purify_audit.core.records import printable
from purify_audit.render.summary import summary
from purify_audit.render.terminal.attack import attack_parts
from purify_audit.render.terminal.style import TABLE, cell
from purify_audit.report.schema import Report
from purify_audit.report.wording import count, describe, norm_text, radius, short_text
from purify_audit.spec.card import ClassifierCard
from purify_audit.statistics.estimates import Estimate

_STYLE = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def show(console: Console, report: Report) -> None:
    """Print a report: subject, tables, summary and findings."""
    console.print(_heading(report))
    parts: list[RenderableType] = []
    if _pick(report, "compression_rate", "l2"):
        parts += [_rates(report), _geometry(report)]
    if report.attack is not None:
        parts += attack_parts(report)
    parts += [*map(Text, summary(report)), _finding_lines(report)]
    console.print(Padding(Group(*parts), (0, 0, 0, 2)))


def _heading(report: Report) -> Table:
    plan, model = report.plan, report.checkpoint
    table = Table.grid(padding=(0, 2))
    assert not isinstance(model.card, ClassifierCard)
    rows = {
        "purifier": f"[bold]{escape(printable(model.card.name))}[/]  {describe(model.card)}, "
        f"{count(model.evaluations or 0, 'network evaluation')} [dim]{model.sha256[:12]}[/]",
        "images": f"{len(report.data.ids)} of {escape(printable(report.data.source))}, "
        f"{count(plan.draws, 'draw')} each [dim]seed {plan.seed}[/]",
    }
    if (recognised := model.recognised) is not None:
        unpickled = ", [bold red]unpickled: its code may have run[/]"
        rows["format"] = f"{recognised.format} ({recognised.container})" + (
            unpickled if recognised.unpickled else ""
        )
        assumed = [f"{escape(a.what)} {escape(a.value)}" for a in recognised.assumptions]
        if assumed:
            rows["assumed"] = "; ".join(assumed)
    if model.draws:
        rows["draws"] = "; ".join(
            f"{d.count} {escape(d.operator)} {escape(str(list(d.shape)))} at {escape(d.where)}"
            for d in model.draws
        )
    if report.classifier is not None:
        rows["classifier"] = escape(printable(report.classifier.card.name))
    if report.status == "partial":
        rows["status"] = "[bold red]PARTIAL[/]: stopped before the plan was complete"
    for name, value in rows.items():
        table.add_row(f"[dim]{name}[/]", value)
    return table


def _rates(report: Report) -> Table:
    level = f"{report.plan.level:.0%}"
    table = Table(
        title=f"Compression rate ‖P(x+δ) − P(x)‖ / ‖δ‖ under one draw, {level} intervals",
        **TABLE,
    )
    several = len({e.eps for e in report.estimates if e.probe}) > 1
    table.add_column("probe")
    if several:
        table.add_column(f"{norm_text(report.plan.norm)} radius", justify="right")
    for column in ("rate ℓ2", "rate ℓ∞", "unaligned ℓ2", "randomness"):
        table.add_column(column, justify="right")
    for e in _pick(report, "compression_rate", "l2"):
        cells = [
            report.find(metric, norm, e)
            for metric, norm in (
                ("compression_rate", "l2"),
                ("compression_rate", "linf"),
                ("unaligned_ratio", "l2"),
                ("randomness_share", None),
            )
        ]
        at = [radius(e.eps)] if several else []
        table.add_row(str(e.probe), *at, *(cell(short_text(found)) for found in cells))
    return table


def _geometry(report: Report) -> Table:
    table = Table(title="Distance from the clean image, in pixel units", **TABLE)
    for column in ("image", "ℓ2", "ℓ∞"):
        table.add_column(column, justify="left" if column == "image" else "right")
    first = _pick(report, "compression_rate", "l2")[0]
    at = "" if first.eps is None else f", {first.probe} at {radius(first.eps)}"
    rows = {
        f"perturbed ‖δ‖{at}": "distance_delta",
        "purified clean ‖P(x) − x‖": "distance_anchor",
        "purified perturbed ‖P(x+δ) − x‖": "distance_purified",
    }
    for label, metric in rows.items():
        cells = [
            report.find(metric, norm, None if metric == "distance_anchor" else first)
            for norm in ("l2", "linf")
        ]
        table.add_row(label, *(cell(short_text(found)) for found in cells))
    return table


def _finding_lines(report: Report) -> Group:
    if not report.findings:
        return Group(Text("No findings.", style="green"))
    lines: list[RenderableType] = []
    for f in report.findings:
        lines.append(Text(f"{f.code} {f.severity}: {f.sentence}", style=_STYLE[f.severity]))
        lines.append(Padding(Text(f.advice, style="dim"), (0, 0, 0, 6)))
    return Group(*lines)


def _pick(report: Report, metric: str, norm: str) -> list[Estimate]:
    return [e for e in report.estimates if e.metric == metric and e.norm == norm]
