"""Gradients through purifications: unrolled autograd, and derivatives known in closed form."""

import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from oracles import (
    TWO_BUMPS,
    Mixture,
    Recorder,
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
from torch.nn import functional as F

from purify_audit.attacks.gradients import bpda, exact, secant, steps_of
from purify_audit.core.noise import Noise
from purify_audit.models.protocols import Chained
from purify_audit.models.purifiers import diffusion
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.models.runner import deterministic
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
SHAPE = (1, 2, 2)
NARROW = Mixture((0.35, 0.65), (-0.6, 0.5), (0.02, 0.02))


def name(value):
    if not hasattr(value, "kind"):
        return None
    told = value.model_dump(exclude={"kind"}, exclude_defaults=True)
    return "-".join([value.kind, *(f"{k}={v}" for k, v in told.items())])


def numbers(*shape, seed=0):
    """float64, standard normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classify(y, classes=3):
    """Cross-entropies and logits of a fixed linear classifier, labels 0, 1, 2, 0, …"""
    flat = y.flatten(1)
    logits = flat @ numbers(flat.shape[1], classes, seed=5).to(y.dtype)
    labels = torch.arange(len(y)) % classes
    return F.cross_entropy(logits, labels, reduction="none"), logits


def weighted(weights):
    """A head whose gradient at P(x) is `weights`."""

    def head(y):
        return (weights * y).flatten(1).sum(1), torch.zeros(len(y), 2, dtype=y.dtype)

    return head


def relative(got, want):
    assert got.shape == want.shape
    assert float(want.norm()) > 0.0
    return float((got - want).norm() / want.norm())


def unrolled(purifier, noise, head, x):
    leaf = x.clone().requires_grad_()
    losses, logits = head(purifier(leaf, noise))
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), logits.detach(), gradient


class Small(nn.Module):
    """Two convolutions with a time in between: every pixel depends on its neighbours."""

    def __init__(self, channels=1, out=1, seed=0):
        super().__init__()
        self.one = nn.Conv2d(channels, 6, 3, padding=1)
        self.two = nn.Conv2d(6, out, 3, padding=1)
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            nn.init.normal_(p, std=0.4, generator=generator)

    def forward(self, x, t):
        hidden = torch.tanh(self.one(x) + 0.02 * t[:, None, None, None])
        return self.two(hidden)


def small_purifier(sampler, **settings):
    learned = getattr(sampler, "variance", "") == "learned-range"
    card = diffusion_card(sampler, learned_variance=learned, **settings)
    network = Small(out=2 if learned else 1).double().eval().requires_grad_(False)
    return DiffusionPurifier(card, network)


# --- exact is the gradient of the whole --------------------------------------------------------

UNROLLED = [
    DDPMSampler(),
    DDPMSampler(**RAW),
    DDPMSampler(variance="fixed-large", steps=7),
    DDPMSampler(variance="fixed-large", **RAW),
    DDPMSampler(variance="learned-range"),
    DDPMSampler(variance="learned-range", steps=11, **RAW),
    DDPMSampler(stride=9, rounds=2, **RAW),
    DDIMSampler(),
    DDIMSampler(eta=0.5),
    DDIMSampler(**RAW),
    DDIMSampler(eta=0.5, rounds=2, steps=7, **RAW),
    VPSDESampler(clamp=False),
    VPSDESampler(steps=13, rounds=2),
    VPODESampler(clamp=False),
    VPODESampler(steps=13, rounds=2, clamp=False),
    OneStepSampler(),
    OneStepSampler(rounds=2, **RAW),
]


@pytest.mark.parametrize("sampler", UNROLLED, ids=name)
def test_stored_states_give_the_gradient_of_the_unrolled_chain(sampler):
    purifier = small_purifier(sampler)
    x, noise = pixels(6, purifier.card), draws(6)
    losses, logits, gradient = unrolled(purifier, noise, classify, x)
    found = exact(steps_of(purifier, noise), classify, x)
    assert found.at_input.dtype == torch.float64
    assert relative(found.at_input, gradient) < 1e-12
    assert torch.equal(found.losses, losses)
    assert torch.equal(found.logits, logits)
    for t in (found.at_input, found.losses, found.logits):
        assert not t.requires_grad


@pytest.mark.parametrize("sampler", UNROLLED, ids=name)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_so_they_do_for_perfect_denoisers(sampler, prediction):
    learned = getattr(sampler, "variance", "") == "learned-range"
    card = diffusion_card(sampler, prediction=prediction, learned_variance=learned)
    logits = torch.full(SHAPE, 0.3, dtype=torch.float64) if learned else None
    purifier = perfect_purifier(card, TWO_BUMPS, logits)
    x, noise = pixels(4, card), draws(4)
    _, _, gradient = unrolled(purifier, noise, classify, x)
    assert relative(exact(steps_of(purifier, noise), classify, x).at_input, gradient) < 1e-12


@pytest.mark.parametrize("kind", [DDPMSampler, DDIMSampler, OneStepSampler])
def test_clipping_counts_in_these_tests(kind):
    """Some estimates are cut off, not all: else the cases with clip would be those without."""
    found = []
    for settings in ({}, RAW):
        purifier = small_purifier(kind(**settings))
        x, noise = pixels(6, purifier.card), draws(6)
        found.append(exact(steps_of(purifier, noise), classify, x).at_input)
    assert float(found[0].norm()) > 0.0
    assert relative(*found) > 1e-3


def test_a_purifier_without_steps_is_one_step():
    def purifier(x, noise):
        return torch.sin(3.0 * x) + noise.normal(0, SHAPE).double() * x**2

    x, noise = pixels(3, diffusion_card(OneStepSampler())), draws(3)
    assert not isinstance(purifier, Chained)
    found = exact(steps_of(purifier, noise), classify, x)
    assert relative(found.at_input, unrolled(purifier, noise, classify, x)[2]) < 1e-12


def test_a_diffusion_purifier_tells_its_steps():
    purifier = small_purifier(DDPMSampler(steps=5))
    assert isinstance(purifier, Chained)
    assert len(list(purifier.chain(draws(1)))) == 5 + 3  # the range, the noise, and the way back


def test_a_gradient_does_not_depend_on_how_many_normals_are_made_ahead(monkeypatch):
    """The chain is walked back to front: numbers made in chunks must still be those of the step."""
    purifier = small_purifier(DDPMSampler(rounds=2, steps=13, **RAW))
    x, noise, found = pixels(3, purifier.card), draws(3), []
    for ahead in (2**19, 5 * 12, 1):
        monkeypatch.setattr(diffusion, "_NORMALS_AHEAD", ahead)
        found.append(exact(steps_of(purifier, noise), classify, x).at_input)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_gradients_are_taken_where_they_are_switched_off():
    purifier = small_purifier(DDIMSampler(steps=4))
    x, noise = pixels(3, purifier.card), draws(3)
    want = exact(steps_of(purifier, noise), classify, x).at_input
    with deterministic(gradients=True):
        got = exact(steps_of(purifier, noise), classify, x).at_input
        assert not torch.is_grad_enabled()
    assert torch.equal(got, want)


# --- derivatives in closed form ----------------------------------------------------------------


def jumps(t_star, sampler):
    """Pairs (i, index after it), −1 last."""
    n = sampler.steps or t_star
    grid = [math.ceil(Fraction(t_star * (n - k), n)) - 1 for k in range(n)]
    if sampler.stride:
        grid = list(range(t_star - 1, -1, -sampler.stride))
    return list(zip(grid, [*grid[1:], -1]))


@dataclass
class Walked:
    """A state of the chain, pixel by pixel, and its derivative in the image.

    With x0 = E[x0 | y] its derivative is D = sqrt(a) / (1 − a) Var[x0 | y], and that of the noise
    is E = (1 − sqrt(a) D) / sqrt(1 − a).
    """

    data: Mixture
    noise: Noise
    y: torch.Tensor
    slope: torch.Tensor
    step: int = 0

    def z(self):
        return self.noise.normal(self.step, tuple(self.y.shape[1:])).double()

    def estimates(self, a):
        """x0, D, eps and E."""
        x0, variance = self.data.posterior(self.y, a)
        d = math.sqrt(a) / (1.0 - a) * variance
        eps, e = ((u - math.sqrt(a) * v) / math.sqrt(1.0 - a) for u, v in ((self.y, x0), (1.0, d)))
        return x0, d, eps, e

    def to(self, y, factor):
        self.y, self.slope, self.step = y, factor * self.slope, self.step + 1


def slopes_by_hand(card, data, x, noise):
    """Output and derivative of every pixel, unclipped, by recursion over the steps."""
    (low, high), sampler = card.data_range, card.sampler
    walk = Walked(data, noise, low + (high - low) * x, torch.full_like(x, high - low))
    abar = [*literal_abar(card.schedule), 1.0]
    a = abar[card.t_star - 1]
    for _ in range(sampler.rounds):
        walk.to(math.sqrt(a) * walk.y + math.sqrt(1.0 - a) * walk.z(), math.sqrt(a))
        if sampler.kind == "one-step":
            walk.to(*walk.estimates(a)[:2])
        elif sampler.kind in ("vp-sde", "vp-ode"):
            euler_by_hand(walk, card, 0.5 if sampler.kind == "vp-ode" else 1.0)
        else:
            for i, p in jumps(card.t_star, sampler):
                step = ddpm_by_hand if sampler.kind == "ddpm" else ddim_by_hand
                step(walk, sampler, abar[i], abar[p])
    return (walk.y - low) / (high - low), walk.slope / (high - low)


def ddpm_by_hand(walk, sampler, a, b):
    """y' = (y − beta / sqrt(1 − a) eps) / sqrt(alpha) + sd z, and no noise at the last jump."""
    alpha = a / b
    beta = 1.0 - alpha
    _, _, eps, e = walk.estimates(a)
    pull = beta / math.sqrt(1.0 - a)
    sd = math.sqrt(beta if sampler.variance == "fixed-large" else (1.0 - b) / (1.0 - a) * beta)
    added = sd * walk.z() if b < 1.0 else 0.0
    walk.to((walk.y - pull * eps) / math.sqrt(alpha) + added, (1.0 - pull * e) / math.sqrt(alpha))


def ddim_by_hand(walk, sampler, a, b):
    """y' = sqrt(b) x0 + sqrt(1 − b − sd²) eps + sd z."""
    x0, d, eps, e = walk.estimates(a)
    variance = sampler.eta**2 * (1.0 - b) / (1.0 - a) * (1.0 - a / b)
    of = math.sqrt(1.0 - b - variance)
    added = math.sqrt(variance) * walk.z()
    walk.to(math.sqrt(b) * x0 + of * eps + added, math.sqrt(b) * d + of * e)


def euler_by_hand(walk, card, half):
    """y' = y + h (b / 2 y − b / sqrt(1 − a) eps) + sqrt(b h) z; the ODE has half the score."""
    n, unit = card.sampler.steps or card.t_star, card.schedule.steps
    beta_0, beta_1 = continuous_rate(card.schedule)
    for k in range(n):
        t = card.t_star / unit * (n - k) / n
        h = card.t_star / unit / n - (1e-5 if k == n - 1 else 0.0)
        a, b = continuous_abar(card.schedule, t), beta_0 + (beta_1 - beta_0) * t
        _, _, eps, e = walk.estimates(a)
        pull = half * b / math.sqrt(1.0 - a)
        added = math.sqrt(b * h) * walk.z() if half == 1.0 else 0.0
        walk.to(
            walk.y + h * (b / 2.0 * walk.y - pull * eps) + added, 1.0 + h * (b / 2.0 - pull * e)
        )


CLOSED = [
    DDPMSampler(**RAW),
    DDPMSampler(variance="fixed-large", **RAW),
    DDPMSampler(steps=7, rounds=2, **RAW),
    DDPMSampler(stride=9, **RAW),
    DDIMSampler(**RAW),
    DDIMSampler(eta=0.5, **RAW),
    DDIMSampler(eta=0.5, steps=7, rounds=2, **RAW),
    VPSDESampler(clamp=False),
    VPSDESampler(steps=13, rounds=2, clamp=False),
    VPODESampler(clamp=False),
    OneStepSampler(**RAW),
    OneStepSampler(rounds=3, **RAW),
]


def jacobian_error(purifier, data, rows=4):
    """Largest relative error of Jᵀ g of a pixel, and the derivatives by hand."""
    x, noise = pixels(rows, purifier.card), draws(rows)
    g = 0.5 + numbers(*x.shape, seed=7).abs()
    y, slope = slopes_by_hand(purifier.card, data, x, noise)
    found = exact(steps_of(purifier, noise), weighted(g), x)
    torch.testing.assert_close(purifier(x, noise), y, rtol=0, atol=1e-9)
    assert found.losses.tolist() == pytest.approx((g * y).flatten(1).sum(1).tolist())
    return float(((found.at_input - slope * g) / (slope * g)).abs().max()), slope


@pytest.mark.parametrize("sampler", CLOSED, ids=name)
@pytest.mark.parametrize("t_star", [30, 150])
@pytest.mark.parametrize("std", [0.5, 0.02])
def test_gaussian_data_give_the_product_of_the_steps_coefficients(sampler, t_star, std):
    card = diffusion_card(sampler, t_star=t_star, prediction="x0")
    data = gaussian(0.2, std)
    error, slope = jacobian_error(perfect_purifier(card, data), data)
    assert error < 1e-8
    assert float(slope.min()) == pytest.approx(float(slope.max()), rel=1e-9)  # affine


@pytest.mark.parametrize("grid", [{}, {"steps": 11}, {"stride": 40}], ids=str)
@pytest.mark.parametrize("std", [0.5, 0.02])
def test_ddpm_of_gaussian_data_has_the_derivative_of_the_posterior_mean(std, grid):
    """Conditional means nest, so on any grid dP/dx = abar s² / (abar s² + 1 − abar), for t* of it.

    That is 0.0015 where t* = 150 and s = 0.02.
    """
    card = diffusion_card(DDPMSampler(**RAW, **grid), t_star=150)
    data = gaussian(0.2, std)
    purifier, x = perfect_purifier(card, data), pixels(2, card)
    a = literal_abar(card.schedule)[149]
    want = a * std**2 / (a * std**2 + 1.0 - a)
    assert std > 0.1 or want < 0.002
    found = exact(steps_of(purifier, draws(2)), weighted(torch.ones_like(x)), x).at_input
    torch.testing.assert_close(found, torch.full_like(x, want), rtol=1e-9, atol=0)


@pytest.mark.parametrize("sampler", CLOSED, ids=name)
@pytest.mark.parametrize("schedule", [LinearSchedule(), VPSchedule(steps=200)], ids=name)
def test_a_mixtures_derivative_is_the_recursion_of_posterior_variances(sampler, schedule):
    for t_star, data in ((30, TWO_BUMPS), (150, TWO_BUMPS), (150, NARROW)):
        card = diffusion_card(sampler, t_star=t_star, schedule=schedule)
        error, slope = jacobian_error(perfect_purifier(card, data), data)
        assert error < 1e-5
        if data is TWO_BUMPS:  # not affine
            assert float(slope.max() - slope.min()) > 1e-3 * float(slope.abs().max())


def test_a_cosine_schedule_too():
    for sampler in (DDPMSampler(**RAW), DDIMSampler(eta=0.5, **RAW), OneStepSampler(**RAW)):
        card = diffusion_card(sampler, t_star=40, schedule=CosineSchedule(steps=60))
        assert jacobian_error(perfect_purifier(card, TWO_BUMPS), TWO_BUMPS)[0] < 1e-7


@pytest.mark.parametrize("sampler", [DDPMSampler(**RAW), VPSDESampler(clamp=False)], ids=name)
def test_a_strongly_compressive_chain_keeps_its_tiny_gradient(sampler):
    """Two bumps of std 0.02 and t* = 150: hardly 0.2% of a perturbation is left, in float32 too."""
    card = diffusion_card(sampler, t_star=150)
    purifier, x, noise = perfect_purifier(card, NARROW), pixels(8, card), draws(8)
    _, slope = slopes_by_hand(card, NARROW, x, noise)
    assert float(slope.median()) < 0.004
    found = exact(steps_of(purifier, noise), weighted(torch.ones_like(x)), x).at_input
    assert float((found / slope - 1.0).abs().max()) < 1e-5
    narrow = exact(steps_of(purifier, noise), weighted(torch.ones_like(x).float()), x.float())
    assert narrow.at_input.dtype == torch.float32
    assert float((narrow.at_input / slope - 1.0).abs().median()) < 1e-3


# --- learned variances and what is cut off -----------------------------------------------------


class Halved(nn.Module):
    """x0 = x / 2, and variance logits sin(2 x)."""

    def forward(self, x, t):
        return torch.cat((0.5 * x, torch.sin(2.0 * x)), 1)


def test_gradients_flow_through_a_learned_variance():
    """Two jumps: i → p with noise, then p → image without, whose derivative is 1/2.

    The first is c0 x0 + cx x + sd(v) z, and d sd / dv = sd (log beta − log small) / 4.
    """
    card = diffusion_card(
        DDPMSampler(variance="learned-range", steps=2, **RAW),
        prediction="x0",
        learned_variance=True,
    )
    i, p = 29, 14
    abar = literal_abar(card.schedule)
    a, b = abar[i], abar[p]
    beta = 1.0 - a / b
    small = beta * (1.0 - b) / (1.0 - a)
    x, noise = pixels(4, card), draws(4)
    z = [noise.normal(k, SHAPE).double() for k in (0, 1)]
    u = math.sqrt(a) * (2.0 * x - 1.0) + math.sqrt(1.0 - a) * z[0]
    v, dv = torch.sin(2.0 * u), 2.0 * torch.cos(2.0 * u)
    sd = torch.exp(0.5 * ((v + 1) / 2 * math.log(beta) + (1 - v) / 2 * math.log(small)))
    c0, cx = math.sqrt(b) * beta / (1 - a), math.sqrt(a / b) * (1 - b) / (1 - a)
    through = 0.5 * sd * z[1] * (math.log(beta) - math.log(small)) * dv / 2.0
    want = 0.5 * (0.5 * c0 + cx + through) * math.sqrt(a)
    purifier = DiffusionPurifier(card, Halved())
    found = exact(steps_of(purifier, noise), weighted(torch.ones_like(x)), x).at_input
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-14)
    without = 0.5 * (0.5 * c0 + cx) * math.sqrt(a)
    assert float((want / without - 1.0).abs().max()) > 0.01  # the term is no rounding error


