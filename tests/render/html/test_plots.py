"""Where plots draw things, against positions worked out by hand; what is told and not drawn."""

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from purify_audit.render.html.plots import (
    LANE,
    MARGIN,
    MARK,
    MOST_LANES,
    WIDTH,
    Axis,
    Curve,
    Row,
    bars,
    boxes,
    curves,
    forest,
    histograms,
    scatter,
)

TOP = 4.0
ZERO_TO_TWO = Axis("rate", ends=(0.0, 2.0))


def parse(svg):
    return ET.fromstring(svg)


def of_class(svg, css):
    return [e for e in parse(svg).iter() if css in e.get("class", "").split()]


def numbers(e, *names):
    return tuple(float(e.get(name)) for name in names)


def texts(svg):
    return [e.text for e in parse(svg).iter("text")]


def halfway():
    return (MARGIN + WIDTH - MARGIN) / 2


class TestForest:
    def test_a_value_halfway_lies_halfway(self):
        svg = forest("f", "t", [Row("a", "1", 1.0, 0.5, 1.5)], ZERO_TO_TWO)
        (dot,) = of_class(svg, "dot")
        assert numbers(dot, "cx", "cy") == (halfway(), TOP + MARK)

    def test_intervals_end_where_they_should(self):
        svg = forest("f", "t", [Row("a", "1", 1.0, 0.5, 1.5)], ZERO_TO_TWO)
        whole, left, right = of_class(svg, "interval")
        quarter = MARGIN + (WIDTH - 2 * MARGIN) / 4
        assert numbers(whole, "x1", "x2") == (quarter, WIDTH - quarter)
        assert numbers(left, "x1", "x2") == (quarter, quarter)
        assert numbers(right, "x1", "x2") == (WIDTH - quarter, WIDTH - quarter)

    def test_rows_lie_below_one_another(self):
        rows = [Row(str(n), "1", 1.0, 0.5, 1.5) for n in range(3)]
        heights = [float(d.get("cy")) for d in of_class(forest("f", "t", rows, ZERO_TO_TWO), "dot")]
        assert heights == [TOP + MARK + LANE * n for n in range(3)]

    def test_an_interval_beyond_the_axis_is_cut_and_not_capped(self):
        svg = forest("f", "t", [Row("a", "1", 1.0, -3.0, 1.5)], ZERO_TO_TWO)
        whole, *caps = of_class(svg, "interval")
        assert float(whole.get("x1")) == MARGIN
        assert len(caps) == 1

    @pytest.mark.parametrize("value", [None, math.nan, math.inf, 1e300])
    def test_what_has_no_place_is_told_and_not_drawn(self, value):
        svg = forest("f", "t", [Row("a", "not a number", value, 0.5, 1.5)], ZERO_TO_TWO)
        assert of_class(svg, "dot") == of_class(svg, "interval") == []
        assert "not a number" in texts(svg)
        assert "not a number" in parse(svg).find("desc").text

    @pytest.mark.parametrize("ends", [(None, None), (None, 1.5), (0.5, math.nan), (-math.inf, 1.5)])
    def test_without_an_interval_the_dot_is_hollow(self, ends):
        svg = forest("f", "t", [Row("a", "1", 1.0, *ends)], ZERO_TO_TWO)
        assert of_class(svg, "interval") == []
        (dot,) = of_class(svg, "dot")
        assert "hollow" in dot.get("class")

    def test_the_reference_lies_at_its_value(self):
        axis = Axis("rate", ends=(0.0, 2.0), reference=1.0)
        svg = forest("f", "t", [Row("a", "1", 1.5, 1.0, 1.75)], axis)
        assert {float(e.get("x1")) for e in of_class(svg, "reference")} == {halfway()}

    def test_ticks_are_round_and_in_place(self):
        svg = forest("f", "t", [Row("a", "1", 1.0)], Axis("x", percent=True, ends=(0.0, 1.0)))
        marks = {e.text: float(e.get("x")) for e in of_class(svg, "tick") if e.text != "x"}
        inner = WIDTH - 2 * MARGIN
        want = {f"{k}%": pytest.approx(MARGIN + inner * k / 100) for k in range(0, 101, 20)}
        assert marks == want

    def test_long_labels_are_cut_before_the_value(self):
        (label,) = of_class(
            forest("f", "t", [Row("w" * 90, "0.5 [0.1, 0.9]", 1.0)], ZERO_TO_TWO), "label"
        )
        assert label.text.endswith("…")
        assert len(label.text) < 40

    def test_a_value_is_written_whole_beside_a_long_label(self):
        for told in (
            "median 0.538, 10000 images",
            "100.0% [100.0, 100.0]",
            "−12.345 [−12.3, 99.9]",
        ):
            svg = forest("f", "t", [Row("w" * 90, told, 1.0)], ZERO_TO_TWO)
            assert told in texts(svg)

    def test_no_more_rows_than_fit(self):
        rows = [Row(str(n), "1", 1.0) for n in range(MOST_LANES + 5)]
        assert len(of_class(forest("f", "t", rows, ZERO_TO_TWO), "dot")) == MOST_LANES

    def test_the_same_input_gives_the_same_bytes(self):
        rows = [Row("a", "1", 1.0, 0.5, 1.5), Row("b", "2", None)]
        assert forest("f", "t", rows, ZERO_TO_TWO) == forest("f", "t", rows, ZERO_TO_TWO)


