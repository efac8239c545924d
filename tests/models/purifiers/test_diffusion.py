"""Every chain against arithmetic by hand, for data whose posterior is known in closed form."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from oracles import (
    TWO_BUMPS,
    Constant,
    Mixture,
    Recorder,
    Script,
    Shifted,
    continuous_abar,
    continuous_rate,
    diffusion_card,
    draws,
    gaussian,
    literal_abar,
    perfect_purifier,
    pixels,
)
from torch import nn

from purify_audit.core.noise import Noise
from purify_audit.models.networks import build_network
from purify_audit.models.protocols import Purifier
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.spec.architectures import UNetArgs
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.samplers import (
    CosineSchedule,
    DDIMSampler,
    DDPMSampler,
    LinearSchedule,
    OneStepSampler,
    VPODESampler,
    VPSchedule,
    VPSDESampler,
)

RAW = {"clip": False, "clamp": False}
EVERY = [
    DDPMSampler(**RAW),
    DDPMSampler(variance="fixed-large", **RAW),
    DDPMSampler(variance="learned-range", **RAW),
    DDPMSampler(steps=7, **RAW),
    DDPMSampler(stride=9, variance="fixed-large", **RAW),
    DDPMSampler(steps=11, variance="learned-range", **RAW),
    DDPMSampler(steps=4, rounds=3, **RAW),
    DDPMSampler(steps=7, spacing="leading", offset=2, rounds=2, **RAW),
    DDPMSampler(steps=8, spacing="linspace", variance="fixed-large", **RAW),
    DDIMSampler(**RAW),
    DDIMSampler(eta=0.5, **RAW),
    DDIMSampler(eta=1.0, **RAW),
    DDIMSampler(eta=0.0, steps=7, **RAW),
    DDIMSampler(eta=0.5, steps=7, rounds=2, **RAW),
    DDIMSampler(eta=1.0, stride=8, **RAW),
    DDIMSampler(eta=0.5, steps=7, spacing="leading", **RAW),
    DDIMSampler(eta=0.5, steps=1, spacing="linspace", **RAW),
    VPSDESampler(clamp=False),
    VPSDESampler(steps=13, clamp=False),
    VPSDESampler(steps=45, rounds=2, clamp=False),
    VPODESampler(clamp=False),
    VPODESampler(steps=13, rounds=2, clamp=False),
    OneStepSampler(**RAW),
    OneStepSampler(rounds=3, **RAW),
]
SCHEDULES = [
    LinearSchedule(),
    LinearSchedule(steps=100, beta_start=1e-3, beta_end=0.1),
    VPSchedule(steps=50),
    CosineSchedule(steps=60),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads cost more than they give on tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def name(sampler):
    told = sampler.model_dump(exclude={"kind", "clip", "clamp"}, exclude_defaults=True)
    return "-".join([sampler.kind, *(f"{k}={v}" for k, v in told.items())])


def is_euler(sampler):
    return isinstance(sampler, VPSDESampler | VPODESampler)


# --- Gaussian data: everything is affine --------------------------------------------------------


@dataclass(frozen=True)
class Affine:
    """gain x + offset + sum over k of noise[k] z_k, for the input x and every normal z_k drawn."""

    gain: float
    offset: float
    noise: tuple[float, ...] = ()

    def then(self, gain, offset):
        return Affine(
            gain * self.gain, gain * self.offset + offset, tuple(gain * b for b in self.noise)
        )

    def plus(self, deviation):
        """One more normal; 0 where the chain may not draw one."""
        return Affine(self.gain, self.offset, (*self.noise, deviation))

    @property
    def variance(self):
        return sum(b * b for b in self.noise)


def visited(t_star, sampler):
    """Pairs (i, the index after it), from t* - 1 (leading: lower) to -1."""
    n = sampler.steps or t_star
    if sampler.stride:
        grid = list(range(t_star - 1, -1, -sampler.stride))
    elif sampler.spacing == "trailing":
        grid = [math.ceil(Fraction(t_star * (n - k), n)) - 1 for k in range(n)]
    elif sampler.spacing == "leading":
        grid = [k * (t_star // n) + sampler.offset for k in reversed(range(n))]
    else:
        grid = [round(Fraction((t_star - 1) * k, max(n - 1, 1))) for k in reversed(range(n))]
    return list(zip(grid, [*grid[1:], -1], strict=True))


def by_hand(card, mean, std, logit=0.0) -> Affine:
    """A whole purification of N(mean, std^2) data (data range), pixel units in and out.

    With v = a s^2 + 1 - a the perfect network says eps = sqrt(1 - a) (x - sqrt(a) m) / v, so:

    DDPM: x' = (x - beta / sqrt(1 - a) eps) / sqrt(alpha) + sd z, with alpha = a_i / a_p,
        sd^2 = beta (1 - a_p) / (1 - a_i), or beta, or exp(f log beta + (1 - f) log of the former)
        with f = (logit + 1) / 2; nothing is added at the last jump (Ho et al. 2020, algorithm 2;
        Nichol and Dhariwal 2021, eq. 15).
    DDIM: x' = sqrt(a_p) (x - sqrt(1 - a_i) eps) / sqrt(a_i) + sqrt(1 - a_p - sd^2) eps + sd z,
        sd = eta sqrt((1 - a_p) / (1 - a_i)) sqrt(1 - a_i / a_p) (Song, Meng and Ermon 2021).
    SDE: x' = x + h (b x / 2 - b eps / sqrt(1 - a)) + sqrt(b h) z, b and a at t = t_k (Nie et al.
        2022), t_k = t* (n - k) / n / N; the last h is 1e-5 shorter, and has noise too.
    ODE: x' = x + h (b x / 2 - b eps / sqrt(1 - a) / 2).
    """
    low, high = card.data_range
    state = Affine(1.0, 0.0).then(high - low, low)
    abar = [*literal_abar(card.schedule), 1.0]  # index -1 is the clean image
    for _ in range(card.sampler.rounds):
        strided = isinstance(card.sampler, DDPMSampler | DDIMSampler)
        first = visited(card.t_star, card.sampler)[0][0] if strided else card.t_star - 1
        a = abar[first]
        state = state.then(math.sqrt(a), 0.0).plus(math.sqrt(1.0 - a))
        match card.sampler:
            case DDPMSampler() as sampler:
                state = ddpm_by_hand(state, card, sampler, (abar, mean, std, logit))
            case DDIMSampler() as sampler:
                state = ddim_by_hand(state, card, sampler, (abar, mean, std))
            case OneStepSampler():
                g = math.sqrt(a) * std**2 / (a * std**2 + 1.0 - a)
                state = state.then(g, mean - g * math.sqrt(a) * mean).plus(0.0)
            case sampler:
                state = euler_by_hand(state, card, sampler, (mean, std))
    return state.then(1.0 / (high - low), -low / (high - low))


def ddpm_by_hand(state, card, sampler, facts):
    abar, mean, std, logit = facts
    for i, p in visited(card.t_star, sampler):
        a, alpha = abar[i], abar[i] / abar[p]
        beta, v = 1.0 - alpha, a * std**2 + 1.0 - a
        state = state.then((1.0 - beta / v) / math.sqrt(alpha), 0.0)
        state = state.then(1.0, beta / v * math.sqrt(a) * mean / math.sqrt(alpha))
        small = beta * (1.0 - abar[p]) / (1.0 - a)
        variance = 0.0
        if p >= 0:
            variance = {
                "fixed-small": small,
                "fixed-large": beta,
                "learned-range": beta ** ((1 + logit) / 2) * small ** ((1 - logit) / 2),
            }[sampler.variance]
        state = state.plus(math.sqrt(variance))
    return state


def ddim_by_hand(state, card, sampler, facts):
    abar, mean, std = facts
    for i, p in visited(card.t_star, sampler):
        a, b = abar[i], abar[p]
        v = a * std**2 + 1.0 - a
        sd = sampler.eta * math.sqrt((1.0 - b) / (1.0 - a)) * math.sqrt(1.0 - a / b)
        of_eps = math.sqrt(1.0 - b - sd * sd) - math.sqrt(b * (1.0 - a) / a)
        gain = of_eps * math.sqrt(1.0 - a) / v
        state = state.then(math.sqrt(b / a) + gain, -gain * math.sqrt(a) * mean).plus(sd)
    return state


def euler_by_hand(state, card, sampler, facts):
    mean, std = facts
    n, unit = sampler.steps or card.t_star, card.schedule.steps
    low, high = continuous_rate(card.schedule)
    for k in range(n):
        t = card.t_star / unit * (n - k) / n
        h = card.t_star / unit / n - (1e-5 if k == n - 1 else 0.0)
        a, b = continuous_abar(card.schedule, t), low + (high - low) * t
        v = a * std**2 + 1.0 - a
        pull = b / v * (0.5 if sampler.kind == "vp-ode" else 1.0)
        state = state.then(1.0 + h * (b / 2.0 - pull), h * pull * math.sqrt(a) * mean)
        state = state.plus(math.sqrt(b * h) if sampler.kind == "vp-sde" else 0.0)
    return state


def measured(purifier, pixel, length) -> Affine:
    """The affine map of one pixel, read off a purifier: inputs 0 and 1, and every normal alone."""
    shape = purifier.image.shape
    x = torch.zeros(length + 3, *shape, dtype=torch.float64)
    z = torch.zeros(length + 3, length, *shape, dtype=torch.float64)
    for k in range(length):  # row 0: no noise at all
        z[(1 + k, k, *pixel)] = 1.0
    z[-2:] = torch.from_numpy(np.random.default_rng(1).normal(size=z[0].shape))
    x[(-1, *pixel)] = 1.0  # the same draw on both of the last rows
    script = Script(z)
    y = purifier(x, script)
    assert y.dtype == torch.float64
    others = y - y[0]
    others[(slice(None), *pixel)] = 0.0
    assert bool((others[:-2] == 0.0).all())  # no pixel is moved by another's noise
    mine = y[(slice(None), *pixel)]
    noise = (mine[1:-2] - mine[0]).tolist()
    read = [k for k in range(length) if noise[k] != 0.0]
    assert script.asked == read  # in order, each once, none in vain
    return Affine(float(mine[-1] - mine[-2]), float(mine[0]), tuple(noise))


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        pytest.param(sampler, schedule, id=f"{name(sampler)}-{schedule.kind}{schedule.steps}")
        for sampler in EVERY
        for schedule in SCHEDULES
        if not (is_euler(sampler) and schedule.kind == "cosine")  # no continuous counterpart
    ],
)
def test_gaussian_data_gives_the_affine_map_written_out(sampler, schedule):
    logits = torch.tensor([[[-1.0, -0.3], [0.4, 1.0]]], dtype=torch.float64)
    for data_range, conditioning, mean, std, pixel in (
        ((-1.0, 1.0), "index", 0.3, 0.4, (0, 0, 0)),
        ((-1.0, 1.0), "continuous", -0.2, 1.3, (0, 0, 1)),
        ((0.0, 1.0), "continuous", 0.45, 0.2, (0, 1, 0)),
        ((-3.0, 2.0), "index", 0.0, 1.0, (0, 1, 1)),
    ):
        learned = getattr(sampler, "variance", "") == "learned-range"
        card = diffusion_card(
            sampler,
            schedule=schedule,
            data_range=data_range,
            time_conditioning=conditioning,
            learned_variance=learned,
        )
        want = by_hand(card, mean, std, float(logits[pixel]))
        purifier = perfect_purifier(card, gaussian(mean, std), logits if learned else None)
        got = measured(purifier, pixel, len(want.noise))
        assert got.gain == pytest.approx(want.gain, abs=1e-10)
        assert got.offset == pytest.approx(want.offset, abs=1e-10)
        assert got.noise == pytest.approx(want.noise, abs=1e-10)
        assert got.variance == pytest.approx(want.variance, abs=1e-10)


@pytest.mark.parametrize("pixel_std", [0.1, 0.25, 0.6])
def test_one_step_is_the_wiener_filter(pixel_std):
    """Mean map abar s^2 / (abar s^2 + 1 - abar), s in the data range: the compression rate."""
    card = diffusion_card(OneStepSampler(**RAW), t_star=150)
    a, s = float(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))[149]), 2.0 * pixel_std
    got = measured(perfect_purifier(card, gaussian(0.1, s)), (0, 0, 0), 1)
    wiener = a * s * s / (a * s * s + 1.0 - a)
    assert got.gain == pytest.approx(wiener, abs=1e-12)
    assert got.variance == pytest.approx(wiener**2 * (1.0 - a) / a / 4.0, abs=1e-12)


def flow(schedule, t, s):
    """Exact gains of reverse time from t to 1e-5, where the chains stop.

    With v = abar s^2 + 1 - abar at t, and the same primed at t' = 1e-5:
    SDE: E[x' | x] is linear in x with gain sqrt(abar / abar') v' / v, and the variance around it
    is v' - (abar / abar') v'^2 / v. ODE: gain sqrt(v' / v), the monotone map of the two normals.
    """
    a, b = continuous_abar(schedule, t), continuous_abar(schedule, 1e-5)
    v, w = a * s * s + 1.0 - a, b * s * s + 1.0 - b
    return math.sqrt(a / b) * w / v, w - a / b * w * w / v, math.sqrt(w / v), a, v


@pytest.mark.parametrize("sampler", [VPSDESampler, VPODESampler], ids=["vp-sde", "vp-ode"])
@pytest.mark.parametrize("conditioning", ["index", "continuous"])
def test_euler_converges_to_the_process_at_first_order(sampler, conditioning):
    """The vp schedule noises forward exactly as its continuous process does."""
    schedule, s, t_star = VPSchedule(beta_max=15.0), 0.5, 300
    sde_gain, sde_variance, ode_gain, a, v = flow(schedule, t_star / 1000, s)
    ode = sampler is VPODESampler
    reverse, added = (ode_gain, 0.0) if ode else (sde_gain, sde_variance)
    gain, variance = math.sqrt(a) * reverse, (reverse**2 * (1.0 - a) + added) / 4.0
    # At t' = 0 this is abar s^2 / v for the SDE and sqrt(abar) s / sqrt(v) for the ODE.
    limit = math.sqrt(a) * s / math.sqrt(v) if ode else a * s * s / v
    assert gain == pytest.approx(limit, rel=1e-5)
    if not ode:  # the exact reverse process keeps the law of the data, whatever t*
        assert limit**2 * s**2 + 4 * variance < s**2 * 1.00001

    errors = []
    for steps in (150, 300, 600):
        card = diffusion_card(
            sampler(steps=steps, clamp=False),
            schedule=schedule,
            t_star=t_star,
            time_conditioning=conditioning,
        )
        got = measured(perfect_purifier(card, gaussian(0.2, s)), (0, 0, 0), 1 + steps * (not ode))
        errors.append((abs(got.gain - gain), abs(got.variance - variance)))
    errors = np.array(errors)
    assert np.all(errors[-1] < 2e-3)
    assert errors[-1, 0] > 1e-6  # far above rounding
    np.testing.assert_allclose(errors[:-1] / errors[1:], 2.0, atol=0.1)


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large"])
def test_ddpm_samples_the_posterior_of_gaussian_data(variance):
    """The mean map is abar s^2 / v on any grid: E[x_p | x_i] is what a DDPM step computes, and
    conditional means nest. The variance (forward noise through that map, and s^2 (1 - abar) / v)
    is reached at first order only.
    """
    s, errors = 0.5, []
    for unit in (250, 500, 1000):
        card = diffusion_card(
            DDPMSampler(variance=variance, **RAW),
            schedule=VPSchedule(steps=unit, beta_max=15.0),
            t_star=unit * 3 // 10,
        )
        a = continuous_abar(card.schedule, 0.3)
        v = a * s * s + 1.0 - a
        coarse = diffusion_card(
            DDPMSampler(variance=variance, steps=4, **RAW),
            schedule=card.schedule,
            t_star=card.t_star,
        )
        rough, got = (
            measured(purifier, (0, 0, 0), purifier.evaluations + 1)
            for purifier in (perfect_purifier(c, gaussian(0.2, s)) for c in (coarse, card))
        )
        assert rough.gain == pytest.approx(a * s * s / v, abs=1e-10)
        assert got.gain == pytest.approx(a * s * s / v, abs=1e-10)
        wanted = a * s**4 / v**2 * (1.0 - a) + s * s * (1.0 - a) / v
        errors.append(abs(got.variance - wanted / 4.0))
    assert 1e-6 < errors[-1] < 2e-3
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2.0, abs=0.1)


# --- a mixture: not affine, and still known -----------------------------------------------------


def posterior_over_noise(x, abar, data: Mixture, nodes=201):
    """Mean and variance of x0 ~ p(x0 | x_t), x_t = sqrt(abar) x + sqrt(1 - abar) z, over both.

    z by Gauss and Hermite's rule; the variance by the law of total variance.
    """
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    x_t = torch.from_numpy(math.sqrt(abar) * x + math.sqrt(1.0 - abar) * z)
    mean, variance = (part.numpy() for part in data.posterior(x_t, abar))
    overall = float(w @ mean)
    return overall, float(w @ (variance + (mean - overall) ** 2))


def test_one_step_is_the_posterior_mean_of_a_mixture():
    """And its derivative in x is abar / (1 - abar) times the posterior variance (Tweedie)."""
    card = diffusion_card(OneStepSampler(**RAW), t_star=200)
    purifier = perfect_purifier(card, TWO_BUMPS)
    a = float(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))[199])
    x, noise = pixels(64, card).requires_grad_(), draws(64)
    y = purifier(x, noise)
    x_t = math.sqrt(a) * (2.0 * x - 1.0) + math.sqrt(1.0 - a) * noise.normal(0, (1, 2, 2)).double()
    w, m, s = torch.tensor([TWO_BUMPS.weights, TWO_BUMPS.means, TWO_BUMPS.stds], dtype=x.dtype)
    grid = torch.linspace(-4.0, 4.0, 8001, dtype=x.dtype)
    # Bayes' rule by the trapezoidal rule: prior times likelihood on a grid of x0.
    prior = (w / s * torch.exp(-0.5 * ((grid[:, None] - m) / s) ** 2)).sum(1)
    likelihood = torch.exp(-0.5 * (x_t[..., None].detach() - math.sqrt(a) * grid) ** 2 / (1.0 - a))
    p = prior * likelihood
    p = p / p.sum(-1, keepdim=True)
    mean = (p * grid).sum(-1)
    variance = (p * (grid - mean[..., None]) ** 2).sum(-1)
    torch.testing.assert_close(2.0 * y - 1.0, mean, rtol=0, atol=1e-10)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, a / (1.0 - a) * variance, rtol=0, atol=1e-9)
    h = 1e-5
    difference = (purifier(x.detach() + h, noise) - purifier(x.detach() - h, noise)) / (2.0 * h)
    torch.testing.assert_close(slope, difference, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "sampler",
    [DDPMSampler(**RAW), DDPMSampler(variance="fixed-large", **RAW), VPSDESampler(clamp=False)],
    ids=name,
)
def test_stochastic_chains_sample_the_posterior_of_a_mixture(sampler):
    """Over draws, the output has the mean and variance of x0 ~ p(x0 | x_t), x_t noised forward.

    Within 4 standard errors, and what 120 steps leave: 0.003 in the mean, 2% of the variance.
    """
    image = ImageSpec(channels=1, height=4, width=4)
    card = diffusion_card(sampler, t_star=120, schedule=VPSchedule(), image=image)
    values = (0.15, 0.5)
    x = torch.tensor(values, dtype=torch.float64).repeat_interleave(2000)
    x = x[:, None, None, None].expand(-1, *image.shape)
    out = 2.0 * perfect_purifier(card, TWO_BUMPS)(x, draws(4000)).numpy() - 1.0
    for value, y in zip(values, out.reshape(2, -1), strict=True):
        mean, variance = posterior_over_noise(
            2.0 * value - 1.0, continuous_abar(card.schedule, 0.12), TWO_BUMPS
        )
        error = math.sqrt(variance / len(y))
        error_of_variance = math.sqrt(np.var((y - y.mean()) ** 2) / len(y))
        assert abs(y.mean() - mean) < 4.0 * error + 0.003
        assert abs(y.var() - variance) < 4.0 * error_of_variance + 0.02 * variance


# --- identities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [{}, {"steps": 13}, {"stride": 7}], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}{s.steps}")
def test_ddim_with_eta_1_is_ddpm_with_the_small_variance(schedule, grid):
    """Song, Meng and Ermon 2021, section 4.1; true only where nothing is clipped."""
    settings = {"schedule": schedule, "t_star": 50}
    ddim = diffusion_card(DDIMSampler(eta=1.0, **RAW, **grid), **settings)
    ddpm = diffusion_card(DDPMSampler(**RAW, **grid), **settings)
    x = pixels(4, ddim)
    one, other = (perfect_purifier(card, TWO_BUMPS)(x, draws(4)) for card in (ddim, ddpm))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_logits_of_1_and_minus_1_are_the_fixed_variances():
    x = pixels(4, diffusion_card(DDPMSampler()))
    for logit, variance in ((1.0, "fixed-large"), (-1.0, "fixed-small")):
        fixed = diffusion_card(DDPMSampler(variance=variance, **RAW))
        learned = diffusion_card(
            DDPMSampler(variance="learned-range", **RAW), learned_variance=True
        )
        logits = torch.full((1, 2, 2), logit, dtype=torch.float64)
        torch.testing.assert_close(
            perfect_purifier(learned, TWO_BUMPS, logits)(x, draws(4)),
            perfect_purifier(fixed, TWO_BUMPS)(x, draws(4)),
            rtol=0,
            atol=1e-12,
        )


def test_a_network_with_variance_may_be_sampled_without_it():
    x = pixels(4, diffusion_card(DDPMSampler()))
    logits = torch.full((1, 2, 2), 0.3, dtype=torch.float64)
    for sampler in (DDPMSampler(**RAW), DDIMSampler(**RAW), VPSDESampler(), OneStepSampler(**RAW)):
        with_it = diffusion_card(sampler, learned_variance=True)
        got = perfect_purifier(with_it, TWO_BUMPS, logits)(x, draws(4))
        assert torch.equal(got, perfect_purifier(diffusion_card(sampler), TWO_BUMPS)(x, draws(4)))


@pytest.mark.parametrize("rounds", [2, 3])
@pytest.mark.parametrize(
    "sampler",
    [
        DDPMSampler(steps=9, **RAW),
        DDIMSampler(stride=7, **RAW),
        VPSDESampler(clamp=False),
        VPODESampler(clamp=False),
        OneStepSampler(**RAW),
    ],
    ids=name,
)
def test_rounds_repeat_the_purification_with_new_noise(sampler, rounds):
    """Round r reads noise from step r (evaluations of one round + 1) on."""
    once = perfect_purifier(diffusion_card(sampler), TWO_BUMPS)
    repeated = diffusion_card(sampler.model_copy(update={"rounds": rounds}))
    x, noise = pixels(4, repeated), draws(4)
    want = same = x
    for r in range(rounds):
        want = once(want, Shifted(noise, r * (once.evaluations + 1)))
        same = once(same, noise)
    got = perfect_purifier(repeated, TWO_BUMPS)(x, noise)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert not torch.allclose(got, same, atol=1e-3)


def test_rounds_are_not_clamped_in_between():
    """With every x0 at 2.5 (1.75 in pixels), round two begins there and not at 1."""
    card = diffusion_card(OneStepSampler(clip=False, rounds=2), prediction="x0")
    recorder = Recorder(Constant(2.5))
    z = torch.zeros(1, 4, 1, 2, 2, dtype=torch.float64)
    y = DiffusionPurifier(card, recorder)(pixels(1, card), Script(z))
    assert torch.equal(y, torch.ones_like(y))
    a = literal_abar(card.schedule)[card.t_star - 1]
    torch.testing.assert_close(
        recorder.images[1], torch.full_like(y, 2.5 * math.sqrt(a)), rtol=1e-12, atol=0
    )


# --- ranges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), (-0.5, 2.0)])
def test_pixels_0_and_1_become_the_ends_of_the_data_range(data_range):
    """The network sees sqrt(abar) (low + p (high - low)) where no noise is added."""
    card = diffusion_card(OneStepSampler(**RAW), data_range=data_range, prediction="x0")
    x = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    low, high = data_range
    recorder = Recorder(Constant(low + 0.75 * (high - low)))
    y = DiffusionPurifier(card, recorder)(x, Script(torch.zeros(1, 1, 1, 2, 2).double()))
    a = literal_abar(card.schedule)[card.t_star - 1]
    want = [math.sqrt(a) * (low + p * (high - low)) for p in (0.0, 0.25, 0.5, 1.0)]
    assert recorder.images[0].flatten().tolist() == pytest.approx(want, abs=1e-14)
    assert y.flatten().tolist() == pytest.approx([0.75] * 4, abs=1e-14)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("prediction", ["x0", "eps"])
@pytest.mark.parametrize(
    "sampler",
    [
        DDPMSampler(clamp=False),
        DDPMSampler(variance="fixed-large", steps=5, clamp=False),
        DDIMSampler(clamp=False),
        DDIMSampler(eta=0.6, steps=5, clamp=False),
        OneStepSampler(clamp=False),
    ],
    ids=name,
)
def test_clipping_limits_every_clean_estimate(sampler, prediction, data_range, side):
    """Estimates far outside are as good as an estimate at the end of the range.

    A network that says x0 = end, unclipped, has eps = (x - sqrt(abar) end) / sqrt(1 - abar); so
    this holds of DDIM only if a clipped x0 gives the noise anew (eps as predicted does not).
    """
    end = data_range[side]
    far = (30.0, -30.0)[side]  # of eps: x0 far below the low end, or far above the high one
    value = far if prediction == "eps" else end - far
    card = diffusion_card(sampler, data_range=data_range, prediction=prediction)
    raw = diffusion_card(
        sampler.model_copy(update={"clip": False}), data_range=data_range, prediction="x0"
    )
    x, noise = pixels(6, card), draws(6)
    clipped, at_end = Recorder(Constant(value)), Recorder(Constant(end))
    got, want = (
        DiffusionPurifier(card, clipped)(x, noise),
        DiffusionPurifier(raw, at_end)(x, noise),
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    for one, other in zip(clipped.images, at_end.images, strict=True):  # the whole way down
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    loose = raw.model_copy(update={"prediction": prediction})
    unclipped = DiffusionPurifier(loose, Constant(value))(x, noise)
    assert (unclipped - want).abs().min() > 0.1


@pytest.mark.parametrize("anew", [True, False])
def test_clipped_ddim_by_hand(anew):
    """Indices 29 and 14, eta = 0, and a network that says eps = 20: both x0 are clipped to -1.

    x_14 = sqrt(a_14) (-1) + sqrt(1 - a_14) (x_29 + sqrt(a_29)) / sqrt(1 - a_29): the noise is the
    one that leads from -1 to x_29. Without `clipped_eps` it stays 20, and the pixel is further off.
    """
    card = diffusion_card(DDIMSampler(steps=2, clamp=False, clipped_eps=anew))
    a = np.cumprod(1.0 - np.linspace(1e-4, 2e-2, 1000))
    x = torch.full((1, 1, 2, 2), 0.6, dtype=torch.float64)
    recorder = Recorder(Constant(20.0))
    script = Script(torch.full((1, 3, 1, 2, 2), 0.7, dtype=torch.float64))
    y = DiffusionPurifier(card, recorder)(x, script)
    x_29 = math.sqrt(a[29]) * 0.2 + math.sqrt(1.0 - a[29]) * 0.7
    eps = (x_29 + math.sqrt(a[29])) / math.sqrt(1.0 - a[29])
    x_14 = -math.sqrt(a[14]) + math.sqrt(1.0 - a[14]) * (eps if anew else 20.0)
    assert (x_29 - math.sqrt(1.0 - a[29]) * 20.0) / math.sqrt(a[29]) < -1.0
    second = (x_14 - math.sqrt(1.0 - a[14]) * 20.0) / math.sqrt(a[14])
    assert second < -1.0 if anew else second == pytest.approx(-1.0, abs=1e-12)
    assert abs(eps - 20.0) > 1.0
    assert recorder.times == [29.0, 14.0]
    assert float(recorder.images[0][0, 0, 0, 0]) == pytest.approx(x_29, abs=1e-12)
    assert float(recorder.images[1][0, 0, 0, 0]) == pytest.approx(x_14, abs=1e-12)
    torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=1e-12)


def test_clamp_limits_the_result_and_nothing_else():
    for sampler in (DDPMSampler(**RAW), VPSDESampler(clamp=False), OneStepSampler(**RAW)):
        free_card = diffusion_card(sampler, t_star=400)
        held_card = diffusion_card(sampler.model_copy(update={"clamp": True}), t_star=400)
        x, noise = pixels(8, free_card), draws(8)
        free = perfect_purifier(free_card, gaussian(0.0, 3.0))(x, noise)
        clamped = perfect_purifier(held_card, gaussian(0.0, 3.0))(x, noise)
        assert free.min() < -0.1
        assert free.max() > 1.1
        assert torch.equal(clamped, free.clamp(0.0, 1.0))


# --- the clock, the cost, the noise -------------------------------------------------------------


def recorded(card, x=None):
    recorder = Recorder(Constant(0.1))
    x = pixels(1, card) if x is None else x
    purifier = DiffusionPurifier(card, recorder)
    purifier(x, draws(len(x)))
    return purifier, recorder


@pytest.mark.parametrize("sampler", [VPSDESampler(), VPODESampler()], ids=name)
def test_the_clock_of_diffpure(sampler):
    """t* evaluations; an index network is told 150, 149, ... 1, a continuous one 999 k / 1000."""
    _, index = recorded(diffusion_card(sampler, t_star=150))
    assert index.times == [float(k) for k in range(150, 0, -1)]
    _, continuous = recorded(diffusion_card(sampler, t_star=150, time_conditioning="continuous"))
    want = [999.0 * k / 1000.0 for k in range(150, 0, -1)]
    assert continuous.times == pytest.approx(want, rel=1e-15)


@pytest.mark.parametrize("steps", [7, 100, 1000, 4000])
def test_index_networks_are_told_whole_indices(steps):
    """Whatever N is, also where N times k / N is not k in floating point; and none beyond N - 1."""
    schedule = VPSchedule(steps=steps)
    _, recorder = recorded(diffusion_card(VPODESampler(), schedule=schedule, t_star=steps))
    assert recorder.times == [float(steps - 1), *map(float, range(steps - 1, 0, -1))]


@pytest.mark.parametrize("conditioning", ["index", "continuous"])
def test_strided_euler_time(conditioning):
    """Left ends of equal intervals: t_k = 0.15 (n - k) / n."""
    _, recorder = recorded(
        diffusion_card(VPSDESampler(steps=4), t_star=150, time_conditioning=conditioning)
    )
    scale = 1000.0 if conditioning == "index" else 999.0
    assert recorder.times == pytest.approx([scale * t for t in (0.15, 0.1125, 0.075, 0.0375)])


@pytest.mark.parametrize(
    "sampler", [DDPMSampler(), DDIMSampler(), OneStepSampler()], ids=lambda s: s.kind
)
def test_the_clock_of_discrete_chains(sampler):
    """Index i is told i, or 999 (i + 1) / 1000; from t* - 1 down to 0."""
    indices = [99] if sampler.kind == "one-step" else list(range(99, -1, -1))
    _, index = recorded(diffusion_card(sampler, t_star=100))
    assert index.times == indices
    _, continuous = recorded(diffusion_card(sampler, t_star=100, time_conditioning="continuous"))
    assert continuous.times == pytest.approx([999 * (i + 1) / 1000 for i in indices], rel=1e-15)


@pytest.mark.parametrize(("kind", "noisy"), [(VPSDESampler, True), (VPODESampler, False)])
def test_the_last_euler_step_is_shorter_and_only_the_sde_adds_noise(kind, noisy):
    """With score 0 each step multiplies by 1 + h b / 2: read h off the last image told.

    h = 1e-3 - 1e-5, b = beta(1e-3) = 0.1199; the SDE also adds sqrt(b h) z (0.0109 z) at the end.
    """
    card = diffusion_card(kind(clamp=False), prediction="score", t_star=150)
    recorder = Recorder(Constant(0.0))
    values = torch.zeros(2, 151, 1, 2, 2, dtype=torch.float64)
    values[1, -1] = 1.0
    script = Script(values)
    x = torch.full((2, 1, 2, 2), 0.9, dtype=torch.float64)
    y = 2.0 * DiffusionPurifier(card, recorder)(x, script) - 1.0
    before = recorder.images[-1]
    growth = float(y[0, 0, 0, 0] / before[0, 0, 0, 0]) - 1.0
    assert growth == pytest.approx((1e-3 - 1e-5) * 0.1199 / 2.0, rel=1e-9)
    earlier = float(before[0, 0, 0, 0] / recorder.images[-2][0, 0, 0, 0]) - 1.0
    assert earlier == pytest.approx(1e-3 * 0.1398 / 2.0, rel=1e-9)
    last = float((y[1] - y[0])[0, 0, 0])
    assert last == pytest.approx(math.sqrt(0.1199 * 9.9e-4) if noisy else 0.0, abs=1e-12)
    assert last == pytest.approx(0.0109 if noisy else 0.0, abs=5e-5)
    assert script.asked == (list(range(151)) if noisy else [0])


@pytest.mark.parametrize("sampler", EVERY, ids=name)
def test_evaluations_counts_calls_of_the_network(sampler):
    learned = getattr(sampler, "variance", "") == "learned-range"
    card = diffusion_card(sampler, learned_variance=learned)
    logits = torch.zeros(1, 2, 2, dtype=torch.float64) if learned else None
    recorder = Recorder(perfect_purifier(card, TWO_BUMPS, logits).network)
    purifier = DiffusionPurifier(card, recorder)
    assert isinstance(purifier, Purifier)
    assert purifier.randomised
    assert purifier.image == card.image
    purifier(pixels(2, card), draws(2))
    assert purifier.evaluations == len(recorder.times)
    steps = getattr(sampler, "steps", None) or getattr(sampler, "stride", None)
    if steps is None:
        one_round = 1 if sampler.kind == "one-step" else card.t_star
        assert purifier.evaluations == one_round * sampler.rounds


@pytest.mark.parametrize("sampler", EVERY, ids=name)
def test_a_draw_decides_everything(sampler):
    learned = getattr(sampler, "variance", "") == "learned-range"
    card = diffusion_card(sampler, learned_variance=learned)
    logits = torch.zeros(1, 2, 2, dtype=torch.float64) if learned else None
    purifier = perfect_purifier(card, TWO_BUMPS, logits)
    x = pixels(1, card).expand(3, -1, -1, -1)
    noise = Noise(seed=1, images=(4, 4, 5), draws=(0, 1, 0))
    y = purifier(x, noise)
    torch.manual_seed(8)  # no bearing
    assert torch.equal(y, purifier(x, noise))
    other_seed = purifier(x, Noise(seed=2, images=(4, 4, 5), draws=(0, 1, 0)))
    rows = [*y, *other_seed]
    for n, row in enumerate(rows):  # another draw, image or seed is another result
        for other in rows[:n]:
            assert (row - other).abs().max() > 1e-3


# --- gradients ----------------------------------------------------------------------------------


class Varied(nn.Module):
    """A denoiser whose variance logits depend on the image too."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, t):
        return torch.cat((self.inner(x, t), torch.sin(2.0 * x)), 1)