def test_no_gradient_where_the_clean_estimate_was_cut_off():
    """Exactly zero there, and the Wiener filter's a s² / v elsewhere."""
    card = diffusion_card(OneStepSampler(clamp=False), t_star=300)
    purifier, x, noise = perfect_purifier(card, gaussian(0.9, 0.6)), pixels(8, card), draws(8)
    raw = card.model_copy(update={"sampler": OneStepSampler(**RAW)})
    free = perfect_purifier(raw, gaussian(0.9, 0.6))(x, noise)
    cut = (free > 1.0) | (free < 0.0)
    assert 4 < int(cut.sum()) < cut.numel() - 4
    found = exact(steps_of(purifier, noise), weighted(torch.ones_like(x)), x).at_input
    assert torch.equal(found[cut], torch.zeros_like(found[cut]))
    a = literal_abar(card.schedule)[299]
    wiener = a * 0.36 / (a * 0.36 + 1.0 - a)
    torch.testing.assert_close(found[~cut], torch.full_like(found[~cut], wiener), rtol=1e-9, atol=0)


# --- approximations ----------------------------------------------------------------------------


def squares(y):
    """Σ (y − 0.3)², whose gradient is 2 (y − 0.3)."""
    return ((y - 0.3) ** 2).flatten(1).sum(1), y.flatten(1)[:, :2]


