"""A sweep's points, and how a person reads them in a terminal. No torch."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from purify_audit.estimates import Estimate
from purify_audit.record import Record
from purify_audit.report.format import TABLE, accuracy, interval
from purify_audit.report.schema import Report

_WIDE = 110  # columns; narrower consoles get intervals on a line of their own


class Setting(Record):
    """One point of a sweep: what differs from the others."""

    t_star: int | None = None
    sampler: str | None = None
    eps: float | None = None

    @property
    def title(self) -> str:
        """In a few words, as a file name may hold them."""
        parts = [] if self.sampler is None else [self.sampler.replace(":", "-").replace(",", "-")]
        parts += [] if self.t_star is None else [f"t{self.t_star}"]
        parts += [] if self.eps is None else [f"eps{self.eps:.8g}"]
        return "-".join(parts)


class Curve(Record):
    """What a sweep's table and file show of one point."""

    setting: Setting
    report: str
    rates: dict[str, Estimate]
    anchor: Estimate | None
    robust: Estimate | None
    usual: Estimate | None
    findings: tuple[str, ...]


def curve_point(point: Setting, name: str, report: Report) -> Curve:
    """One point from its report."""
    at: dict[tuple[str, str | None], Estimate] = {}
    for e in report.estimates:
        at.setdefault((e.metric, e.probe), e)
    rates = {
        str(e.probe): e
        for e in reversed(report.estimates)
        if e.metric == "compression_rate" and e.norm == "l2"
    }
    return Curve(
        setting=point,
        report=name,
        rates=dict(reversed(rates.items())),
        anchor=at.get(("anchor_accuracy", None)),
        robust=at.get(("aligned_robust_accuracy", "aligned")),
        usual=at.get(("mean_robust_accuracy", "fresh")),
        findings=tuple(f.code for f in report.findings if f.severity != "info"),
    )


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
