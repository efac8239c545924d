"""Where the next network evaluations go: components that are known, designs that can be counted."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from purify_audit.spec.tuning import Components
from purify_audit.statistics.allocation import (
    DRAWS,
    PAIRS,
    cheapest,
    components,
    half_width,
    images_needed,
    largest,
    variance,
)

TRUE = Components(image=4.0, draw=2.0, pair=1.0, both=0.5, odd=3.0)


def simulated(n, k, q, seed=0, parts=TRUE):
    """Rates with known components, all normal."""
    draw = np.random.default_rng(seed).standard_normal
    rates = math.sqrt(parts.image) * draw((n, 1, 1, 1))
    rates = rates + math.sqrt(parts.draw) * draw((n, k, 1, 1))
    rates = rates + math.sqrt(parts.pair) * draw((n, 1, q, 1))
    rates = rates + math.sqrt(parts.both) * draw((n, k, q, 1))
    return 10 + rates + math.sqrt(parts.odd) * draw((n, k, q, 1)) * np.array([1.0, -1.0])


def test_components_of_a_known_layout():
    found = components(simulated(20_000, 3, 4))
    for name in Components.model_fields:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.05), name


def test_components_are_unbiased_in_small_layouts():
    """The mean over many pilots; those that are cut at zero are rare with these components."""
    made = [components(simulated(16, 4, 4, seed)) for seed in range(400)]
    for name in Components.model_fields:
        values = [getattr(part, name) for part in made]
        error = np.std(values) / math.sqrt(len(values))
        assert np.mean(values) == pytest.approx(getattr(TRUE, name), abs=4 * error + 0.02), name


def test_one_draw_has_no_share_of_the_variance():
    found = components(simulated(5_000, 1, 4))
    assert (found.draw, found.both) == (0.0, 0.0)
    assert found.pair == pytest.approx(TRUE.pair + TRUE.both, rel=0.05)
    assert found.image == pytest.approx(TRUE.image + TRUE.draw, rel=0.1)


def test_the_variance_is_that_of_the_mean():
    rates = simulated(50_000, 3, 2, seed=5)
    assert variance(TRUE, 3, 2) == pytest.approx(rates.mean((1, 2, 3)).var(), rel=0.02)


def test_a_half_width_is_that_of_the_t_interval():
    low, high = stats.t.interval(0.9, 24, loc=0.0, scale=math.sqrt(7.0 / 25))
    assert half_width(7.0, 25, 0.9) == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("tolerance", [0.05, 0.2, 1.0, 30.0])
def test_images_needed_are_the_fewest(tolerance):
    n = images_needed(5.0, tolerance, 0.95, 10**6)
    assert half_width(5.0, n, 0.95) <= tolerance
    assert n == 2 or half_width(5.0, n - 1, 0.95) > tolerance


@pytest.mark.parametrize("most", [0, 1, 2, 50])
def test_too_few_images_are_told(most):
    assert images_needed(5.0, 0.05, 0.95, most) is None


def cost(draws, directions):
    return draws * (1 + directions)


@pytest.mark.parametrize("parts", [TRUE, Components(image=9, draw=0.01, pair=0.01, both=0, odd=1)])
@pytest.mark.parametrize("randomised", [True, False])
def test_the_cheapest_of_all_designs(parts, randomised):
    made = cheapest(parts, cost, tolerance=0.2, level=0.95, most=10**5, randomised=randomised)
    assert made.half_width <= 0.2
    assert made.purifications == made.images * cost(made.draws, made.directions)
    for draws, pairs in itertools.product(DRAWS if randomised else (1,), PAIRS):
        n = images_needed(variance(parts, draws, pairs), 0.2, 0.95, 10**5)
        assert n * cost(draws, 2 * pairs) >= made.purifications


def test_where_images_differ_most_each_gets_least():
    parts = Components(image=9.0, draw=0.01, pair=0.01, both=0.01, odd=9.0)
    made = cheapest(parts, cost, tolerance=0.1, level=0.95, most=10**6)
    assert (made.draws, made.directions) == (DRAWS[0], 2 * PAIRS[0])


def test_where_directions_differ_most_and_anchors_are_dear_each_draw_gets_many():
    parts = Components(image=0.01, draw=0.01, pair=9.0, both=0.0, odd=0.0)
    made = cheapest(
        parts,
        lambda draws, directions: draws * (100 + directions),
        tolerance=0.1,
        level=0.95,
        most=10**6,
    )
    assert made.directions == 2 * PAIRS[-1]
    assert made.draws == DRAWS[0]


def test_with_too_few_images_nearly_the_narrowest_and_not_the_dearest():
    parts = Components(image=1.0, draw=1.0, pair=1e-6, both=0.0, odd=0.0)
    made = cheapest(parts, cost, tolerance=0.001, level=0.95, most=30)
    narrowest = half_width(variance(parts, DRAWS[-1], PAIRS[-1]), 30, 0.95)
    assert made.images == 30
    assert narrowest <= made.half_width <= 1.05 * narrowest
    assert made.directions == 2, "more directions would change nothing"
    assert made.draws == 6, "4 draws would be 8% wider than 16, and 6 only 4.8%"


def test_the_largest_of_each():
    other = Components(image=1, draw=5, pair=0, both=2, odd=0)
    assert largest([TRUE, other]) == Components(image=4, draw=5, pair=1, both=2, odd=3)
