"""Schedules against their papers' formulas, and the grid of indices against exact fractions."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import continuous_abar, literal_abar

from purify_audit.models.purifiers.schedule import noise_schedule, reverse_indices
from purify_audit.spec.samplers import CosineSchedule, LinearSchedule, VPSchedule

SCHEDULES = [
    LinearSchedule(),
    LinearSchedule(steps=250, beta_start=4e-4, beta_end=0.08),
    CosineSchedule(),
    CosineSchedule(steps=4000),
    CosineSchedule(steps=50, offset=0.02, beta_max=0.6),
    VPSchedule(),
    VPSchedule(steps=37, beta_min=0.3, beta_max=12.0),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_abar_is_the_product_written_out(schedule):
    got = noise_schedule(schedule)
    assert got.steps == schedule.steps
    assert got.abar.dtype == np.float64
    np.testing.assert_allclose(got.abar, literal_abar(schedule), rtol=1e-12, atol=0)
    assert np.all(np.diff(got.abar) < 0)
    assert 0 < got.abar[-1] < got.abar[0] < 1
    assert got.alpha_bar(-1) == 1.0  # the clean image
    assert got.alpha_bar(schedule.steps - 1) == got.abar[-1]


def test_the_usual_linear_schedule():
    """Values quoted for beta = 1e-4 ... 0.02 over 1000 steps; t* = 100 noises to index 99."""
    abar = noise_schedule(LinearSchedule()).abar
    literal = np.cumprod(1.0 - np.linspace(1e-4, 2e-2, 1000))
    np.testing.assert_allclose(abar, literal, rtol=1e-13, atol=0)
    assert abar[0] == pytest.approx(1.0 - 1e-4, abs=1e-15)
    assert abar[99] == pytest.approx(0.89702, abs=5e-6)
    assert abar[100] == pytest.approx(0.89514, abs=5e-6)
    sigmas = [math.sqrt((1 - abar[t - 1]) / abar[t - 1]) for t in (75, 100, 150, 500)]
    assert sigmas == pytest.approx([0.2546, 0.3388, 0.5182, 3.42], rel=2e-4, abs=5e-3)


def test_the_usual_linear_schedule_in_continuous_time():
    """beta(t) = 0.1 + 19.9 t and abar(t) = exp(-0.1 t - 9.95 t^2)."""
    schedule = noise_schedule(LinearSchedule())
    assert schedule.continuous_alpha_bar(0.1) == pytest.approx(0.89628, abs=5e-6)
    for t in (0.0, 1e-5, 0.1, 0.5, 1.0):
        assert schedule.beta(t) == pytest.approx(0.1 + 19.9 * t, rel=1e-14)
        assert schedule.continuous_alpha_bar(t) == pytest.approx(
            math.exp(-0.1 * t - 9.95 * t * t), rel=1e-14
        )


@pytest.mark.parametrize(
    "card",
    [LinearSchedule(steps=400, beta_start=3e-4, beta_end=0.03), VPSchedule(beta_max=7.0)],
    ids=repr,
)
def test_continuous_abar_is_the_exponential_of_the_integral_of_beta(card):
    """By Simpson's rule, exact for a linear rate."""
    schedule = noise_schedule(card)
    for t in (0.2, 0.7, 1.0):
        integral = t / 6.0 * (schedule.beta(0) + 4.0 * schedule.beta(t / 2) + schedule.beta(t))
        assert schedule.continuous_alpha_bar(t) == pytest.approx(math.exp(-integral), rel=1e-13)
        assert schedule.continuous_alpha_bar(t) == pytest.approx(
            continuous_abar(card, t), rel=1e-13
        )


