"""What a network predicts, whichever way it says it."""

import math

import pytest
import torch
from oracles import (
    TWO_BUMPS,
    Constant,
    PerfectDenoiser,
    Recorder,
    diffusion_card,
    draws,
    perfect_purifier,
    pixels,
)
from torch import nn

from purify_audit.models.purifiers.denoiser import Denoiser
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.spec.samplers import (
    CosineSchedule,
    DDPMSampler,
    LinearSchedule,
    OneStepSampler,
    VPSchedule,
    VPSDESampler,
)

PREDICTIONS = ("eps", "x0", "v", "score")
LEVELS = (0.999, 0.9, 0.5, 0.01)
X = torch.linspace(-2.5, 2.5, 24, dtype=torch.float64).reshape(2, 3, 2, 2)


@pytest.mark.parametrize("abar", LEVELS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_gives_the_posterior_mean(prediction, abar):
    """x0 = E[x0 | x], and eps = -sqrt(1 - abar) d/dx log p(x), the score being that of the data
    convolved with the noise: here the derivative of the logarithm of its density.
    """
    denoiser = Denoiser(PerfectDenoiser(TWO_BUMPS, prediction, lambda _: abar), prediction)
    estimate = denoiser(X, 7.0, abar)
    torch.testing.assert_close(estimate.x0, TWO_BUMPS.posterior(X, abar)[0], rtol=0, atol=1e-10)
    assert estimate.variance is None

    def log_density(x):
        logs = []
        for w, m, s in zip(TWO_BUMPS.weights, TWO_BUMPS.means, TWO_BUMPS.stds, strict=True):
            v = abar * s * s + 1.0 - abar
            exponent = -((x - math.sqrt(abar) * m) ** 2) / (2.0 * v)
            logs.append(exponent + math.log(w / math.sqrt(2.0 * math.pi * v)))
        return torch.stack(logs).logsumexp(0)

    x = X.clone().requires_grad_()
    (score,) = torch.autograd.grad(log_density(x).sum(), x)
    torch.testing.assert_close(estimate.eps, -math.sqrt(1.0 - abar) * score, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_x0_and_eps_recompose_the_input(prediction):
    """x = sqrt(abar) x0 + sqrt(1 - abar) eps, for any network at all."""

    class Anything(nn.Module):
        def forward(self, x, t):
            return torch.sin(3.0 * x) + t[:, None, None, None]

    estimate = Denoiser(Anything(), prediction)(X, 0.3, 0.7)
    again = math.sqrt(0.7) * estimate.x0 + math.sqrt(0.3) * estimate.eps
    torch.testing.assert_close(again, X, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_second_half_of_the_channels_is_the_variance(prediction):
    """Prediction first, variance after, of each image: not interleaved, not swapped."""
    logits = torch.arange(12.0, dtype=torch.float64).reshape(3, 2, 2)
    plain = Denoiser(PerfectDenoiser(TWO_BUMPS, prediction, lambda _: 0.8), prediction)
    wide = Denoiser(PerfectDenoiser(TWO_BUMPS, prediction, lambda _: 0.8, logits), prediction)
    want, got = plain(X, 1.0, 0.8), wide(X, 1.0, 0.8)
    assert torch.equal(got.x0, want.x0)
    assert torch.equal(got.eps, want.eps)
    assert torch.equal(got.variance, logits.expand(2, 3, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_time_is_told_to_every_row_in_the_dtype_of_the_images(dtype):
    class Echo(nn.Module):
        def forward(self, x, t):
            assert t.dtype == x.dtype == dtype
            assert t.shape == (2,)
            return torch.zeros_like(x) + t[:, None, None, None]

    out = Denoiser(Echo(), "eps")(X.to(dtype), 12.25, 0.5).eps
    assert torch.equal(out, torch.full_like(out, 12.25))


@pytest.mark.parametrize("conditioning", ["index", "continuous"])
@pytest.mark.parametrize(
    "schedule", [LinearSchedule(), CosineSchedule(steps=200), VPSchedule(steps=400)], ids=repr
)
def test_an_index_is_told_as_itself_or_as_its_time(schedule, conditioning):
    """Index i is time (i + 1) / N, and a continuous clock counts N - 1 units of time."""
    card = diffusion_card(
        OneStepSampler(), schedule=schedule, time_conditioning=conditioning, t_star=1
    )
    recorder = Recorder(Constant(0.0))
    purifier = DiffusionPurifier(card, recorder)
    x, n = torch.zeros(1, 1, 2, 2, dtype=torch.float64), schedule.steps
    indices = [0, 1, n // 2, n - 1]
    for i in indices:
        purifier.predict(x, i)
    want = [i if conditioning == "index" else (n - 1) * (i + 1) / n for i in indices]
    assert recorder.times == pytest.approx(want, rel=1e-15)


@pytest.mark.parametrize(
    "sampler",
    [DDPMSampler(clip=False, clamp=False), VPSDESampler(clamp=False), OneStepSampler(clamp=False)],
    ids=lambda s: s.kind,
)
def test_one_denoiser_in_four_words_is_one_purifier(sampler):
    outputs = []
    for prediction in PREDICTIONS:
        card = diffusion_card(sampler, prediction=prediction, t_star=60)
        outputs.append(perfect_purifier(card, TWO_BUMPS)(pixels(5, card), draws(5)))
    assert outputs[0].std() > 0.1
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=1e-10)
