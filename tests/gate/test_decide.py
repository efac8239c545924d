"""Three-valued decisions on intervals, and what may never happen to them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from purify_audit.gate.decide import decide, images_that_decide, images_that_decide_share

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)
ANY = st.one_of(st.none(), st.floats())
OPS = st.sampled_from(["<=", ">="])


@pytest.mark.parametrize(
    ("lower", "upper", "op", "threshold", "decision"),
    [
        (0.1, 0.2, "<=", 0.3, "pass"),
        (0.1, 0.3, "<=", 0.3, "pass"),
        (0.1, 0.4, "<=", 0.3, "inconclusive"),
        (0.3, 0.4, "<=", 0.3, "inconclusive"),
        (0.31, 0.4, "<=", 0.3, "fail"),
        (0.4, 0.5, ">=", 0.3, "pass"),
        (0.3, 0.5, ">=", 0.3, "pass"),
        (0.2, 0.5, ">=", 0.3, "inconclusive"),
        (0.2, 0.3, ">=", 0.3, "inconclusive"),
        (0.1, 0.29, ">=", 0.3, "fail"),
        (0.3, 0.3, "<=", 0.3, "pass"),
    ],
)
def test_where_the_interval_lies(lower, upper, op, threshold, decision):
    assert decide(lower, upper, op, threshold) == decision


@given(lower=ANY, upper=ANY, op=OPS, threshold=st.floats())
def test_nothing_that_is_no_number_ever_passes_or_fails(lower, upper, op, threshold):
    missing = lower is None or upper is None
    if missing or math.isnan(lower) or math.isnan(upper) or math.isnan(threshold):
        assert decide(lower, upper, op, threshold) == "inconclusive"


@given(ends=st.tuples(NUMBERS, NUMBERS), less=st.floats(0, 1e6), op=OPS, threshold=NUMBERS)
def test_a_better_number_never_turns_pass_into_anything_else(ends, less, op, threshold):
    lower, upper = sorted(ends)
    better = -less if op == "<=" else less
    if decide(lower, upper, op, threshold) == "pass":
        assert decide(lower + better, upper + better, op, threshold) == "pass"


@given(
    ends=st.tuples(NUMBERS, NUMBERS),
    wider=st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)),
    op=OPS,
    threshold=NUMBERS,
)
def test_a_wider_interval_never_decides_what_was_open(ends, wider, op, threshold):
    lower, upper = sorted(ends)
    before = decide(lower, upper, op, threshold)
    after = decide(lower - wider[0], upper + wider[1], op, threshold)
    assert after in (before, "inconclusive")


@given(ends=st.tuples(NUMBERS, NUMBERS), op=OPS, threshold=NUMBERS)
def test_pass_and_fail_are_what_every_point_of_the_interval_says(ends, op, threshold):
    lower, upper = sorted(ends)
    holds = {v <= threshold if op == "<=" else v >= threshold for v in (lower, upper)}
    expected = {(True,): "pass", (False,): "fail"}.get(tuple(holds), "inconclusive")
    assert decide(lower, upper, op, threshold) == expected


def test_images_that_decide_by_hand():
    # half width 0.1 at n = 64, distance 0.05: 4 times as many images, 192 more
    assert images_that_decide(0.45, (0.35, 0.55), 0.5, 64) == 192
    assert images_that_decide(0.55, (0.45, 0.65), 0.5, 64) == 192
    # only the end that lies across the threshold counts
    assert images_that_decide(0.45, (0.0, 0.55), 0.5, 64) == 192


def test_no_number_is_worth_saying_on_the_threshold():
    assert images_that_decide(0.5, (0.4, 0.6), 0.5, 64) is None
    assert images_that_decide(0.5, (0.4, 0.6), 0.5 + 1e-6, 64) is None
    assert images_that_decide(0.5, (0.4, math.inf), 0.6, 64) is None


@given(
    value=st.floats(0.1, 0.9),
    half=st.floats(0.05, 0.3),
    distance=st.floats(0.01, 0.04),
    n=st.integers(8, 1000),
)
def test_with_so_many_more_images_it_would_be_decided(value, half, distance, n):
    more = images_that_decide(value, (value - half, value + half), value + distance, n)
    shrunk = half * math.sqrt(n / (n + more))
    assert decide(value - shrunk, value + shrunk, "<=", value + distance + 1e-12) == "pass"
    if more > 1:
        wide = half * math.sqrt(n / (n + more - 1))
        assert value + wide > value + distance - 1e-12


@pytest.mark.parametrize(
    ("share", "threshold"), [(1.0, 0.95), (0.0, 0.02), (0.8, 0.7), (0.3, 0.5), (0.55, 0.5)]
)
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_so_many_images_of_the_same_share_are_about_enough(share, threshold, level):
    """Against Clopper and Pearson's own interval, tried image by image."""
    from purify_audit.statistics.intervals import proportion_interval

    def decided(n):
        hits = round(share * n)
        values = np.r_[np.ones(hits), np.zeros(n - hits)]
        _, lower, upper = proportion_interval(values, level)
        return lower >= threshold if share > threshold else upper <= threshold

    found = images_that_decide_share(share, threshold, level, 10) + 10
    exact = next(n for n in range(10, 5000, 10) if decided(n))
    assert 0.65 * exact <= found <= 1.5 * exact + 10


def test_no_number_of_images_tells_a_share_from_0_or_1():
    for value, threshold in ((0.3, 0.0), (0.3, 1.0), (0.5, 0.5), (0.5, 0.505)):
        assert images_that_decide_share(value, threshold, 0.95, 10) is None
