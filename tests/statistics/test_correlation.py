"""Coefficients against hand work and scipy, intervals by simulation, honesty with little data."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from effort import calls
from scipy import stats

from purify_audit.statistics.correlation import KINDS, correlations, spearman_interval


def sample(n, r=0.6, seed=0):
    """Bivariate normal pairs [2, n] of correlation r."""
    x, z = np.random.default_rng(seed).normal(size=(2, n))
    return x, r * x + math.sqrt(1 - r * r) * z


def by_kind(x, y, seed=1, **settings):
    return {c.kind: c for c in correlations(x, y, seed, **settings)}


def scipys(x, y):
    found = stats.pearsonr(x, y), stats.spearmanr(x, y), stats.kendalltau(x, y)
    return dict(zip(("pearson", "spearman", "kendall"), (f.statistic for f in found)))


TIED = np.array([0.1, 0.1, 0.5, 0.7, 0.7, 0.7, 0.9]), np.array([3.0, 1.0, 2.0, 2.0, 2.0, 5.0, 5.0])


# --- values --------------------------------------------------------------------------------------


def test_coefficients_worked_by_hand():
    """Deviations (−1.5, −0.5, 0.5, 1.5) and (−2.5, −0.5, −1.5, 4.5): r = 10 / √(5 · 29).

    Ranks (1 2 3 4) and (1 3 2 4) differ by 0, 1, 1, 0: 1 − 6·2/(4·15). One of six pairs disagrees.
    """
    found = by_kind([1, 2, 3, 4], [1, 3, 2, 8])
    assert found["pearson"].value == pytest.approx(10 / math.sqrt(145))
    assert found["spearman"].value == pytest.approx(0.8)
    assert found["kendall"].value == pytest.approx(4 / 6)


def test_ties_worked_by_hand():
    """x has one tie, y none: tau-b = (5 − 0) / √(5 · 6); average ranks 1.5, 1.5, 3, 4."""
    found = by_kind([1, 1, 2, 3], [1, 2, 3, 4])
    assert found["kendall"].value == pytest.approx(5 / math.sqrt(30))
    assert found["spearman"].value == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize("pairs", [sample(5), sample(30), TIED])
def test_coefficients_are_scipys(pairs):
    found = by_kind(*pairs)
    assert tuple(found) == KINDS
    for kind, value in scipys(*pairs).items():
        assert found[kind].value == pytest.approx(value, abs=1e-9)
        assert found[kind].n == len(pairs[0])


@pytest.mark.parametrize("pairs", [sample(6), sample(20), TIED])
def test_leaving_one_out_by_brute_force(pairs):
    found = by_kind(*pairs)
    rests = [scipys(*(np.delete(s, n) for s in pairs)) for n in range(len(pairs[0]))]
    for kind in KINDS:
        values = [rest[kind] for rest in rests]
        assert found[kind].leave_one_out == pytest.approx((min(values), max(values)), abs=1e-9)


def test_the_order_of_pairs_does_not_matter():
    x, y = sample(12)
    other = np.random.default_rng(5).permutation(12)
    assert correlations(x, y, 3) == correlations(x[other], y[other], 3)


def test_units_do_not_matter_and_a_flip_flips_the_sign():
    x, y = sample(10)
    for a, b in zip(correlations(x, y, 3), correlations(4.0 * x, 0.25 * y, 3)):
        assert (a.value, a.lower, a.upper, a.p) == pytest.approx((b.value, b.lower, b.upper, b.p))
    for a, b in zip(correlations(x, y, 3), correlations(x, -y, 3)):
        assert (a.value, a.leave_one_out) == (
            pytest.approx(-b.value),
            pytest.approx((-b.leave_one_out[1], -b.leave_one_out[0])),
        )
        assert (a.lower, a.upper) == pytest.approx((-b.upper, -b.lower), abs=0.05)


def test_the_seed_decides_everything():
    x, y = sample(12)
    assert correlations(x, y, 3) == correlations(x, y, 3)
    assert correlations(x, y, 3) != correlations(x, y, 2**64 - 1)


def test_spearmans_entry_alone_is_the_same():
    x, y = sample(12)
    assert spearman_interval(x, y, 3) == by_kind(x, y, 3)["spearman"]


# --- p values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pairs", [([1, 2, 3, 4], [1, 3, 2, 8]), sample(6), tuple(s[:6] for s in TIED)]
)
def test_p_is_exact_for_few_pairs(pairs):
    found = by_kind(*pairs)
    x, y = (np.asarray(s, float) for s in pairs)
    for kind, value in scipys(x, y).items():
        far = [
            abs(scipys(x, y[list(order)])[kind]) >= abs(value) - 1e-9
            for order in itertools.permutations(range(len(y)))
        ]
        assert found[kind].p == pytest.approx(np.mean(far))


def test_four_pairs_in_perfect_order_prove_little():
    """Two of 24 orders are perfect."""
    assert by_kind([1, 2, 3, 4], [2, 4, 6, 8])["kendall"].p == pytest.approx(2 / 24)


def test_p_of_many_pairs_is_never_0_and_agrees_with_scipy():
    x, y = sample(25, r=0.3)
    expected = {"pearson": stats.pearsonr(x, y).pvalue, "kendall": stats.kendalltau(x, y).pvalue}
    found = by_kind(x, y)
    for kind, p in expected.items():
        assert found[kind].p == pytest.approx(p, abs=0.03)
    assert by_kind(x, x)["spearman"].p == pytest.approx(1 / 5000)


def test_p_is_uniform_under_independence():
    p = [spearman_interval(*sample(15, 0.0, seed), seed).p for seed in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert np.mean(np.array(p) <= 0.05) < 0.09


# --- intervals -----------------------------------------------------------------------------------


def coverage(samples, n, kind, r=0.6):
    truth = {"pearson": r, "kendall": 2 / math.pi * math.asin(r)}[kind]
    hits = 0
    for seed in range(samples):
        c = correlations(*sample(n, r, seed), seed, kinds=(kind,))[0]
        hits += c.lower is None or c.lower <= truth <= c.upper
    return hits / samples


@pytest.mark.parametrize(("kind", "n"), [("pearson", 25), ("kendall", 12)])
def test_intervals_cover(kind, n):
    assert 0.88 <= coverage(200, n, kind) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("n", "least"), [(4, 0.80), (8, 0.90), (25, 0.92)])
def test_coverage_of_1000_samples(n, least):
    share = coverage(1000, n, "pearson")
    print(f"\nn = {n}: Pearson's r in {share:.3f} of nominal 95% intervals")
    assert least <= share <= 0.98


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_intervals_are_near_scipys_bca(kind):
    """Another program, other resamples, the same method."""
    x, y = sample(25)
    rng = np.random.default_rng(0)
    statistic = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[kind]
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: statistic(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=3000,
        random_state=rng,
    ).confidence_interval
    c = by_kind(x, y)[kind]
    assert (c.lower, c.upper) == pytest.approx((theirs.low, theirs.high), abs=0.04)


def test_an_interval_widens_with_its_level_and_narrows_with_pairs():
    widths = [
        c.upper - c.lower for c in (spearman_interval(*sample(20), 1, a) for a in (0.8, 0.95, 0.99))
    ]
    assert widths == sorted(widths)
    few, many = (spearman_interval(*sample(n), 1) for n in (10, 200))
    assert many.upper - many.lower < few.upper - few.lower


@pytest.mark.parametrize("seed", range(40))
def test_an_interval_holds_its_value_and_lies_within_1(seed):
    for c in correlations(*sample(4 + seed % 4, 0.9, seed), seed):
        assert c.lower is None or -1 <= c.lower <= c.value <= c.upper <= 1


# --- too little data -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_pairs_have_no_coefficient(n):
    for c in correlations(np.arange(n), np.arange(n), 1):
        assert (c.value, c.lower, c.upper, c.p, c.leave_one_out, c.n) == (*[None] * 5, n)


@pytest.mark.parametrize("n", [2, 3])
def test_two_and_three_pairs_have_a_value_and_no_certainty(n):
    for c in correlations(np.arange(n), np.arange(n) ** 2, 1):
        assert c.value == pytest.approx(1.0, abs=0.05)
        assert (c.lower, c.upper, c.p, c.n) == (None, None, None, n)
        assert c.leave_one_out == (None if n == 2 else pytest.approx((1.0, 1.0)))


def test_what_does_not_vary_has_no_coefficient():
    for pairs in (([1, 2, 3, 4, 5], [2] * 5), ([2] * 5, [1, 2, 3, 4, 5])):
        for c in correlations(*pairs, 1):
            assert (c.value, c.lower, c.upper, c.p, c.leave_one_out) == (None,) * 5


def test_differences_of_rounding_are_none():
    equal = [0.3, 0.1 + 0.2, 0.3, 0.3, 0.3]
    assert len(set(equal)) == 2
    assert by_kind(equal, [1, 2, 3, 4, 5])["spearman"].value is None
    assert by_kind([1e300, 2e300, 4e300, 3e300], [1, 2, 4, 3])["pearson"].value == pytest.approx(1)


def test_resamples_that_all_agree_are_not_certainty():
    for c in correlations(np.arange(9), 2.0 * np.arange(9), 1):
        assert c.value == pytest.approx(1.0)
        assert (c.lower, c.upper) == (None, None)
        assert c.p < 0.001


def test_a_coefficient_that_hangs_on_one_pair_has_no_interval():
    for c in correlations([0, 0, 0, 0, 0, 1], [1, 2, 3, 4, 5, 6], 1):
        assert c.value > 0
        assert (c.lower, c.upper, c.leave_one_out) == (None, None, None)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, math.nan, 4], [1, 2, 3, 4], "finite"),
        ([1, 2, 3, 4], [1, 2, 3, math.inf], "finite"),
        ([1, 2, 3], [1, 2], "one length"),
        ([[1, 2]], [[1, 2]], "one length"),
    ],
)
def test_what_is_not_pairs_of_numbers_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        correlations(x, y, 1)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_is_a_share(level):
    with pytest.raises(ValueError, match="level"):
        correlations([1, 2, 3, 4], [1, 3, 2, 4], 1, level)


# --- cost ----------------------------------------------------------------------------------------


def test_resamples_are_vectorised():
    assert calls(lambda: correlations(*sample(30), 1))[1] < 50_000


def test_thousands_of_images_fit():
    c = spearman_interval(*sample(1500), 1)
    assert 0.5 < c.lower < c.value < c.upper < 0.7
    assert c.p == pytest.approx(1 / 5000)


def test_comparing_needs_no_torch():
    rooms = "statistics.correlation", "report.comparison", "render.terminal.comparison"
    modules = ", ".join(f"purify_audit.{room}" for room in rooms)
    code = f"import sys, {modules}; print('torch' in sys.modules, 'scipy.stats' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
