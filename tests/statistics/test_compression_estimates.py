"""Intervals: exactness against scipy, honesty with little data, coverage by simulation."""

import numpy as np
import pytest
from scipy import stats
from subjects import DIGITS, grey_images, pick, plan_for, run

from purify_audit.core.errors import ReportError
from purify_audit.core.noise import Noise, Stream
from purify_audit.images.image_set import ImageSet
from purify_audit.statistics.compression import (
    PerImageValues,
    estimate,
    per_image,
    within_tolerance,
)
from purify_audit.statistics.compression_rows import (
    AnchorRows,
    CompressionSamples,
    ProbeRows,
    VarianceRows,
    join,
    load_samples,
    save_samples,
)
from purify_audit.statistics.intervals import mean_interval, proportion_interval


def test_the_t_interval_is_scipys():
    values = np.array([0.3, 0.5, 0.1, 0.9, 0.4])
    mean, lower, upper = mean_interval(values, 0.9)
    expected = stats.t.interval(0.9, 4, values.mean(), stats.sem(values))
    assert (mean, lower, upper) == pytest.approx((values.mean(), *expected))


@pytest.mark.parametrize("hits", [0, 1, 7, 19, 20])
def test_the_proportion_interval_is_clopper_and_pearsons(hits):
    values = np.array([1.0] * hits + [0.0] * (20 - hits))
    expected = stats.binomtest(hits, 20).proportion_ci(0.95, method="exact")
    assert proportion_interval(values, 0.95)[1:] == pytest.approx((expected.low, expected.high))


def test_all_right_is_not_certainty():
    assert proportion_interval(np.ones(20), 0.95) == (1.0, pytest.approx(0.8316, abs=1e-4), 1.0)


def test_one_image_tells_nothing_about_the_spread():
    outcome = run(Gains(0.5, 0.1), grey_images(1))
    e = pick(outcome, "compression_rate", "l2")
    assert (e.lower, e.upper, e.n_images) == (None, None, 1)


def test_images_are_the_clusters_however_many_rows_they_have():
    """Doubling the draws of the same images leaves n at the number of images."""
    few, many = (run(Gains(0.5, 0.2), grey_images(12), draws=d) for d in (2, 8))
    a, b = (pick(o, "compression_rate", "l2") for o in (few, many))
    assert a.n_images == b.n_images == 12
    assert (b.upper - b.lower) > 0.5 * (a.upper - a.lower)


def test_an_interval_widens_with_its_level():
    data = PerImageValues(
        "compression_rate", "l2", "sign", 0.1, np.arange(3), np.array([0.1, 0.2, 0.4]), 4
    )
    widths = []
    for level in (0.8, 0.95, 0.99):
        e = estimate(data, plan_for(grey_images(3), level=level))
        widths.append(e.upper - e.lower)
    assert widths == sorted(widths)


def test_looks_split_the_level():
    plan = plan_for(grey_images(64), tolerance=0.1)
    assert plan.looks == (8, 16, 32, 64)
    assert plan.look_level == pytest.approx(1 - 0.05 / 4)
    values = np.linspace(0, 1, 16)
    e = estimate(
        PerImageValues("compression_rate", "l2", "sign", 0.1, np.arange(len(values)), values, 4),
        plan,
    )
    assert (e.lower, e.upper) == pytest.approx(mean_interval(values, 1 - 0.05 / 4)[1:])
    assert e.level == 0.95


class Gains:
    """P(x; ξ) = 1/2 + g (x − 1/2), g = mean + spread (u + v/2)/√2: u by image, v by image and draw.

    Its rate is g in every direction and norm, so the truth over the population is `mean`.
    """

    image, randomised, evaluations = DIGITS, True, 1

    def __init__(self, mean, spread):
        self.mean, self.spread = mean, spread

    def __call__(self, x, noise):
        per_image = Noise(noise.seed, noise.images, (0,) * len(noise), Stream.CHOICE).normal(
            5, (1,)
        )
        per_draw = noise.normal(0, (1,))
        g = self.mean + self.spread * (per_image + 0.5 * per_draw) / 2**0.5
        return 0.5 + g[:, :, None, None] * (x - 0.5)


def coverage(audits, **settings):
    """Share of audits of fresh images whose interval holds the truth, and of naive intervals."""
    hits, naive, truth, used = 0, 0, 0.5, 0
    for seed in range(audits):
        pixels = np.full((16, 1, 8, 8), 0.5, np.float32)
        images = ImageSet(pixels, None, np.arange(16) + 1000 * seed, "grey")
        outcome = run(Gains(truth, 0.1), images, seed=seed, microbatch=256, **settings)
        e = pick(outcome, "compression_rate", "l2")
        hits += e.lower <= truth <= e.upper
        rows = outcome.samples.probes
        _, low, high = mean_interval(rows.change_l2 / rows.delta_l2, 0.95)
        naive += low <= truth <= high
        used += e.n_images
    return hits / audits, naive / audits, used / audits


def test_intervals_cover_and_naive_ones_do_not():
    clustered, naive, _ = coverage(150, draws=4, directions=8)
    assert clustered > 0.90
    assert naive < 0.5


@pytest.mark.slow
def test_coverage_of_2000_audits():
    """Nominal 95% covers 93 to 97%; treating rows as independent covers about a third."""
    clustered, naive, _ = coverage(2000, draws=4, directions=8)
    print(f"\ncoverage of 2,000 audits: clustered {clustered:.4f}, naive {naive:.4f}")
    assert 0.93 <= clustered <= 0.97
    assert naive < 0.45


@pytest.mark.slow
def test_coverage_with_stopping():
    """Stopping at the first look that is narrow enough keeps at least the nominal coverage."""
    clustered, _, used = coverage(1000, draws=2, directions=4, tolerance=0.05)
    print(f"\nwith stopping: coverage {clustered:.4f}, {used:.1f} of 16 images on average")
    assert clustered >= 0.94
    assert used < 16


def test_joined_rows_of_an_image_stay_one_cluster():
    samples = [run(Gains(0.5, 0.0), grey_images(4)).samples for _ in range(2)]
    plan = plan_for(grey_images(4))
    joined = join(samples)
    assert len(joined.probes.image) == 2 * len(samples[0].probes.image)
    rates = next(d for d in per_image(joined, plan) if d.metric == "compression_rate")
    assert len(rates.values) == 4


def test_within_tolerance_needs_a_tolerance_and_an_interval():
    images = grey_images(8)
    samples = run(Gains(0.5, 0.0), images).samples
    assert not within_tolerance(samples, plan_for(images))
    assert within_tolerance(samples, plan_for(images, tolerance=0.01))
    one = run(Gains(0.5, 0.0), grey_images(1)).samples
    assert not within_tolerance(one, plan_for(grey_images(1), tolerance=0.01))


def test_rows_round_trip_and_damage_is_told(tmp_path):
    samples = run(Gains(0.5, 0.1), grey_images(3)).samples
    path = tmp_path / "rows.safetensors"
    save_samples(path, samples)
    again = load_samples(path)
    for table in (ProbeRows, AnchorRows, VarianceRows):
        name = {ProbeRows: "probes", AnchorRows: "anchors", VarianceRows: "variances"}[table]
        for column in table.__dataclass_fields__:
            a, b = (getattr(getattr(s, name), column) for s in (samples, again))
            assert np.array_equal(a, b, equal_nan=True)
    assert isinstance(again, CompressionSamples)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ReportError, match="cannot be read"):
        load_samples(path)
