"""Where things are drawn, against positions worked out by hand; what is escaped, what is told."""

import math
import xml.etree.ElementTree as ET

import pytest

from purify_audit.render.html.plots import Axis, Row, forest
from purify_audit.render.html.svg import (
    Scale,
    coordinate,
    dots,
    drawing,
    element,
    polyline,
    round_step,
    shorten,
    span,
    text_width,
    tick_text,
    ticks,
)

NAMES = ['"><script>alert(1)</script>', "{{7*7}}", "a\x00b\x1b[31m\u202ec", "<&>'", "]]>"]


def parse(svg):
    return ET.fromstring(svg)


class TestScale:
    def test_ends_and_middle(self):
        scale = Scale(-1.0, 3.0, 100.0, 200.0)
        assert (scale(-1.0), scale(1.0), scale(3.0)) == (100.0, 150.0, 200.0)

    def test_may_run_upwards(self):
        assert Scale(0.0, 1.0, 200.0, 100.0)(0.25) == 175.0

    @pytest.mark.parametrize(
        ("width", "step"),
        [(1.0, 0.2), (0.9, 0.2), (10.0, 2.0), (11.0, 5.0), (0.03, 0.01), (51, 20)],
    )
    def test_steps_are_one_two_or_five(self, width, step):
        assert round_step(width, 5) == pytest.approx(step)

    @pytest.mark.parametrize(
        "values", [(0.13, 0.97), (-3.2, 7.9), (1e-6, 3e-6), (1200.0, 98_000.0)]
    )
    def test_span_ends_on_ticks_and_holds_the_values(self, values):
        low, high = span(values)
        assert low <= min(values)
        assert high >= max(values)
        at = ticks(low, high)
        assert (at[0], at[-1]) == (pytest.approx(low), pytest.approx(high))
        assert 2 <= len(at) <= 8

    @pytest.mark.parametrize("values", [[0.5], [1.0, 1.0 + 1e-7], [-3.0, -3.00001], [0.0]])
    def test_span_of_one_value_is_not_its_rounding(self, values):
        low, high = span(values)
        assert low < min(values) <= max(values) < high
        assert high - low >= abs(values[0]) / 2

    @pytest.mark.parametrize("values", [(1.0, 1.0002), (100_000.0, 100_020.0), (1e-7, 1.001e-7)])
    def test_ticks_of_a_narrow_span_are_told_apart(self, values):
        at = ticks(*span(values))
        texts = [tick_text(v, at[1] - at[0]) for v in at]
        assert len(set(texts)) == len(at) >= 2

    @pytest.mark.parametrize("values", [[], [None], [math.nan, math.inf, -math.inf, 1e300]])
    def test_span_of_nothing(self, values):
        assert span(values) == (0.0, 1.0)

    def test_span_leaves_out_what_cannot_be_drawn(self):
        assert span([0.0, 1.0, math.nan, None, 1e300]) == (0.0, 1.0)

    @pytest.mark.parametrize(
        ("value", "step", "percent", "text"),
        [
            (0.5, 0.2, False, "0.5"),
            (0.5, 0.05, False, "0.50"),
            (2.0, 1.0, False, "2"),
            (-0.2, 0.1, False, "−0.2"),
            (-1e-18, 0.1, False, "0.0"),
            (0.2, 0.2, True, "20%"),
            (2e6, 1e6, False, "2e+06"),
        ],
    )
    def test_tick_text(self, value, step, percent, text):
        assert tick_text(value, step, percent) == text


class TestElements:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_what_is_no_number_has_no_place(self, bad):
        with pytest.raises(ValueError, match="no place in a drawing"):
            element("circle", cx=bad)

    @pytest.mark.parametrize(
        ("value", "text"), [(1.0, "1"), (1.239, "1.24"), (-0.001, "0"), (-0.5, "-0.5"), (10, "10")]
    )
    def test_coordinates(self, value, text):
        assert coordinate(value) == text

    @pytest.mark.parametrize("name", NAMES)
    def test_texts_and_attributes_are_escaped(self, name):
        svg = (
            drawing(
                name,
                (name, name),
                (10, 10),
                [element("text", name, css=name), element("g", aria_label=name)],
            )
            if name.isprintable()
            else drawing("a", (name, name), (10, 10), [element("text", name)])
        )
        assert "<script" not in svg
        root = parse(svg)
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
        assert root.find("title").text == shown
        assert root.find("desc").text == shown
        assert root.find("text").text == shown

    def test_title_and_description_are_named(self):
        root = parse(drawing("plot-1", ("what", "more"), (10, 20), []))
        ids = {root.find("title").get("id"), root.find("desc").get("id")}
        assert set(root.get("aria-labelledby").split()) == ids
        assert root.get("role") == "img"
        assert root.get("viewBox") == "0 0 10 20"

    def test_no_inline_style(self):
        svg = forest("a", "b", [Row("x", "1", 1.0, 0.5, 1.5)], Axis("rate", ends=(0.0, 2.0)))
        assert "style" not in svg
        assert "fill=" not in svg

    def test_dots_are_one_element(self):
        assert dots([(1, 2), (3, 4.5)], "p") == '<path d="M1 2h0M3 4.5h0" class="p"/>'
        assert dots([], "p") == ""

    def test_polyline(self):
        assert polyline([(0, 1), (2, 3)], "c") == '<path d="M0 1L2 3" class="c"/>'

    def test_shorten(self):
        assert shorten("abcd", text_width("abcd")) == "abcd"
        cut = shorten("m" * 30, 100.0)
        assert cut == "m" * (len(cut) - 1) + "…"
        assert text_width(cut) <= 100.0 < text_width("m" + cut)
        assert shorten("abc", 0.0) == "…"

    def test_wide_letters_are_wider(self):
        assert text_width("mm") > text_width("aa") > text_width("ii")