class TestBars:
    def test_length_is_the_value(self):
        (bar,) = of_class(bars("b", "t", [Row("a", "1", 0.5)], ZERO_TO_TWO), "bar")
        assert numbers(bar, "x", "width") == (MARGIN, (WIDTH - 2 * MARGIN) / 4)

    def test_a_negative_value_goes_left(self):
        axis = Axis("x", ends=(-1.0, 1.0))
        (bar,) = of_class(bars("b", "t", [Row("a", "-1", -1.0)], axis), "bar")
        assert numbers(bar, "x", "width") == (MARGIN, (WIDTH - 2 * MARGIN) / 2)


def test_boxes_lie_at_their_quantiles():
    row = Row("a", "median 1", 1.0, more=(0.0, 0.5, 1.0, 1.5, 2.0))
    svg = boxes("b", "t", [row], ZERO_TO_TWO)
    (box,), (median,), (whisker,) = (of_class(svg, c) for c in ("box", "median", "interval"))
    inner = WIDTH - 2 * MARGIN
    assert numbers(box, "x", "width") == (MARGIN + inner / 4, inner / 2)
    assert float(median.get("x1")) == halfway()
    assert numbers(whisker, "x1", "x2") == (MARGIN, WIDTH - MARGIN)


class TestHistograms:
    axis = Axis("x", ends=(0.0, 2.0))  # 40 bins of 0.05, 8 units each

    def test_heights_are_counts_and_places_are_values(self):
        row = Row("a", "4", 1.0, more=(0.01, 0.02, 1.03, 0.04))
        first, second = of_class(histograms("h", "t", [row], self.axis), "bar")
        assert float(first.get("height")) == pytest.approx(44.0)
        assert float(second.get("height")) == pytest.approx(44.0 / 3, abs=0.01)
        assert float(first.get("x")) == pytest.approx(MARGIN + 0.4)
        assert float(second.get("x")) == pytest.approx(MARGIN + 160 + 0.4)

    def test_the_largest_value_is_inside(self):
        (bar,) = of_class(histograms("h", "t", [Row("a", "1", 2.0, more=(2.0,))], self.axis), "bar")
        assert float(bar.get("x")) + float(bar.get("width")) < WIDTH - MARGIN

    def test_equal_values_make_one_bar(self):
        row = Row("a", "9", 0.5, more=(0.5,) * 9)
        assert len(of_class(histograms("h", "t", [row], Axis("x")), "bar")) == 1


class TestCurves:
    def draw(self, *lines):
        return curves("c", "t", lines, Axis("x", ends=(0.0, 1.0)), Axis("y", ends=(0.0, 1.0)))

    def curve(self, label, *points):
        return Curve(label, tuple((x, Row(label, str(y), y, 0.25, 0.75)) for x, y in points))

    def path(self, e):
        return [tuple(map(float, p.split())) for p in e.get("d")[1:].split("L")]

    def test_points_are_mapped(self):
        svg = self.draw(self.curve("a", (0.0, 0.0), (0.5, 0.5), (1.0, 1.0)))
        (curve,) = of_class(svg, "curve")
        (x0, y0), (x1, y1), (x2, y2) = self.path(curve)
        assert x1 == pytest.approx((x0 + x2) / 2, abs=0.01)
        assert y1 == pytest.approx((y0 + y2) / 2, abs=0.01)
        assert y0 > y2

    def test_what_has_no_place_is_left_out(self):
        svg = self.draw(self.curve("a", (0.0, 0.0), (0.5, math.nan), (1.0, 1.0)))
        assert len(self.path(of_class(svg, "curve")[0])) == 2
        assert self.draw(self.curve("a", (0.0, math.nan))).count("curve") == 0

    def test_labels_do_not_touch(self):
        svg = self.draw(*(self.curve(str(n), (0.0, 0.5), (1.0, 0.5)) for n in range(4)))
        heights = sorted(float(e.get("y")) for e in of_class(svg, "label"))
        assert all(b - a >= 14 for a, b in pairwise(heights))

    def test_labels_stay_above_the_axis(self):
        svg = self.draw(*(self.curve(str(n), (0.0, 0.5), (1.0, 0.0)) for n in range(4)))
        heights = sorted(float(e.get("y")) for e in of_class(svg, "label"))
        assert max(heights) <= min(float(e.get("y")) for e in of_class(svg, "middle")) - 12
        assert all(b - a >= 14 for a, b in pairwise(heights))


class TestScatter:
    def draw(self, *points, y=None):
        axis = y or Axis("y", ends=(0.0, 1.0))
        return scatter("s", ("t", "d"), points, Axis("x", ends=(0.0, 1.0)), axis)

    def places(self, e):
        return [tuple(map(float, p.split())) for p in e.get("d")[1:].replace("h0", "").split("M")]

    def test_points_are_mapped(self):
        (e,) = of_class(self.draw((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)), "points")
        (x0, y0), (x1, y1), (x2, y2) = self.places(e)
        assert (x1, y1) == (pytest.approx((x0 + x2) / 2), pytest.approx((y0 + y2) / 2))

    def test_those_that_resist_are_above_all_others(self):
        svg = self.draw((0.0, 1.0), (0.5, None), (1.0, None))
        resisting = of_class(svg, "resisting")[0]
        fallen = next(
            e
            for e in of_class(svg, "points")
            if e is not resisting and "resisting" not in e.get("class")
        )
        heights = {y for _, y in self.places(resisting)}
        assert len(heights) == 1
        assert max(heights) < min(y for _, y in self.places(fallen))

    def test_the_radius_attacked_is_marked(self):
        svg = self.draw((0.5, 0.5), y=Axis("", ends=(0.0, 1.0), reference=0.5))
        (mark,) = of_class(svg, "reference")
        ((_, y),) = self.places(of_class(svg, "points")[0])
        assert float(mark.get("y1")) == pytest.approx(y)
