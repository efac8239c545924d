"""What sections of the page are made of, and how a number is written in it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from purify_audit.render.html.plots import Axis, Row
from purify_audit.report.wording import radius
from purify_audit.statistics.estimates import Estimate
from purify_audit.statistics.metrics import about


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot, trusted because `svg` escapes all that it is given, and what to say of it."""

    title: str
    svg: Markup
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts.

    Attributes:
        label: its caption.
        columns: headings; the first column heads its row.
        rows: cells.
        words: columns that hold words and not numbers, besides the first.
        note: what to say below it.
    """

    label: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[int, ...] = ()
    note: str = ""


def value_text(metric: str, value: float | None) -> str:
    """A value as its metric is written: per cent, points or a plain number."""
    if value is None or not math.isfinite(value):
        return "—"
    kind = about(metric).kind
    if kind == "share":
        return f"{value:.1%}"
    text = f"{100 * value:+.1f}" if kind == "difference" else plain(value)
    return text.replace("-", "−")


def plain(value: float) -> str:
    """Three decimals, or four digits where that says more."""
    size = abs(value)
    return f"{value:.3f}" if size == 0 or 5e-3 <= size < 100 else f"{value:.4g}"


def ends_text(metric: str, lower: float | None, upper: float | None) -> str:
    """An interval as `[lower, upper]`, in the value's unit."""
    if lower is None or upper is None:
        return "no interval"
    ends = (value_text(metric, end).removesuffix("%").lstrip("+") for end in (lower, upper))
    return f"[{', '.join(ends)}]"


def shown(e: Estimate | None) -> str:
    """A value with its interval."""
    if e is None:
        return "—"
    return f"{value_text(e.metric, e.value)} {ends_text(e.metric, e.lower, e.upper)}"


def row(e: Estimate, label: str) -> Row:
    """An estimate as a row of a plot."""
    return Row(label, shown(e), e.value, e.lower, e.upper)


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


def norm_text(norm: str | None) -> str:
    """A norm as the field writes it."""
    return {"l2": "ℓ2", "linf": "ℓ∞"}.get(str(norm), "" if norm is None else norm)