@pytest.mark.parametrize(
    "sampler",
    [
        DDPMSampler(steps=4, **RAW),
        DDPMSampler(steps=4, variance="learned-range", **RAW),
        DDIMSampler(steps=4, eta=0.5, **RAW),
        DDIMSampler(steps=4, clamp=False),
        DDIMSampler(steps=4, clipped_eps=False, clamp=False),
        VPSDESampler(steps=4, rounds=2, clamp=False),
        VPODESampler(steps=4, clamp=False),
        OneStepSampler(**RAW),
    ],
    ids=name,
)
def test_gradients_are_those_of_the_whole_chain(sampler):
    """Against central differences, through every step and through a learned variance."""
    learned = getattr(sampler, "variance", "") == "learned-range"
    card = diffusion_card(sampler, t_star=80, learned_variance=learned)
    purifier = perfect_purifier(card, TWO_BUMPS)
    if learned:
        purifier = DiffusionPurifier(card, Varied(purifier.network))
    noise = draws(2)
    x = pixels(2, card).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: purifier(x, noise), (x,))


@pytest.mark.parametrize("settings", [{"clip": False}, {"clip": True, "clamp": False}], ids=str)
def test_what_is_cut_off_has_no_gradient(settings):
    card = diffusion_card(OneStepSampler(**settings), t_star=300)
    purifier = perfect_purifier(card, gaussian(0.9, 0.6))
    x = pixels(8, card).requires_grad_()
    y = purifier(x, draws(8))
    (slope,) = torch.autograd.grad(y.sum(), x)
    cut = y == 1.0
    assert 0 < cut.sum() < cut.numel()
    assert torch.equal(slope[cut], torch.zeros_like(slope[cut]))
    assert (slope[~cut] > 0.05).all()


