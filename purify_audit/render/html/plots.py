"""Plots of numbers and intervals as inline SVG, from the primitives of `svg`.

Every plot is 340 units wide, which a phone shows without shrinking the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from purify_audit.render.html.svg import (
    Scale,
    dots,
    drawable,
    drawing,
    element,
    line,
    polyline,
    rectangle,
    round_step,
    shorten,
    span,
    text_width,
    tick_text,
    ticks,
    words,
)

WIDTH = 340.0
MARGIN = 10.0
LANE = 38.0  # one row of a plot with a label above its mark
MARK = 25.0  # height of a lane's mark
MOST_LANES = 40

_TOP, _BELOW = 4.0, 42.0
_LEFT, _PLOT = 46.0, 190.0  # of plots with a vertical axis: its position, and their height
_APART = 14.0  # between the labels of two lines
_NAME = 104.0  # room for them
_NUMBER = 230.0  # room for a value's text


@dataclass(frozen=True, slots=True)
class Axis:
    """The horizontal axis of a plot.

    Attributes:
        name: what it shows, with its unit.
        percent: whether it is in per cent.
        ends: its range; none for the values' own.
        reference: a value to compare with.
    """

    name: str
    percent: bool = False
    ends: tuple[float, float] | None = None
    reference: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a plot: a label, a value with its interval, and their text.

    Attributes:
        label: what it is.
        shown: the text of the value beside the label.
        value: none if missing.
        lower: end of the interval, if there is one.
        upper: the other end.
        more: other numbers drawn: quantiles, or all values of a histogram.
    """

    label: str
    shown: str
    value: float | None
    lower: float | None = None
    upper: float | None = None
    more: tuple[float, ...] = field(default=())


Paint = Callable[[Row, Scale, float], list[str]]
"""A row, the scale and the height of its mark -> elements."""


def forest(ident: str, title: str, rows: Sequence[Row], axis: Axis) -> str:
    """A dot and an interval for each row."""
    return _lanes(ident, title, rows, axis, _dot)


def bars(ident: str, title: str, rows: Sequence[Row], axis: Axis) -> str:
    """A bar from 0 with an interval for each row; the axis includes 0."""
    return _lanes(ident, title, rows, axis, _bar)


def boxes(ident: str, title: str, rows: Sequence[Row], axis: Axis) -> str:
    """Quantiles 5, 25, 50, 75 and 95% of each row: whisker, box, median."""
    return _lanes(ident, title, rows, axis, _box)


def histograms(ident: str, title: str, rows: Sequence[Row], axis: Axis) -> str:
    """A histogram for each row, all on one axis."""
    values = [v for row in rows for v in row.more]
    ends = axis.ends or span([*values, axis.reference])
    width = round_step(ends[1] - ends[0], 40)

    def paint(row: Row, scale: Scale, y: float) -> list[str]:
        counts: dict[int, int] = {}
        last = round((ends[1] - ends[0]) / width) - 1
        for v in row.more:
            place = min(last, int((v - ends[0]) / width + 1e-9))
            counts[place] = counts.get(place, 0) + 1
        tallest, parts = max(counts.values(), default=1), []
        each = scale(ends[0] + width) - scale(ends[0])
        for place, count in sorted(counts.items()):
            height = max(1.0, 44.0 * count / tallest)
            x = scale(ends[0] + place * width)
            parts.append(rectangle((x + 0.4, y + 66 - height), (each - 0.8, height), "bar"))
        parts.append(line((scale.start, y + 66), (scale.end, y + 66), "base"))
        return parts

    at = Axis(axis.name, axis.percent, ends, axis.reference)
    return _lanes(ident, title, rows, at, paint, LANE + 40)


