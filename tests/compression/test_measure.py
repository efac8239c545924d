"""The estimator against purifiers whose answers are known in closed form."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from subjects import CPU, DIGITS, codes, grey_images, pick, plan_for, run, subject_for

from purify_audit.audit.compression_run import groups, run_compression
from purify_audit.audit.result import Progress
from purify_audit.compression.measure import rows_per_image
from purify_audit.compression.perturbations import directions, scale_to_ball
from purify_audit.core.noise import Noise, Stream
from purify_audit.images.image_set import ImageSet, choose, load_images
from purify_audit.models.runner import Runner, Stopped
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.probes import parse_probe

SIZE = 64


@dataclass
class Affine:
    """P(x; ξ) = mean + A (x − 1/2) + sigma ξ on flattened 8x8 images; A symmetric or not."""

    matrix: torch.Tensor
    sigma: float = 0.0
    mean: float = 0.5
    image: ImageSpec = DIGITS
    evaluations: int = 1

    @property
    def randomised(self):
        return self.sigma > 0

    def __call__(self, x, noise):
        y = self.mean + (x.flatten(1).double() - 0.5) @ self.matrix.double().T
        y = y.float().reshape(x.shape)
        return y + self.sigma * noise.normal(0, self.image.shape) if self.sigma else y


def scale(c, sigma=0.0):
    return Affine(c * torch.eye(SIZE), sigma)


def matrix(kind):
    g = torch.Generator().manual_seed(5)
    a = torch.randn(SIZE, SIZE, generator=g, dtype=torch.float64)
    q, _ = torch.linalg.qr(a)
    if kind == "orthogonal":
        return q
    if kind == "spectrum":  # symmetric, eigenvalues 1.3, 1.1, 0.8, the rest at most 0.5
        values = torch.cat((torch.tensor([1.3, 1.1, 0.8]), torch.linspace(0.5, 0.05, SIZE - 3)))
        return q @ torch.diag(values.double()) @ q.T
    return 0.05 * a


def within(estimate, truth, slack=1e-6):
    return estimate.lower - slack <= truth <= estimate.upper + slack


@pytest.mark.parametrize("probe", ["sign", "uniform", "sphere", "lowfreq", "power"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("c", [0.9, 0.25])
def test_scaling_by_c_has_rate_c_in_both_norms(probe, norm, c):
    outcome = run(scale(c), grey_images(8), probes=({"kind": probe},), norm=norm, draws=1)
    for measured in ("l2", "linf"):
        e = pick(outcome, "compression_rate", measured, probe)
        assert e.value == pytest.approx(c, rel=2e-5)
        assert within(e, c, 1e-5)


def test_an_orthogonal_map_has_rate_1():
    outcome = run(Affine(matrix("orthogonal")), grey_images(16), draws=1)
    assert within(pick(outcome, "compression_rate", "l2"), 1.0)
    assert pick(outcome, "rms_gain").value == pytest.approx(1.0, rel=1e-5)


def test_a_constant_has_rate_0_and_says_that_it_collapses():
    outcome = run(scale(0.0), grey_images(8), draws=1)
    for norm in ("l2", "linf"):
        e = pick(outcome, "compression_rate", norm)
        assert (e.value, e.lower, e.upper) == (0.0, 0.0, 0.0)
    assert "PA110" in codes(outcome)


@pytest.mark.parametrize("probe", ["sign", "uniform", "sphere"])
def test_a_linear_map_has_rms_gain_frobenius_over_root_d(probe):
    a = matrix("any")
    truth = float(torch.linalg.matrix_norm(a)) / SIZE**0.5
    outcome = run(
        Affine(a), grey_images(64), probes=({"kind": probe},), draws=1, directions=32, norm="l2"
    )
    e = pick(outcome, "rms_gain", "l2", probe)
    assert within(e, truth)
    assert e.upper - e.lower < 0.05 * truth


def test_power_iteration_finds_the_upper_end_of_a_symmetric_spectrum():
    probes = ({"kind": "power", "block": 3, "iterations": 25},)
    outcome = run(
        Affine(matrix("spectrum")), grey_images(4), probes=probes, norm="l2", eps=(0.1,), draws=1
    )
    values = [
        pick(outcome, "compression_rate", "l2", p).value for p in ("power", "power:2", "power:3")
    ]
    assert values == pytest.approx([1.3, 1.1, 0.8], rel=1e-3)


def test_power_iteration_follows_each_draw():
    class TwoFaced(Affine):
        """Draw 0 stretches the first pixel, draw 1 the second."""

        def __call__(self, x, noise):
            gains = torch.full((len(x), SIZE), 0.5)
            for row, draw in enumerate(noise.draws):
                gains[row, draw] = 1.5
            return (0.5 + (x.flatten(1) - 0.5) * gains).reshape(x.shape) + 1e-3 * noise.normal(
                0, self.image.shape
            )

    probes = ({"kind": "power", "block": 1, "iterations": 12},)
    outcome = run(
        TwoFaced(torch.eye(1), 1.0), grey_images(4), probes=probes, norm="l2", eps=(0.05,), draws=2
    )
    assert pick(outcome, "compression_rate", "l2", "power").value == pytest.approx(1.5, rel=1e-3)


def test_the_unaligned_ratio_of_scale_and_noise():
    """‖cδ + σ(ξ' − ξ)‖² = c²‖δ‖² + 2σ²d on average; sign probes have ‖δ‖ = ε√d."""
    c, sigma, eps = 0.5, 0.1, 0.05
    outcome = run(scale(c, sigma), grey_images(64), draws=6, directions=4, eps=(eps,))
    e = pick(outcome, "unaligned_ratio", "l2")
    d = SIZE
    # E of a chi with d degrees is √d (1 − 1/4d + …); the shift by c δ changes that only slightly.
    truth = np.sqrt(c**2 + 2 * sigma**2 / eps**2) * (1 - 1 / (4 * d))
    assert e.value == pytest.approx(truth, rel=0.01)
    assert pick(outcome, "compression_rate", "l2").value == pytest.approx(c, rel=1e-4)


@pytest.mark.parametrize(("sigma", "directions"), [(0.1, 4), (0.02, 8), (0.02, 7), (0.0, 4)])
def test_the_randomness_share_of_scale_and_noise(sigma, directions):
    """Var over draws is σ² a pixel, over directions c²ε²: the share is σ² / (σ² + c²ε²)."""
    c, eps = 0.5, 0.05
    outcome = run(scale(c, sigma), grey_images(64), draws=6, directions=directions, eps=(eps,))
    e = pick(outcome, "randomness_share")
    truth = sigma**2 / (sigma**2 + c**2 * eps**2)
    assert e.value == pytest.approx(truth, abs=0.012)


@pytest.mark.parametrize("directions", [2, 3, 8])
def test_the_randomness_share_when_draws_change_the_slope(directions):
    """P = 1/2 + g(ξ)(x − 1/2) + σξ with g = ±c: the sign of the slope is no effect of ξ.

    E[P | ξ] varies by σ² a pixel, P given ξ by c²ε², so the share is σ² / (σ² + c²ε²).
    """
    c, sigma, eps = 0.8, 0.04, 0.05

    class Flips(Affine):
        def __call__(self, x, noise):
            slope = c * noise.signs(1, (1, 1, 1))
            return 0.5 + slope * (x - 0.5) + sigma * noise.normal(0, self.image.shape)

    half = ImageSet(np.full((64, 1, 8, 8), 0.5, np.float32), None, np.arange(64), "half")
    settings = {"draws": 6, "directions": directions, "eps": (eps,), "measure_anyway": True}
    e = pick(run(Flips(torch.eye(1), sigma), half, **settings), "randomness_share")
    assert e.value == pytest.approx(sigma**2 / (sigma**2 + c**2 * eps**2), abs=0.012)


def test_geometry_of_a_shrinking_map():
    """P(x) = 1/2 + c(x − 1/2): ‖P(x) − x‖ = (1 − c)‖x − 1/2‖ for every image."""
    images = grey_images(8, contrast=0.3)
    outcome = run(scale(0.4), images, draws=1, eps=(0.05,))
    distance = 0.6 * np.linalg.norm((images.pixels - 0.5).reshape(8, -1), axis=1)
    assert pick(outcome, "distance_anchor", "l2").value == pytest.approx(distance.mean(), rel=1e-5)
    assert pick(outcome, "distance_delta", "linf").value == pytest.approx(0.05, rel=1e-5)
    assert pick(outcome, "distance_delta", "l2").value == pytest.approx(0.05 * 8, rel=1e-5)
    quantiles = next(q for q in outcome.report.quantiles if q.metric == "distance_anchor")
    assert quantiles.quantiles == pytest.approx(
        np.quantile(distance, [0.05, 0.25, 0.5, 0.75, 0.95])
    )


def test_delta_is_the_perturbation_that_was_really_applied():
    """At a black image half of a sign perturbation is clipped away: ‖δ‖² halves, the rate stays."""
    black = ImageSet(np.zeros((4, 1, 8, 8), np.float32), None, np.arange(4), "black")
    outcome = run(scale(0.5), black, draws=1, directions=64, eps=(0.1,))
    assert pick(outcome, "distance_delta", "l2").value == pytest.approx(
        0.1 * 8 * 0.5**0.5, rel=0.02
    )
    assert pick(outcome, "compression_rate", "l2").value == pytest.approx(0.5, rel=1e-5)


def test_radii_are_measured_apart():
    """P = x² has slope 2x, so its rate over ±ε is not that of ±10 ε."""

    class Square(Affine):
        def __call__(self, x, noise):
            return x**2

    images = ImageSet(np.full((2, 1, 8, 8), 0.5, np.float32), None, np.arange(2), "half")
    outcome = run(Square(torch.eye(1)), images, draws=1, eps=(0.01, 0.4), norm="linf", directions=2)
    small, large = (pick(outcome, "compression_rate", "linf", eps=e).value for e in (0.01, 0.4))
    assert small == pytest.approx(1.01, rel=1e-3)  # the larger of |(½±ε)² − ¼| / ε = 1 ± ε
    assert large == pytest.approx(1.4, rel=1e-3)


def test_a_file_probe_measures_the_perturbations_it_is_given():
    images = grey_images(6)
    attacked = ImageSet(images.pixels + np.float32(0.03), images.labels, images.ids, "user_images")
    probes = ({"kind": "file", "path": "attacked.npz"}, {"kind": "sign"})
    outcome = run(scale(0.5), images, probes=probes, user_images=attacked, draws=1)
    e = pick(outcome, "compression_rate", "l2", "file")
    assert (e.eps, e.n_images) == (None, 6)
    assert e.value == pytest.approx(0.5, rel=1e-4)
    assert pick(outcome, "distance_delta", "linf", "file").value == pytest.approx(0.03, rel=1e-4)


# --- probes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sign", "uniform", "sphere", "lowfreq"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_random_probes_lie_in_their_ball_and_come_in_pairs(kind, norm):
    probe = parse_probe(kind, {})
    v = directions(probe, (3, 8, 8), np.array([4, 9]), 6, seed=3)
    delta = scale_to_ball(v, kind, norm, 0.1).reshape(2, 6, -1).astype(np.float64)
    size = np.abs(delta).max(-1) if norm == "linf" else np.linalg.norm(delta, axis=-1)
    assert (size <= 0.1 * (1 + 1e-6)).all()
    if (kind, norm) != ("uniform", "linf"):
        assert size == pytest.approx(0.1, rel=1e-6)
    assert np.array_equal(delta[:, 0::2], -delta[:, 1::2])
    assert not np.array_equal(delta[0], delta[1])
    assert not np.array_equal(delta[:, 0], delta[:, 2])


@pytest.mark.parametrize("kind", ["sign", "uniform", "sphere"])
def test_isotropic_probes_are_isotropic(kind):
    v = directions(parse_probe(kind, {}), (1, 2, 2), np.arange(4000), 1, seed=3).reshape(4000, 4)
    covariance = v.T.astype(np.float64) @ v / len(v)
    expected = np.eye(4) * covariance.trace() / 4
    assert np.abs(covariance - expected).max() < 5 * covariance.trace() / 4 / np.sqrt(4000)


def test_low_frequency_probes_have_no_high_frequencies():
    from scipy.fft import dctn

    v = directions(parse_probe("lowfreq", {"band": "3"}), (1, 8, 8), np.arange(5), 2, seed=3)
    spectrum = np.abs(dctn(v.astype(np.float64), axes=(-2, -1), norm="ortho"))
    assert spectrum[..., 3:, :].max() < 1e-6
    assert spectrum[..., :, 3:].max() < 1e-6
    assert spectrum[..., :3, :3].min() > 0


def test_directions_do_not_depend_on_which_other_images_are_audited():
    probe = parse_probe("sphere", {})
    alone = directions(probe, (1, 8, 8), np.array([7]), 4, seed=3)
    among = directions(probe, (1, 8, 8), np.array([3, 7, 5]), 6, seed=3)
    assert np.array_equal(alone[0], among[1, :4])


# --- order, chunks, stops ------------------------------------------------------------------------


def compact_unet_purifier():
    from subjects import DIGITS, PROVENANCE

    from purify_audit.models.networks import build_network
    from purify_audit.models.purifiers.diffusion import DiffusionPurifier
    from purify_audit.spec.architectures import UNetArgs
    from purify_audit.spec.card import DiffusionCard
    from purify_audit.spec.samplers import DDPMSampler, LinearSchedule

    card = DiffusionCard(
        name="random",
        image=DIGITS,
        provenance=PROVENANCE,
        network=UNetArgs(width=8, multipliers=(1, 2), blocks=1, attention=(1,)),
        prediction="eps",
        time_conditioning="index",
        schedule=LinearSchedule(),
        data_range=(-1.0, 1.0),
        t_star=60,
        sampler=DDPMSampler(steps=6),
    )
    torch.manual_seed(0)
    network = build_network(card).eval()
    torch.nn.init.normal_(network.conv_out.weight, std=0.05)
    return DiffusionPurifier(card, network)


def few_digits():
    return choose(load_images("digits"), 4, 0)


PROBES = ({"kind": "sign"}, {"kind": "lowfreq"}, {"kind": "power", "iterations": 3})


def test_microbatches_of_1_7_and_64_agree():
    purifier = compact_unet_purifier()
    reports = [
        run(
            purifier, few_digits(), probes=PROBES, microbatch=size, eps=(0.15,), measure_anyway=True
        ).report
        for size in (1, 7, 64)
    ]
    assert len(reports[0].estimates) > 20
    for other in reports[1:]:
        for a, b in zip(reports[0].estimates, other.estimates, strict=True):
            key = ("metric", "norm", "probe", "eps", "n_images", "n_draws", "method")
            assert [getattr(a, k) for k in key] == [getattr(b, k) for k in key]
            assert b.value == pytest.approx(a.value, abs=1e-5)


def test_a_second_run_has_the_same_body_byte_for_byte():
    first, second = (
        run(compact_unet_purifier(), few_digits(), probes=PROBES, eps=(0.15,), measure_anyway=True)
        for _ in range(2)
    )
    assert first.report.body() == second.report.body()
    assert np.array_equal(first.samples.probes.change_l2, second.samples.probes.change_l2)


@pytest.mark.parametrize("microbatch", [1, 7, 64])
def test_the_noise_a_purifier_meets_does_not_depend_on_the_microbatch(microbatch):
    met = {}

    class Recorder(Affine):
        def __call__(self, x, noise):
            z = noise.normal(3, self.image.shape)
            for row, address in enumerate(zip(noise.images, noise.draws)):
                met[address] = z[row].numpy().tobytes()
            return super().__call__(x, noise)

    images = grey_images(5)
    run(Recorder(torch.eye(SIZE), 0.01), images, microbatch=microbatch)
    for (image, draw), numbers in met.items():
        alone = Noise(1, (image,), (draw,), Stream.PURIFY).normal(3, (1, 8, 8))
        assert alone[0].numpy().tobytes() == numbers


def test_every_call_has_exactly_the_size_of_a_microbatch():
    sizes = set()

    class Recorder(Affine):
        def __call__(self, x, noise):
            sizes.add(len(x))
            return super().__call__(x, noise)

    run(Recorder(torch.eye(SIZE)), grey_images(5), microbatch=7, draws=1)
    assert sizes == {7}


def test_a_stop_keeps_the_groups_that_were_done_and_says_partial():
    calls = []

    def tick(rows):
        calls.append(rows)
        if len(calls) == 20:
            raise Stopped

    images = grey_images(64)
    whole = run_compression(subject_for(scale(0.5, 0.01), images, microbatch=8))
    subject = subject_for(scale(0.5, 0.01), images, microbatch=8)
    stopped = run_compression(subject, Progress(tick=tick))
    assert stopped.report.status == "partial"
    done = len(stopped.report.data.ids)
    assert 0 < done < 64
    assert stopped.report.data.ids == whole.report.data.ids[:done]
    rows = len(stopped.samples.probes.image)
    assert np.array_equal(stopped.samples.probes.change_l2, whole.samples.probes.change_l2[:rows])


@pytest.mark.parametrize("stop_at", range(1, 40, 3))
def test_whatever_is_whole_is_kept_at_any_micro_batch(stop_at):
    """A stop within a group keeps its finished images; only `power` may then be missing."""
    images, calls = grey_images(6), []

    def tick(rows):
        calls.append(rows)
        if len(calls) == stop_at:
            raise Stopped

    settings = {"probes": PROBES, "microbatch": 8}
    whole = run_compression(subject_for(scale(0.5, 0.01), images, **settings)).samples.probes
    stopped = run_compression(
        subject_for(scale(0.5, 0.01), images, **settings), Progress(tick=tick)
    )
    assert stopped.report.status == "partial"
    if stopped.samples is None:
        assert stop_at * 8 < 3 * 9  # not even the rows of one image
        return
    kept = stopped.samples.probes
    for row in range(len(kept.image)):
        same = np.ones(len(whole.image), bool)
        for name in ("image", "draw", "probe", "radius", "direction"):
            same &= getattr(whole, name) == getattr(kept, name)[row]
        assert kept.change_l2[row] == whole.change_l2[same]
    rates = [e for e in stopped.report.estimates if e.metric == "compression_rate"]
    assert {e.n_images for e in rates if e.probe == "sign"} == {len(stopped.report.data.ids)}


def test_a_stop_before_anything_is_done_gives_a_report_without_estimates():
    def tick(rows):
        raise Stopped

    outcome = run_compression(subject_for(scale(0.5), microbatch=2), Progress(tick=tick))
    assert outcome.report.status == "partial"
    assert outcome.report.estimates == ()


def test_sampling_stops_at_the_first_look_within_tolerance():
    images = grey_images(64)
    easy = run(scale(0.5), images, tolerance=0.01, draws=1)
    assert len(easy.report.data.ids) == 8  # the first look: a rate without spread
    assert easy.report.status == "complete"
    e = pick(easy, "compression_rate", "l2")
    assert (e.level, e.n_images) == (0.95, 8)
    assert "level split over 4 looks" in e.method


@pytest.mark.parametrize("seed", range(5))
def test_groups_cover_every_image_once_and_never_cross_a_look(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 200))
    plan = plan_for(grey_images(n), tolerance=0.1, microbatch=int(rng.integers(1, 99)))
    parts = list(groups(plan, 256))
    assert [row for part in parts for row in part] == list(range(n))
    ends = np.cumsum([len(p) for p in parts])
    assert set(plan.looks) <= set(ends.tolist())


def test_the_number_of_purifications_is_what_the_plan_says():
    counted = []
    subject = subject_for(scale(0.5, 0.1), grey_images(6), probes=PROBES, eps=(0.1, 0.2))
    run_compression(subject, Progress(tick=counted.append))
    assert sum(counted) == 6 * rows_per_image(subject.plan)
    # 3 draws x (1 anchor + 2 radii x (4 sign + 4 low frequency + 2 in a block x 4 evaluations))
    assert rows_per_image(subject.plan) == 3 * (1 + 2 * (4 + 4 + 2 * 4))


def test_runner_gives_each_row_its_own_address():
    runner = Runner(scale(1.0, 0.1), CPU, 9, 4)
    x = np.full((6, 1, 8, 8), 0.5, np.float32)
    ids, draws = np.array([1, 1, 2, 2, 3, 3]), np.array([0, 1, 0, 1, 0, 0])
    y = runner(x, ids, draws)
    assert np.array_equal(y[4], y[5])
    assert not np.array_equal(y[0], y[1])
    assert not np.array_equal(y[0], y[2])
    assert replace(runner, seed=10)(x, ids, draws).tobytes() != y.tobytes()
