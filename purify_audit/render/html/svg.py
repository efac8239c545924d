"""Drawing primitives: round axes and escaped SVG elements.

Colours and fonts are the style sheet's: elements carry classes, never styles, so that a page's
content security policy may forbid inline styles and a dark page is a matter of CSS alone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from purify_audit.core.records import printable

LETTER = 12.5  # size of a label's text, in an SVG's own units, as the style sheet sets it

_WIDTHS = {  # of characters, over the text's size, in a wide font (DejaVu Sans)
    **dict.fromkeys("ijl|'", 0.34),
    **dict.fromkeys(" .,:;!()[]{}frtI·\\/-", 0.42),
    **dict.fromkeys("mwMW@%—", 1.0),
    **dict.fromkeys("<>=+−×~^#ABCDEFGHJKLNOPQRSTUVXYZ…", 0.84),
}
_LARGEST = 1e9  # larger values are written, not drawn
_SAME = 1e-4  # values whose relative difference is smaller are drawn as one, not their rounding
_ROUND = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map of [low, high] to [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def drawable(value: float | None) -> bool:
    """Whether a value can be placed on an axis: finite and not extremely large."""
    return value is not None and math.isfinite(value) and abs(value) <= _LARGEST


def round_step(width: float, most: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that divides a width into at most so many."""
    power = 10.0 ** math.floor(math.log10(width / most))
    return next(m * power for m in _ROUND if width <= m * power * most * (1 + 1e-9))


def span(values: Iterable[float | None], most: int = 5) -> tuple[float, float]:
    """The range between round numbers that contains all drawable values."""
    kept = [float(v) for v in values if v is not None and drawable(v)]
    low, high = (min(kept), max(kept)) if kept else (0.0, 1.0)
    if high - low <= _SAME * max(abs(low), abs(high), 1e-300):
        room = abs(low) / 2 or 0.5
        low, high = low - room, high + room
    step = round_step(high - low, most)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in [low, high], about `most` of them."""
    step = round_step(high - low, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def tick_text(value: float, step: float, percent: bool = False) -> str:
    """The label of a tick, with as many decimals as its step needs."""
    if percent:
        value, step = 100 * value, 100 * step
    if abs(value) >= 1e5 or step < 1e-5:
        return f"{value:.6g}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value:.{decimals}f}".replace("-", "−")
    text = text.lstrip("−") if not text.strip("−0.") else text
    return f"{text}%" if percent else text


def element(name: str, text: str | None = None, **attributes: str | float) -> str:
    """One element, everything in it escaped.

    Args:
        name: of the element.
        text: its text.
        attributes: by name, `css` for `class` and `_` for `-`; numbers with two decimals at most.

    Raises:
        ValueError: a number is not finite.
    """
    attributes_text = "".join(
        f' {"class" if key == "css" else key.replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
    )
    if text is None:
        return f"<{name}{attributes_text}/>"
    return f"<{name}{attributes_text}>{escape(printable(text))}</{name}>"


def _attribute(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else coordinate(value)


def coordinate(value: float) -> str:
    """A number with two decimals at most.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} has no place in a drawing")
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def line(start: tuple[float, float], end: tuple[float, float], css: str) -> str:
    """A straight line."""
    return element("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], css=css)


def rectangle(corner: tuple[float, float], size: tuple[float, float], css: str) -> str:
    """A rectangle by its upper left corner."""
    return element("rect", x=corner[0], y=corner[1], width=size[0], height=size[1], css=css)


def words(x: float, y: float, text: str, css: str) -> str:
    """A text on a baseline; its class decides its anchor."""
    return element("text", text, x=x, y=y, css=css)


def dots(points: Iterable[tuple[float, float]], css: str) -> str:
    """Many equal dots in one element: strokes of no length with round ends."""
    places = "".join(f"M{coordinate(x)} {coordinate(y)}h0" for x, y in points)
    return element("path", d=places, css=css) if places else ""


def polyline(points: Iterable[tuple[float, float]], css: str) -> str:
    """A line through points."""
    places = "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points)
    return element("path", d=f"M{places}", css=css)


def text_width(text: str) -> float:
    """An upper bound of a label's width in SVG units, whatever the reader's font."""
    return LETTER * sum(_WIDTHS.get(c, 0.66 if c < "\u2e80" else 1.2) for c in text)


def shorten(text: str, room: float) -> str:
    """A label cut to a width, with an ellipsis."""
    text = printable(text)
    if text_width(text) <= room:
        return text
    while text and text_width(text) > room - LETTER:
        text = text[:-1]
    return text + "…"


def drawing(
    ident: str, texts: tuple[str, str], size: tuple[float, float], parts: Iterable[str]
) -> str:
    """An inline SVG.

    Args:
        ident: unique in the page; prefix of the ids of title and description.
        texts: title and description, for screen readers.
        size: width and height of its coordinates.
        parts: its elements.
    """
    title, desc = (escape(printable(text)) for text in texts)
    ident, box = escape(ident), f"0 0 {coordinate(size[0])} {coordinate(size[1])}"
    return (
        f'<svg class="plot" viewBox="{box}" role="img" aria-labelledby="{ident}-t {ident}-d">'
        f'<title id="{ident}-t">{title}</title><desc id="{ident}-d">{desc}</desc>'
        f"{''.join(parts)}</svg>"
    )
