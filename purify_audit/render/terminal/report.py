"""The report as a person reads it in a terminal."""

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from purify_audit.core.records import printable
from purify_audit.render.terminal.attack import attack_parts
from purify_audit.render.terminal.style import TABLE
from purify_audit.report.schema import Report
from purify_audit.report.wording import describe, interval, radius
from purify_audit.spec.card import ClassifierCard
from purify_audit.statistics.estimates import Estimate

_STYLE = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def show(console: Console, report: Report) -> None:
    """Print a report: what was audited, what was measured, what it means, what is wrong."""
    console.print(_heading(report))
    parts: list[RenderableType] = []
    if _pick(report, "compression_rate", "l2"):
        parts += [_rates(report), _geometry(report)]
        parts += [Text.from_markup(line) for line in _reading(report)]
    if report.attack is not None:
        parts += attack_parts(report)
    parts += [_finding_lines(report)]
    console.print(Padding(Group(*parts), (0, 0, 0, 2)))


def _heading(report: Report) -> Table:
    plan, model = report.plan, report.checkpoint
    table = Table.grid(padding=(0, 2))
    assert not isinstance(model.card, ClassifierCard)
    rows = {
        "purifier": f"[bold]{escape(printable(model.card.name))}[/]  {describe(model.card)}, "
        f"{_calls(model.evaluations)} [dim]{model.sha256[:12]}[/]",
        "images": f"{len(report.data.ids)} of {escape(printable(report.data.source))}, "
        f"{plan.draws} {'draw' if plan.draws == 1 else 'draws'} each [dim]seed {plan.seed}[/]",
    }
    if (recognised := model.recognised) is not None:
        unpickled = ", [bold red]unpickled: code in it may have run[/]"
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
        rows["status"] = "[bold red]PARTIAL[/]: stopped before the plan was done"
    for name, value in rows.items():
        table.add_row(f"[dim]{name}[/]", value)
    return table


def _calls(evaluations: int | None) -> str:
    return "1 evaluation" if evaluations == 1 else f"{evaluations} network evaluations"


def _rates(report: Report) -> Table:
    level = f"{report.plan.level:.0%}"
    table = Table(
        title=f"Compression rate ‖P(x+δ) − P(x)‖ / ‖δ‖ under one draw, {level} intervals",
        **TABLE,
    )
    several = len({e.eps for e in report.estimates if e.probe}) > 1
    table.add_column("probe")
    if several:
        table.add_column(f"{report.plan.norm} radius", justify="right")
    for column in ("rate l2", "rate linf", "fresh draw l2", "randomness"):
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
        shown = ["[dim]—[/]" if cell is None else interval(cell) for cell in cells]
        table.add_row(str(e.probe), *at, *shown)
    return table


def _geometry(report: Report) -> Table:
    table = Table(title="Where images go, in pixel units", **TABLE)
    for column in ("distance from the clean image", "l2", "linf"):
        table.add_column(column, justify="left" if column[0] == "d" else "right")
    first = _pick(report, "compression_rate", "l2")[0]
    at = "" if first.eps is None else f", {first.probe} at {radius(first.eps)}"
    rows = {
        f"attacked ‖δ‖{at}": "distance_delta",
        "purified clean ‖P(x) − x‖": "distance_anchor",
        "purified attacked ‖P(x+δ) − x‖": "distance_purified",
    }
    for label, metric in rows.items():
        cells = [
            report.find(metric, norm, None if metric == "distance_anchor" else first)
            for norm in ("l2", "linf")
        ]
        table.add_row(label, *["—" if c is None else interval(c) for c in cells])
    return table


def _reading(report: Report) -> Iterator[str]:
    """Sentences that say what the numbers mean, and no more than they do."""
    first = _pick(report, "compression_rate", "l2")[0]
    spread = next(
        q
        for q in report.quantiles
        if (q.metric, q.norm, q.probe, q.eps) == (first.metric, "l2", first.probe, first.eps)
    )
    yield (
        f"A {first.probe} perturbation keeps [bold]{first.value:.0%}[/] of its length (l2);"
        f" over images, 5% to 95%: {spread.quantiles[0]:.2f} to {spread.quantiles[4]:.2f}."
    )
    power = [e for e in _pick(report, "compression_rate", "l2") if e.probe == "power"]
    if power and power[0].eps == first.eps:
        verb = "stretched" if power[0].value > 1 else "kept"
        yield (
            f"The direction found by power iteration is {verb} to [bold]{power[0].value:.0%}[/]:"
            " what an attacker may find, not what a random one does."
        )
    unaligned = report.find("unaligned_ratio", "l2", first)
    if unaligned is not None and first.value > 0:
        yield (
            f"With a fresh draw on one side the ratio is {unaligned.value / first.value:.1f} times"
            " as large."
        )
    moved, delta = (report.find(m, "l2", first) for m in ("distance_purified", "distance_delta"))
    if moved is not None and delta is not None:
        yield (
            f"The purified image lies {_farther(moved, delta)} the clean one"
            f" {'as' if _farther(moved, delta).startswith('about') else 'than'} the attacked image"
            f" did (l2): {moved.value / delta.value:.2f} times its distance."
        )
    clean, anchor = (report.find(f"{which}_accuracy", None) for which in ("clean", "anchor"))
    if clean is not None and anchor is not None:
        yield f"Classifier: clean images {interval(clean)}, anchors [bold]{interval(anchor)}[/]."


def _farther(moved: Estimate, delta: Estimate) -> str:
    """Decided on the intervals, not on the values."""
    if moved.lower is not None and delta.upper is not None and moved.lower > delta.upper:
        return "farther from"
    if moved.upper is not None and delta.lower is not None and moved.upper < delta.lower:
        return "nearer to"
    return "about as far from"


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