def test_bpda_is_the_gradient_at_the_purified_image():
    card = diffusion_card(DDPMSampler(steps=5, **RAW))
    purifier, x, noise = perfect_purifier(card, TWO_BUMPS), pixels(4, card), draws(4)
    y = purifier(x, noise)
    found = bpda(steps_of(purifier, noise), squares, x)
    assert torch.equal(found.at_input, 2.0 * (y - 0.3))
    assert torch.equal(found.losses, ((y - 0.3) ** 2).flatten(1).sum(1))
    assert torch.equal(found.logits, y.flatten(1)[:, :2])
    true = exact(steps_of(purifier, noise), squares, x)
    assert torch.equal(true.losses, found.losses)
    assert relative(found.at_input, true.at_input) > 0.01


def matrix(size, symmetric):
    a = numbers(size, size, seed=3) / math.sqrt(size)
    return (a + a.T) / 2.0 if symmetric else a


def linear(a):
    return lambda x: (x.flatten(1) @ a.T + 0.1).reshape(x.shape)


def through(a, g):
    """a g, image by image."""
    return (g.flatten(1) @ a.T).reshape(g.shape)


@pytest.mark.parametrize("reach", [1e-3, 0.25, 40.0])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e9])
def test_the_secant_of_a_linear_purifier_is_j_g_whatever_its_reach(reach, size):
    x = numbers(5, 1, 3, 4, seed=1)
    weights = (
        size * numbers(5, 1, 3, 4, seed=2) * torch.tensor([1, 2, 0.1, 7, 30.0]).reshape(5, 1, 1, 1)
    )
    for symmetric in (True, False):
        a = matrix(12, symmetric)
        found = secant(linear(a), weighted(weights), x, reach)
        y = linear(a)(x)
        assert torch.equal(found.losses, (weights * y).flatten(1).sum(1))
        for n in range(5):  # each row by its own length
            assert relative(found.at_input[n], through(a, weights)[n]) < 1e-11
        true = exact([linear(a)], weighted(weights), x).at_input
        assert relative(true, through(a.T, weights)) < 1e-12
        gap = relative(found.at_input, through(a.T, weights))
        assert gap < 1e-11 if symmetric else gap > 0.3


