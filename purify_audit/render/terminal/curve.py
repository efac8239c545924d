"""Terminal table of a sweep."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from purify_audit.render.terminal.style import TABLE
from purify_audit.report.curve import _WIDE, Curve
from purify_audit.report.wording import accuracy, interval


def show_curve(console: Console, curve: list[Curve]) -> None:
    """Print one line for each point."""
    gap = " " if console.width >= _WIDE else "\n"
    table = Table(title="Compression rate (l2), anchors and robust accuracy", **TABLE)
    table.add_column("setting", overflow="fold")
    probes = [p for p in dict.fromkeys(p for point in curve for p in point.rates) if ":" not in p]
    attacked = any(point.robust for point in curve)
    for name in (*probes, "anchors", *(("aligned", "usual") if attacked else ())):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("findings", overflow="fold")
    for point in curve:
        rates = [interval(point.rates[p]) if p in point.rates else "—" for p in probes]
        cells = [*rates, accuracy(point.anchor)]
        cells += [accuracy(point.robust), accuracy(point.usual)] if attacked else []
        shown = [cell.replace(" ", gap, 1) for cell in cells]
        table.add_row(point.setting.title, *shown, " ".join(point.findings))
    console.print(Padding(table, (0, 0, 0, 2)))
