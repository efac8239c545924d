"""A comparison in a terminal of 80 columns or more."""

from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from purify_audit.render.terminal.style import TABLE, cell
from purify_audit.report.comparison import Comparison
from purify_audit.report.ranking import Row, ball
from purify_audit.report.wording import NONE, coefficient, count, short_text, spread_text
from purify_audit.statistics.estimates import Correlation, Estimate

_WIDE = 120  # columns; narrower consoles get intervals on a line of their own
_METHODS = (
    "Intervals: BCa bootstrap over purifiers, treated as a random sample. p: two-sided permutation"
    " test of each coefficient alone."
)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print a comparison: ranking, rates, correlations and cautions."""
    gap = " " if console.width >= _WIDE else "\n"
    parts: list[RenderableType] = [_ranking(comparison.rows, gap)]
    if any(row.rates for row in comparison.rows):
        parts.append(_rates(comparison.rows, gap))
    if comparison.associations:
        parts += [_correlations(comparison), Text(_METHODS, style="dim"), Text()]
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
        cells = [cell(short_text(get(row)), gap) for get in shown.values()]
        table.add_row(_rank(row), "\n".join(_purifier(row)), *cells)
    return table


def _level(rows: tuple[Row, ...]) -> str:
    levels = {e.level for row in rows for e in (row.robust, row.anchor, *row.rates) if e}
    return f", {levels.pop():.0%} intervals" if len(levels) == 1 else ""


def _rank(row: Row) -> str:
    return NONE if row.rank is None else str(row.rank)


def _purifier(row: Row) -> Iterator[str]:
    yield f"[bold]{escape(row.purifier)}[/]"
    yield escape(row.kind)
    yield f"[dim]{escape(row.name)}[/]"
    if row.status == "partial":
        yield "[bold red]PARTIAL[/]"
    if row.errors:
        yield f"[bold red]{count(row.errors, 'error finding')}[/]"


def _rates(rows: tuple[Row, ...], gap: str) -> Table:
    table = Table(title=f"Compression rate (ℓ2) of each probe{_level(rows)}", **TABLE)
    table.add_column("#", justify="right")
    table.add_column("report", overflow="fold")
    probes = list(dict.fromkeys(e.probe for row in rows for e in row.rates))
    for probe in probes:
        table.add_column(str(probe), justify="right")
    for row in rows:
        rates = [row.get("compression_rate", probe) for probe in probes]
        cells = [cell(short_text(e), gap) for e in rates]
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
        return f"{coefficient(c.value)} [dim](no interval)[/]"
    return f"{coefficient(c.value)} [dim]({spread_text(c.lower, c.upper)})[/]"


def _range(ends: tuple[float, float] | None) -> str:
    return NONE if ends is None else spread_text(*ends)


def _p_value(c: Correlation) -> str:
    if c.p is None:
        return NONE
    return "<0.001" if c.p < 0.001 else f"{c.p:.3f}"


def _cautions(comparison: Comparison) -> list[RenderableType]:
    if not comparison.cautions:
        return [Text("No cautions.", style="green")]
    table = Table.grid(padding=(0, 1))
    for sentence in comparison.cautions:
        table.add_row("•", Text(sentence, style="yellow"))
    return [Text("Cautions", style="bold"), table]