def _lanes(
    ident: str, title: str, rows: Sequence[Row], axis: Axis, paint: Paint, lane: float = LANE
) -> str:
    shown = rows[:MOST_LANES]
    drawn = [v for row in shown for v in (row.value, row.lower, row.upper, *row.more)]
    low, high = axis.ends or span([*drawn, axis.reference])
    scale = Scale(low, high, MARGIN, WIDTH - MARGIN)
    bottom = _TOP + lane * len(shown)
    strips = [(_TOP + lane * n + MARK - 7, _TOP + lane * (n + 1) - 6) for n in range(len(shown))]
    parts = _horizontal(scale, axis, strips, bottom)
    for place, row in enumerate(shown):
        y = _TOP + lane * place
        number = shorten(row.shown, _NUMBER)
        room = WIDTH - 2 * MARGIN - text_width(number) - 8
        parts.append(words(MARGIN, y + 13, shorten(row.label, room), "label"))
        parts.append(words(WIDTH - MARGIN, y + 13, number, "number end"))
        if drawable(row.value):
            parts += paint(row, scale, y)
    description = "; ".join(f"{row.label}: {row.shown}" for row in shown)
    return drawing(ident, (title, description), (WIDTH, bottom + _BELOW), parts)


def _horizontal(
    scale: Scale, axis: Axis, strips: Sequence[tuple[float, float]], bottom: float
) -> list[str]:
    """Grid lines at round numbers, the reference, and the axis' numbers and name.

    Lines are drawn in strips, from one height to another, so that they cross no text.
    """
    at, parts = ticks(scale.low, scale.high), list[str]()
    step = at[1] - at[0] if len(at) > 1 else scale.high - scale.low
    marked = [(v, "grid") for v in at]
    if axis.reference is not None and scale.low <= axis.reference <= scale.high:
        marked.append((axis.reference, "reference"))
    for v, css in marked:
        parts += [line((scale(v), high), (scale(v), low), css) for high, low in strips]
    for v in at:
        x = scale(v)
        css = "start" if x < 14 else "end" if x > WIDTH - 14 else "middle"
        parts.append(words(x, bottom + 16, tick_text(v, step, axis.percent), f"tick {css}"))
    parts.append(words((scale.start + scale.end) / 2, bottom + 34, axis.name, "tick middle"))
    return parts


def _whisker(row: Row, scale: Scale, y: float) -> list[str]:
    """The part of an interval inside the axis, with caps at the ends that are inside."""
    if row.lower is None or row.upper is None or not (drawable(row.lower) and drawable(row.upper)):
        return []
    low, high = max(row.lower, scale.low), min(row.upper, scale.high)
    parts = [line((scale(low), y + MARK), (scale(high), y + MARK), "interval")]
    for end, cut in ((row.lower, low), (row.upper, high)):
        if end == cut:
            parts.append(line((scale(cut), y + MARK - 4), (scale(cut), y + MARK + 4), "interval"))
    return parts


def _dot(row: Row, scale: Scale, y: float) -> list[str]:
    assert row.value is not None, "the caller draws only rows with a value"
    ends = _whisker(row, scale, y)
    css = "dot" if ends else "dot hollow"
    value = min(max(row.value, scale.low), scale.high)
    return [*ends, element("circle", cx=scale(value), cy=y + MARK, r=4, css=css)]


def _bar(row: Row, scale: Scale, y: float) -> list[str]:
    assert row.value is not None, "the caller draws only rows with a value"
    start, end = sorted((scale(0.0), scale(row.value)))
    return [
        rectangle((start, y + MARK - 5), (end - start, 10), "bar"),
        *_whisker(row, scale, y),
    ]