# --- rows ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_network_purifier():
    """A small U-Net with attention and random weights, the last layer's included."""
    card = diffusion_card(
        DDPMSampler(steps=3, clamp=False),
        image=ImageSpec(channels=3, height=8, width=8),
        network=UNetArgs(width=16, multipliers=(1, 2), blocks=1, attention=(1,)),
    )
    torch.manual_seed(0)
    network = build_network(card)
    nn.init.normal_(network.conv_out.weight, std=0.1)
    return DiffusionPurifier(card, network.eval().requires_grad_(False))


def test_rows_are_independent(real_network_purifier):
    """Shuffled with its noise: the same rows to the bit. In smaller batches: to rounding."""
    purifier, rng = real_network_purifier, np.random.default_rng(0)
    x = pixels(16, purifier.card).float()
    noise = Noise(seed=9, images=tuple(range(16)), draws=tuple(range(50, 66)))
    y = purifier(x, noise)
    assert y.dtype == torch.float32
    assert y.std() > 0.05
    order = rng.permutation(16)
    shuffled = Noise(
        seed=9,
        images=tuple(int(i) for i in order),
        draws=tuple(50 + int(i) for i in order),
    )
    assert torch.equal(purifier(x[order], shuffled), y[order])
    replaced = x.clone()
    replaced[1:] = 0.5
    assert torch.equal(purifier(replaced, noise)[0], y[0])
    for part in (slice(0, 1), slice(3, 8), slice(15, 16)):
        torch.testing.assert_close(purifier(x[part], noise[part]), y[part], rtol=0, atol=1e-5)


def test_float32_and_float64_agree(real_network_purifier):
    purifier = real_network_purifier
    double = DiffusionPurifier(purifier.card, build_network(purifier.card).double().eval())
    double.network.load_state_dict(purifier.network.state_dict())
    x = pixels(4, purifier.card)
    y = double(x, draws(4))
    assert y.dtype == torch.float64
    torch.testing.assert_close(purifier(x.float(), draws(4)).double(), y, rtol=0, atol=1e-4)
