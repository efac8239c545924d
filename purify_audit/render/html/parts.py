"""Parts of the page's sections: figures, rows and axes of plots."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from purify_audit.render.html.plots import Axis, Row
from purify_audit.report.wording import estimate_text, radius
from purify_audit.statistics.estimates import Estimate


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot, as markup (`svg` escapes every text), with its caption."""

    title: str
    svg: Markup
    caption: str = ""


def row(e: Estimate, label: str) -> Row:
    """An estimate as a row of a plot."""
    return Row(label, estimate_text(e), e.value, e.lower, e.upper)


def at(e: Estimate, several: bool) -> str:
    """The probe of an estimate, with its radius where there are several."""
    return f"{e.probe} · {radius(e.eps)}" if several else str(e.probe)


def several_radii(estimates: Iterable[Estimate]) -> bool:
    """Whether estimates were taken at more than one radius."""
    return len({e.eps for e in estimates if e.eps is not None}) > 1


def unit_axis(name: str, rows: Sequence[Row]) -> Axis:
    """An axis of shares: 0 to 100%, unless a value lies outside."""
    drawn = [v for r in rows for v in (r.value, r.lower, r.upper) if v is not None]
    inside = all(0.0 <= v <= 1.0 for v in drawn)
    return Axis(name, percent=True, ends=(0.0, 1.0) if inside else None)