def _box(row: Row, scale: Scale, y: float) -> list[str]:
    at, middle = [scale(v) for v in row.more], y + MARK
    return [
        line((at[0], middle), (at[4], middle), "interval"),
        rectangle((at[1], middle - 6), (max(1.0, at[3] - at[1]), 12), "box"),
        line((at[2], middle - 6), (at[2], middle + 6), "median"),
    ]


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot: its points by x, each with an interval where there is one."""

    label: str
    points: tuple[tuple[float, Row], ...]


def curves(ident: str, title: str, lines: Sequence[Curve], x: Axis, y: Axis) -> str:
    """Lines through values with their intervals, labelled at their ends."""
    lines = [c for c in lines if any(drawable(row.value) for _, row in c.points)][:8]
    rows = [row for c in lines for _, row in c.points]
    low, high = y.ends or span([v for r in rows for v in (r.value, r.lower, r.upper)])
    left, right = x.ends or span([at for c in lines for at, _ in c.points])
    names = [shorten(c.label, _NAME) for c in lines]
    across = Scale(left, right, _LEFT, WIDTH - 8 - max(map(text_width, names), default=0.0))
    up = Scale(low, high, _TOP + _PLOT, _TOP + 8)
    parts = _horizontal(across, x, [(_TOP + 8, _TOP + _PLOT)], _TOP + _PLOT)
    parts += _vertical(up, y, across)
    ends: list[tuple[float, int]] = []
    for place, curve in enumerate(lines):
        kept = [(at, row) for at, row in curve.points if drawable(row.value)]
        points = [(across(at), up(row.value or 0.0)) for at, row in kept]
        for (px, _), (_, row) in zip(points, kept, strict=True):
            if row.lower is not None and row.upper is not None:
                cut = [min(max(end, up.low), up.high) for end in (row.lower, row.upper)]
                parts.append(
                    line((px, up(cut[0])), (px, up(cut[1])), f"interval series-{place % 4}")
                )
        parts.append(polyline(points, f"curve series-{place % 4}"))
        parts.append(dots(points, f"points series-{place % 4}"))
        ends.append((points[-1][1], place))
    for at, place in _spread(ends, up.start - 4):
        parts.append(words(across.end + 8, at + 4, names[place], "label"))
    description = "; ".join(f"{c.label}: {', '.join(r.shown for _, r in c.points)}" for c in lines)
    return drawing(ident, (title, description), (WIDTH, _TOP + _PLOT + _BELOW), parts)


def _vertical(up: Scale, axis: Axis, across: Scale) -> list[str]:
    at, parts = ticks(up.low, up.high), []
    step = at[1] - at[0] if len(at) > 1 else up.high - up.low
    for v in at:
        parts.append(line((across.start, up(v)), (across.end, up(v)), "grid"))
        text = tick_text(v, step, axis.percent)
        parts.append(words(across.start - 6, up(v) + 4, text, "tick end"))
    if axis.reference is not None and up.low <= axis.reference <= up.high:
        y = up(axis.reference)
        parts.append(line((across.start, y), (across.end, y), "reference"))
    return parts


def _spread(ends: list[tuple[float, int]], lowest: float) -> list[tuple[float, int]]:
    """Heights of labels, moved apart if two would touch, and up if they are too low."""
    placed: list[tuple[float, int]] = []
    for at, place in sorted(ends):
        placed.append((max(at, placed[-1][0] + _APART) if placed else at, place))
    for n, (at, place) in reversed(list(enumerate(placed))):
        placed[n] = (min(at, lowest - _APART * (len(placed) - 1 - n)), place)
    return placed


def scatter(
    ident: str,
    texts: tuple[str, str],
    points: Sequence[tuple[float, float | None]],
    x: Axis,
    y: Axis,
) -> str:
    """Points; those without y are drawn on a line above the others.

    Args:
        ident: unique in the page.
        texts: title and description.
        points: (x, y), all of them drawable; y is none for those above.
        x: horizontal axis.
        y: vertical axis.
    """
    top = _TOP + 34
    low, high = y.ends or span([0.0, *(v for _, v in points)])
    left, right = x.ends or span([v for v, _ in points])
    across = Scale(left, right, _LEFT, WIDTH - MARGIN)
    up = Scale(low, high, _TOP + _PLOT + 26, top)
    bottom = _TOP + _PLOT + 26
    parts = _horizontal(across, x, [(_TOP + 8, bottom)], bottom) + _vertical(up, y, across)
    parts.append(line((across.start, _TOP + 14), (across.end, _TOP + 14), "base"))
    parts.append(words(across.start - 6, _TOP + 18, "resists", "tick end"))
    parts.append(dots([(across(v), up(w)) for v, w in points if w is not None], "points thin"))
    above = [(across(v), _TOP + 14) for v, w in points if w is None]
    parts.append(dots(above, "points thin resisting"))
    return drawing(ident, texts, (WIDTH, _TOP + _PLOT + 26 + _BELOW), parts)
