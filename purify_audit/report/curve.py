"""A sweep's points, and how a person reads them in a terminal. No torch."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from purify_audit.record import Record
from purify_audit.report.format import TABLE, accuracy, interval
from purify_audit.report.schema import Report
from purify_audit.statistics import Estimate


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
        parts += [] if self.eps is None else [f"eps{self.eps:.4g}"]
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
        findings=tuple(f.code for f in report.findings),
    )


def show_curve(console: Console, curve: list[Curve]) -> None:
    """Print one line for each point."""
    table = Table(title="Compression rate (l2), anchors and robust accuracy", **TABLE)
    table.add_column("setting")
    probes = list(dict.fromkeys(probe for point in curve for probe in point.rates))
    for name in (*probes, "anchors"):
        table.add_column(name, justify="right")
    attacked = any(point.robust for point in curve)
    for name in ("aligned", "usual") if attacked else ():
        table.add_column(name, justify="right")
    table.add_column("findings")
    for point in curve:
        rates = [interval(point.rates[p]) if p in point.rates else "—" for p in probes]
        cells = [*rates, accuracy(point.anchor)]
        cells += [accuracy(point.robust), accuracy(point.usual)] if attacked else []
        table.add_row(point.setting.title, *cells, " ".join(point.findings))
    console.print(Padding(table, (0, 0, 0, 2)))