def test_the_secant_of_no_gradient_is_zero():
    x = numbers(2, 1, 3, 4, seed=1)
    weights = torch.zeros_like(x)
    weights[1] = 1.0
    found = secant(linear(matrix(12, False)), weighted(weights), x, 0.25).at_input
    assert torch.equal(found[0], torch.zeros_like(x[0]))
    assert float(found[1].norm()) > 0.1


def test_the_secant_of_a_denoiser_is_nearly_its_gradient():
    """A one-step denoiser's Jacobian is symmetric: here diagonal, and smooth on a small reach."""
    card = diffusion_card(OneStepSampler(**RAW), t_star=200)
    purifier, x, noise = perfect_purifier(card, TWO_BUMPS), pixels(4, card), draws(4)
    true = exact(steps_of(purifier, noise), classify, x).at_input
    found = secant(lambda z: purifier(z, noise), classify, x, 1e-4).at_input
    assert relative(found, true) < 1e-3


@pytest.mark.parametrize("size", [1e-20, 1e-26])
def test_the_secant_reaches_no_farther_for_a_tiny_gradient(size):
    """A confident classifier's cross-entropy has gradients whose squares are 0 in float32."""
    x, moves = torch.full((2, *SHAPE), 0.5), []

    def purify(z):
        moves.append((z - x).flatten(1).norm(dim=1))
        return z

    weights = torch.full_like(x, size)
    found = secant(purify, weighted(weights), x, 0.25).at_input
    assert moves[1].tolist() == pytest.approx([0.25] * 2, rel=1e-4)
    torch.testing.assert_close(found, weights, rtol=1e-4, atol=0)


