"""Differences against a baseline, paired by image."""

import numpy as np
import pytest
from judged import estimate
from scipy.stats import binomtest, ttest_rel

from purify_audit.core.errors import ReportError
from purify_audit.gate.paired import Column, mcnemar, pair
from purify_audit.statistics.intervals import paired_interval

RNG = np.random.default_rng(5)


def column(values, first=0):
    return Column(np.arange(first, first + len(values)), np.asarray(values, float))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 1), (5, 5), (9, 2), (40, 60)])
def test_mcnemar_is_scipys_binomial_test(lost, gained):
    n = lost + gained
    want = binomtest(lost, n, 0.5).pvalue if n else 1.0
    assert mcnemar(lost, gained) == pytest.approx(want)


def test_many_changed_verdicts_are_no_trouble():
    assert mcnemar(5000, 5000) == 1.0
    assert mcnemar(4000, 6000) < 1e-80


def test_a_rate_has_the_paired_t_interval():
    old = RNG.gamma(2, 0.3, 40)
    new = old + RNG.normal(0.02, 0.01, 40)
    found = pair(estimate(), column(new), column(old), 0.95)
    want = ttest_rel(new, old).confidence_interval(0.95)
    assert (found.change.lower, found.change.upper) == pytest.approx((want.low, want.high))
    assert found.change.value == pytest.approx((new - old).mean())
    assert found.baseline == pytest.approx(old.mean())
    assert (found.p_value, found.surely_differs) == (None, True)


def test_pairing_is_by_id_and_not_by_place():
    old, new = column([1.0, 2.0, 3.0, 4.0]), column([9.0, 2.5, 3.5, 4.5][1:], first=1)
    back = Column(new.images[::-1], new.values[::-1])
    found = pair(estimate(), back, old, 0.9)
    assert (found.change.value, found.change.n_images, found.baseline) == (0.5, 3, 3.0)


def test_pairing_sees_what_unpaired_intervals_cannot():
    old = RNG.gamma(2, 0.3, 40)
    new = old + 0.02 + RNG.normal(0, 0.01, 40)
    found = pair(estimate(), column(new), column(old), 0.95)
    assert found.change.lower > 0
    spread = old.std(ddof=1) / np.sqrt(40)
    assert spread > 5 * (found.change.upper - found.change.lower)


def test_verdicts_have_bonett_and_price_and_mcnemar():
    old = np.r_[np.ones(20), np.zeros(20)]
    new = old.copy()
    new[:6], new[20] = 0, 1
    e = estimate("aligned_robust_accuracy")
    found = pair(e, column(new), column(old), 0.9)
    assert (found.change.lower, found.change.upper) == paired_interval(new - old, 0.9)
    assert found.p_value == mcnemar(6, 1) == pytest.approx(0.125)
    assert not found.surely_differs
    assert pair(e, column(new), column(old), 0.8).surely_differs


def test_shares_over_draws_have_no_mcnemar():
    found = pair(estimate("anchor_accuracy"), column([0.5, 1.0]), column([1.0, 1.0]), 0.9)
    assert (found.p_value, found.surely_differs) == (None, True)


def test_looks_share_the_level():
    old, new = column(RNG.normal(size=20)), column(RNG.normal(size=20))
    split = pair(estimate(), new, old, 0.9, looks=2).change
    strict = pair(estimate(), new, old, 0.95).change
    assert (split.lower, split.upper, split.level) == (strict.lower, strict.upper, 0.9)


def test_fewer_than_two_images_in_common_are_refused():
    for old in (column([2.0]), column([1.0, 2.0], first=5)):
        with pytest.raises(ReportError, match="fewer than two images are in both"):
            pair(estimate(), column([1.0]), old, 0.9)


def test_changes_of_differences_do_not_shrink_to_nothing():
    """A difference of shares lies in [−1, 1], its change in [−2, 2]: twice that of the halves."""
    e = estimate("randomness_inflation", probe="fresh")
    same = pair(e, column(np.zeros(16)), column(np.zeros(16)), 0.95).change
    half = paired_interval(np.zeros(16), 0.95)
    assert (same.lower, same.upper) == (2 * half[0], 2 * half[1])
    assert same.upper > 0.1
    worst = pair(e, column(np.ones(16)), column(-np.ones(16)), 0.95).change
    assert worst.value == 2.0


def test_equal_values_of_few_images_are_not_certain_for_verdicts():
    ones = column(np.ones(10))
    found = pair(estimate("aligned_robust_accuracy"), ones, ones, 0.95)
    assert found.change.lower < -0.05
    assert found.p_value == 1.0