def test_cosine_telescopes_to_its_closed_form_until_beta_is_capped():
    """abar_i = f(i + 1) / f(0), f(t) = cos^2((t / N + s) / (1 + s) pi / 2); last beta is 0.999."""
    abar = noise_schedule(CosineSchedule()).abar
    t = np.arange(1, 1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(abar[:-1], f[:-1], rtol=1e-9, atol=0)
    assert abar[-1] == pytest.approx(abar[-2] * 0.001, rel=1e-12)


def test_vp_indices_are_the_right_ends_of_equal_times():
    schedule = noise_schedule(VPSchedule(steps=200, beta_min=0.2, beta_max=9.0))
    assert (schedule.beta_min, schedule.beta_max) == (0.2, 9.0)
    for i in (0, 77, 199):
        assert schedule.alpha_bar(i) == pytest.approx(
            schedule.continuous_alpha_bar((i + 1) / 200), rel=1e-14
        )


@settings(deadline=None, derandomize=True)
@given(st.data())
def test_steps_are_as_even_as_integers_allow(data):
    """Trailing spacing: index k is ceil(t* (n - k) / n) - 1, in exact arithmetic."""
    t_star = data.draw(st.integers(1, 4000))
    n = data.draw(st.integers(1, t_star))
    grid = reverse_indices(t_star, n, None)
    assert list(grid) == [math.ceil(Fraction(t_star * (n - k), n)) - 1 for k in range(n)]
    assert grid[0] == t_star - 1
    jumps = -np.diff([*grid, -1])  # the last is to the image
    assert len(jumps) == n
    assert jumps.sum() == t_star
    assert jumps.min() >= 1
    assert jumps.max() - jumps.min() <= 1


@settings(deadline=None, derandomize=True)
@given(st.data())
def test_strides_are_equal_but_for_the_last(data):
    t_star = data.draw(st.integers(1, 4000))
    stride = data.draw(st.integers(1, t_star))
    jumps = -np.diff([t_star, *(i + 1 for i in reverse_indices(t_star, None, stride)), 0])
    assert jumps[0] == 0  # starts at t* - 1
    assert set(jumps[1:-1]) <= {stride}
    assert 1 <= jumps[-1] <= stride


def test_every_index_without_steps_or_stride():
    assert reverse_indices(5, None, None) == (4, 3, 2, 1, 0)
    assert reverse_indices(5, 5, None) == (4, 3, 2, 1, 0)
    assert reverse_indices(5, None, 1) == (4, 3, 2, 1, 0)
    assert reverse_indices(1, None, None) == (0,)
    assert reverse_indices(100, 4, None) == (99, 74, 49, 24)
    assert reverse_indices(100, None, 30) == (99, 69, 39, 9)


@settings(deadline=None, derandomize=True)
@given(st.data())
def test_leading_steps_are_equal_jumps_down_to_the_offset(data):
    t_star = data.draw(st.integers(1, 4000))
    n = data.draw(st.integers(1, t_star))
    jump = t_star // n
    offset = data.draw(st.integers(0, t_star - 1 - (n - 1) * jump))
    grid = reverse_indices(t_star, n, None, "leading", offset)
    assert list(grid) == [k * jump + offset for k in reversed(range(n))]
    assert t_star > grid[0] >= grid[-1] == offset


@settings(deadline=None, derandomize=True)
@given(st.data())
def test_linspace_steps_have_both_ends(data):
    """Nearest integers, halves to even; where n is 1, only the lower end."""
    t_star = data.draw(st.integers(1, 4000))
    n = data.draw(st.integers(1, t_star))
    grid = reverse_indices(t_star, n, None, "linspace")
    exact = [Fraction((t_star - 1) * k, max(n - 1, 1)) for k in reversed(range(n))]
    assert all(abs(index - want) <= Fraction(1, 2) for index, want in zip(grid, exact))
    assert [i for i, e in zip(grid, exact) if e.denominator != 2] == [
        round(e) for e in exact if e.denominator != 2
    ]
    assert all(a > b for a, b in pairwise(grid))
    assert grid[-1] == 0
    assert n == 1 or grid[0] == t_star - 1


def test_spacings_by_example():
    assert reverse_indices(100, 4, None, "trailing", 7) == (99, 74, 49, 24)
    assert reverse_indices(100, 4, None, "leading") == (75, 50, 25, 0)
    assert reverse_indices(100, 4, None, "leading", 1) == (76, 51, 26, 1)
    assert reverse_indices(103, 4, None, "leading", 27) == (102, 77, 52, 27)
    assert reverse_indices(100, 4, None, "linspace") == (99, 66, 33, 0)
    assert reverse_indices(6, 3, None, "linspace") == (5, 2, 0)
    assert reverse_indices(100, 1, None, "linspace") == (0,)
    for spacing in ("trailing", "leading", "linspace"):
        assert reverse_indices(4, None, None, spacing, 5) == (3, 2, 1, 0)
        assert reverse_indices(4, 4, None, spacing) == (3, 2, 1, 0)
        assert reverse_indices(100, None, 30, spacing, 5) == (99, 69, 39, 9)


def test_leading_steps_beyond_t_star_are_refused():
    with pytest.raises(ValueError, match="4 leading steps from offset 25 begin at 100"):
        reverse_indices(100, 4, None, "leading", 25)
