"""A comparison as a person reads it in a terminal, 80 columns wide or more."""

from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from purify_audit.render.terminal.style import TABLE
from purify_audit.report.comparison import Comparison
from purify_audit.report.ranking import Row, ball
from purify_audit.report.wording import interval
from purify_audit.statistics.estimates import Correlation, Estimate

_NONE = "[dim]—[/]"
_WIDE = 120  # columns; narrower consoles get intervals on a line of their own
_HOW = (
    "Intervals: BCa bootstrap over purifiers, as if these were a random sample. p: permutation"
    " test, two-sided, of each coefficient alone."
)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print a comparison: who is ahead, what goes with it, and what to be careful of."""
    gap = " " if console.width >= _WIDE else "\n"
    parts: list[RenderableType] = [_ranking(comparison.rows, gap)]
    if any(row.rates for row in comparison.rows):
        parts.append(_rates(comparison.rows, gap))
    if comparison.associations:
        parts += [_correlations(comparison), Text(_HOW, style="dim"), Text()]
    parts += _cautions(comparison)
    console.print(Padding(Group(*parts), (0, 0, 0, 2)))


def _ranking(rows: tuple[Row, ...], gap: str) -> Table:
    columns: dict[str, Callable[[Row], Estimate | None]] = {
        "aligned robust": lambda row: row.robust,
        "predicted robust": lambda row: row.predicted,
        "anchor": lambda row: row.anchor,
        "clean": lambda row: row.clean,
    }
    shown = {name: get for name, get in columns.items() if any(map(get, rows))}
    attacked = sorted({ball(row.robust) for row in rows if row.robust})
    table = Table(
        title="Accuracy"
        + (f", ranked by aligned robust accuracy ({', '.join(attacked)})" if attacked else "")
        + _level(rows),
        **TABLE,
    )
    table.add_column("#", justify="right")
    table.add_column("purifier", overflow="fold")
    for name in shown:
        table.add_column(name.replace(" ", gap), justify="right", min_width=9)
    for row in rows:
        cells = [_accuracy(get(row), gap) for get in shown.values()]
        table.add_row(_rank(row), "\n".join(_purifier(row)), *cells)
    return table


def _level(rows: tuple[Row, ...]) -> str:
    levels = {e.level for row in rows for e in (row.robust, row.anchor, *row.rates) if e}
    return f", {levels.pop():.0%} intervals" if len(levels) == 1 else ""


def _rank(row: Row) -> str:
    return _NONE if row.rank is None else str(row.rank)


def _purifier(row: Row) -> Iterator[str]:
    yield f"[bold]{escape(row.purifier)}[/]"
    yield escape(row.kind)
    yield f"[dim]{escape(row.name)}[/]"
    if row.status == "partial":
        yield "[bold red]PARTIAL[/]"
    if row.errors:
        yield f"[bold red]{row.errors} error finding{'s' if row.errors > 1 else ''}[/]"


def _accuracy(e: Estimate | None, gap: str) -> str:
    if e is None:
        return _NONE
    if e.lower is None or e.upper is None:
        return f"{e.value:.1%}"
    return f"{e.value:.1%}{gap}[dim]{100 * e.lower:.1f}–{100 * e.upper:.1f}[/]"


def _rates(rows: tuple[Row, ...], gap: str) -> Table:
    table = Table(title=f"Compression rate, l2, of each probe{_level(rows)}", **TABLE)
    table.add_column("#", justify="right")
    table.add_column("report", overflow="fold")
    probes = list(dict.fromkeys(e.probe for row in rows for e in row.rates))
    for probe in probes:
        table.add_column(str(probe), justify="right")
    for row in rows:
        rates = [row.get("compression_rate", probe) for probe in probes]
        cells = [_NONE if e is None else interval(e).replace(" ", gap, 1) for e in rates]
        table.add_row(_rank(row), escape(row.name), *cells)
    return table


def _correlations(comparison: Comparison) -> Table:
    table = Table(
        title=f"Correlation with aligned robust accuracy, {comparison.level:.0%} intervals",
        **TABLE,
    )
    table.add_column("quantity", min_width=11)
    table.add_column("kind")
    for name in ("value", "p", "one left out", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for a in comparison.associations:
        columns = zip(*map(_cells, a.correlations), strict=True)
        table.add_row(escape(a.title), *map("\n".join, columns), end_section=True)
    return table


def _cells(c: Correlation) -> tuple[str, ...]:
    return c.kind, _coefficient(c), _p_value(c), _range(c.leave_one_out), str(c.n)


def _coefficient(c: Correlation) -> str:
    if c.value is None:
        return "[dim]undefined[/]"
    if c.lower is None or c.upper is None:
        return f"{c.value:.2f} [dim](no interval)[/]"
    return f"{c.value:.2f} [dim]({_range((c.lower, c.upper))})[/]"


def _range(ends: tuple[float, float] | None) -> str:
    return _NONE if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"


def _p_value(c: Correlation) -> str:
    if c.p is None:
        return _NONE
    return "<0.001" if c.p < 0.001 else f"{c.p:.3f}"


def _cautions(comparison: Comparison) -> list[RenderableType]:
    if not comparison.cautions:
        return [Text("No cautions.", style="green")]
    table = Table.grid(padding=(0, 1))
    for sentence in comparison.cautions:
        table.add_row("•", Text(sentence, style="yellow"))
    return [Text("Cautions", style="bold"), table]
