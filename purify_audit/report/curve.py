"""The points of a sweep. No torch."""

from purify_audit.core.records import Record
from purify_audit.report.schema import Report
from purify_audit.statistics.estimates import Estimate


class Setting(Record):
    """The settings that distinguish one point of a sweep from the others."""

    t_star: int | None = None
    sampler: str | None = None
    eps: float | None = None

    @property
    def title(self) -> str:
        """A short name, usable in file names."""
        parts = [] if self.sampler is None else [self.sampler.replace(":", "-").replace(",", "-")]
        parts += [] if self.t_star is None else [f"t{self.t_star}"]
        parts += [] if self.eps is None else [f"eps{self.eps:.8g}"]
        return "-".join(parts)


class Curve(Record):
    """The results of one point in a sweep's table and file."""

    setting: Setting
    report: str
    rates: dict[str, Estimate]
    anchor: Estimate | None
    robust: Estimate | None
    usual: Estimate | None
    findings: tuple[str, ...]


def curve_point(point: Setting, name: str, report: Report) -> Curve:
    """A point's results from its report."""
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