# --- no gradient at all ------------------------------------------------------------------------


class Learned(nn.Module):
    """Depends on its weights alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full(SHAPE, 0.4))

    def forward(self, x, noise):
        return self.weight.expand(len(x), *SHAPE)


def quantised(x, noise):
    return torch.floor(4.0 * x) / 4.0


NOTHING = {
    "detached": lambda x, noise: x.detach() * 2.0,
    "constant": lambda x, noise: torch.full_like(x, 0.3),
    "rounded": quantised,
    "without-grad": torch.no_grad()(lambda x, noise: x * 2.0),
    "weights-alone": Learned(),
}


@pytest.mark.parametrize("purifier", NOTHING.values(), ids=NOTHING)
def test_a_purifier_that_lets_no_gradient_through_has_a_zero_gradient(purifier):
    x, noise = torch.full((3, *SHAPE), 0.6), draws(3)
    found = exact(steps_of(purifier, noise), classify, x)
    assert torch.equal(found.at_input, torch.zeros_like(x))
    y = purifier(x, noise)
    assert torch.equal(found.losses, classify(y)[0].detach())
    # and the loss there has one
    assert float(bpda(steps_of(purifier, noise), classify, x).at_input.norm()) > 0.0


@pytest.mark.parametrize("transform", ["bit-depth", "jpeg"])
def test_so_have_transformations_that_round(transform):
    card = diffusion_card(OneStepSampler())
    image = card.image.model_copy(update={"height": 8, "width": 8})
    purifier = TransformPurifier(parse_transform(transform, image))
    x = 0.2 + 0.6 * torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = exact(steps_of(purifier, draws(3)), classify, x).at_input
    assert torch.equal(found, torch.zeros_like(x))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_step_that_detaches_stops_the_whole_gradient(place):
    steps = [lambda x: 2.0 * x, lambda x: torch.sin(x), lambda x: x**2]
    steps[place] = lambda x: x.detach() + 1.0
    x = numbers(2, *SHAPE)
    assert torch.equal(exact(steps, classify, x).at_input, torch.zeros_like(x))


# --- what it costs -----------------------------------------------------------------------------


class Held:
    """A tensor that autograd keeps for the way back; counts how many live at once."""

    live = peak = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Held.live += 1
        Held.peak = max(Held.peak, Held.live)

    def __del__(self):
        Held.live -= 1


def most_saved(compute):
    Held.peak = Held.live = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        compute()
    assert Held.live == 0
    return Held.peak


@pytest.mark.parametrize("kind", [DDPMSampler, DDIMSampler, VPSDESampler])
def test_memory_is_that_of_one_step(kind):
    saved = {}
    for steps in (4, 40):
        purifier = small_purifier(kind(steps=steps), t_star=80)
        x, noise = pixels(2, purifier.card), draws(2)
        saved[steps] = (
            most_saved(lambda: exact(steps_of(purifier, noise), classify, x)),  # noqa: B023
            most_saved(lambda: unrolled(purifier, noise, classify, x)),  # noqa: B023
        )
    assert 0 < saved[4][0] == saved[40][0] < saved[4][1]
    assert saved[40][1] > 7 * saved[4][1]  # the count does count


@pytest.mark.parametrize("sampler", [DDPMSampler(steps=5), VPSDESampler(steps=4, rounds=2)])
def test_each_state_is_computed_twice(sampler):
    """Once forwards, once to differentiate; the same states both times, back to front."""
    card = diffusion_card(sampler)
    recorder = Recorder(small_purifier(sampler).network)
    purifier, x, noise = DiffusionPurifier(card, recorder), pixels(2, card), draws(2)
    exact(steps_of(purifier, noise), classify, x)
    n = purifier.evaluations
    assert len(recorder.images) == 2 * n
    for one, other in zip(recorder.images[:n], reversed(recorder.images[n:])):
        assert torch.equal(one, other)
