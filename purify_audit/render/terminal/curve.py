"""A sweep in a terminal."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from purify_audit.render.terminal.style import TABLE, cell
from purify_audit.report.curve import Curve
from purify_audit.report.wording import short_text

_WIDE = 110  # columns; narrower consoles show intervals on a line of their own


def show_curve(console: Console, curve: list[Curve]) -> None:
    """Print one line for each point."""
    gap = " " if console.width >= _WIDE else "\n"
    table = Table(
        title="Compression rate (ℓ2), clean and robust accuracy of the purified classifier", **TABLE
    )
    table.add_column("setting", overflow="fold")
    probes = [p for p in dict.fromkeys(p for point in curve for p in point.rates) if ":" not in p]
    attacked = any(point.robust for point in curve)
    for name in (*probes, "anchor", *(("aligned", "usual") if attacked else ())):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("findings", overflow="fold")
    for point in curve:
        texts = [short_text(point.rates.get(probe)) for probe in probes]
        shown = (point.anchor, *((point.robust, point.usual) if attacked else ()))
        cells = [cell(text, gap) for text in (*texts, *map(short_text, shown))]
        table.add_row(point.setting.title, *cells, " ".join(point.findings))
    console.print(Padding(table, (0, 0, 0, 2)))
