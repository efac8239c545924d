"""Feed-forward purifiers: one pass of a network, with or without noise before it."""

import math

import numpy as np
import pytest
import torch
from oracles import PROVENANCE, Script, draws
from torch import nn

from purify_audit.core.noise import Noise
from purify_audit.models.networks import build_network
from purify_audit.models.protocols import Purifier
from purify_audit.models.purifiers.feedforward import FeedforwardPurifier
from purify_audit.spec.architectures import (
    AutoencoderArgs,
    DnCNNArgs,
    DRUNetArgs,
    FFDNetArgs,
    SequentialArgs,
    SpandrelArgs,
)
from purify_audit.spec.card import FeedforwardCard, ImageSpec


def card(**changes):
    settings = {
        "name": "oracle",
        "image": ImageSpec(channels=1, height=4, width=4),
        "provenance": PROVENANCE,
        "network": AutoencoderArgs(widths=(4,)),
    }
    return FeedforwardCard(**{**settings, **changes})


class Affine(nn.Module):
    """gain x + offset, remembering x."""

    def __init__(self, gain=1.0, offset=0.0):
        super().__init__()
        self.gain, self.offset, self.seen = gain, offset, None

    def forward(self, x):
        self.seen = x
        return self.gain * x + self.offset


def pixels(rows, dtype=torch.float64):
    values = np.random.default_rng(3).uniform(size=(rows, 1, 4, 4))
    return torch.from_numpy(values).to(dtype)


def test_without_noise_it_is_the_network():
    x = pixels(5, torch.float32)
    purifier = FeedforwardPurifier(card(), Affine(0.5, 0.1))
    assert isinstance(purifier, Purifier)
    assert not purifier.randomised
    assert purifier.evaluations == 1
    assert purifier.image == ImageSpec(channels=1, height=4, width=4)
    unread = Script(torch.zeros(5, 0, 1, 4, 4))
    assert torch.equal(purifier(x, unread), 0.5 * x + 0.1)
    assert unread.asked == []
    one, other = (purifier(x, Noise(seed, (0,) * 5, (seed,) * 5)) for seed in (1, 2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("data_range", [(0.0, 1.0), (-1.0, 1.0), (-3.0, 2.0)])
def test_noise_is_added_in_pixel_units(data_range):
    """With a network g u + o of u = low + (high - low) (x + sigma z), the output in pixels is

    (g u + o - low) / (high - low): gain g in x, and g sigma in z, whatever the data range.
    """
    low, high = data_range
    network = Affine(0.7, 0.2)
    purifier = FeedforwardPurifier(card(sigma=0.3, data_range=data_range, clamp=False), network)
    assert purifier.randomised
    x = pixels(6)
    z = torch.from_numpy(np.random.default_rng(4).normal(size=(6, 1, 1, 4, 4)))
    script = Script(z)
    y = purifier(x, script)
    assert script.asked == [0]
    u = low + (high - low) * (x + 0.3 * z[:, 0])
    torch.testing.assert_close(network.seen, u, rtol=0, atol=1e-13)
    torch.testing.assert_close(y, (0.7 * u + 0.2 - low) / (high - low), rtol=0, atol=1e-13)
    again = purifier(x + 0.05, script)
    torch.testing.assert_close(again - y, torch.full_like(y, 0.035), rtol=0, atol=1e-13)


def test_ends_of_the_range():
    """Pixels 0 and 1 reach the network as low and high, and its low and high come back so."""
    network = Affine()
    purifier = FeedforwardPurifier(card(data_range=(-2.0, 5.0)), network)
    x = torch.tensor([0.0, 1.0, 0.5, 0.25]).repeat(4).reshape(1, 1, 4, 4)
    y = purifier(x, draws(1))
    assert network.seen[0, 0, 0].tolist() == [-2.0, 5.0, 1.5, -0.25]
    torch.testing.assert_close(y, x)


def test_law_of_the_noise():
    """Identity network, unclamped: N(x, sigma^2), independent pixels; within 5 standard errors."""
    n, sigma = 4000, 0.25
    purifier = FeedforwardPurifier(card(sigma=sigma, clamp=False), nn.Identity())
    y = purifier(torch.full((n, 1, 4, 4), 0.4, dtype=torch.float64), draws(n)).flatten(1).numpy()
    assert y.mean(0) == pytest.approx(0.4, abs=5 * sigma / math.sqrt(n))
    assert y.var(0) == pytest.approx(sigma**2, abs=5 * sigma**2 * math.sqrt(2 / n))
    between = np.corrcoef(y.T) - np.eye(16)
    assert np.abs(between).max() < 5 / math.sqrt(n)


@pytest.mark.parametrize("value", [0.0, 0.4, 0.95])
def test_law_of_the_clamped_noise(value):
    """A normal censored to [0, 1]: with a = -x / s, b = (1 - x) / s, phi and Phi,

    E y = (1 - Phi(b)) + x (Phi(b) - Phi(a)) + s (phi(a) - phi(b)).
    """
    n, s = 4000, 0.25
    purifier = FeedforwardPurifier(card(sigma=s), nn.Identity())
    y = purifier(torch.full((n, 1, 4, 4), value, dtype=torch.float64), draws(n)).numpy()
    assert y.min() == 0.0
    assert y.max() == 1.0
    a, b = -value / s, (1.0 - value) / s
    density = [math.exp(-z * z / 2) / math.sqrt(2 * math.pi) for z in (a, b)]
    below = [math.erfc(-z / math.sqrt(2)) / 2 for z in (a, b)]
    mean = (1 - below[1]) + value * (below[1] - below[0]) + s * (density[0] - density[1])
    assert y.mean() == pytest.approx(mean, abs=5 * s / math.sqrt(y.size))
    free = FeedforwardPurifier(card(sigma=s, clamp=False), nn.Identity())
    raw = free(torch.full((n, 1, 4, 4), value, dtype=torch.float64), draws(n)).numpy()
    assert np.array_equal(y, raw.clip(0.0, 1.0))


def test_rows_draws_and_the_network_of_a_card():
    made = card(sigma=0.2, network=AutoencoderArgs(widths=(4, 8)))
    torch.manual_seed(0)
    purifier = FeedforwardPurifier(made, build_network(made).eval().requires_grad_(False))
    x = pixels(1, torch.float32).expand(4, -1, -1, -1)
    y = purifier(x, Noise(7, (0, 0, 1, 0), (0, 1, 0, 0)))
    assert y.shape == x.shape
    assert torch.equal(y[0], y[3])  # the same address
    assert not torch.equal(y[0], y[1])
    assert not torch.equal(y[0], y[2])
    part = purifier(x[1:3], Noise(7, (0, 1), (1, 0)))
    torch.testing.assert_close(part, y[1:3], rtol=0, atol=1e-6)


def test_gradients_pass_through_noise_and_network():
    purifier = FeedforwardPurifier(
        card(sigma=0.1, data_range=(-1.0, 1.0), clamp=False),
        nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Tanh()).double(),
    )
    x, noise = pixels(2).requires_grad_(), draws(2)
    assert torch.autograd.gradcheck(lambda x: purifier(x, noise), (x,))


# --- networks told a level of noise, and networks of one colour ---------------------------------


class Told(nn.Module):
    """x − level, remembering both."""

    def __init__(self):
        super().__init__()
        self.seen, self.level = None, None

    def forward(self, x, level):
        self.seen, self.level = x, level
        return x - level


@pytest.mark.parametrize("data_range", [(0.0, 1.0), (-1.0, 1.0), (-3.0, 2.0)])
def test_the_level_is_told_in_the_network_s_units(data_range):
    """A network that subtracts what it is told subtracts `level` in pixels, whatever its range."""
    low, high = data_range
    made = card(network=DRUNetArgs(), level=0.2, data_range=data_range, clamp=False)
    network = Told()
    purifier, x = FeedforwardPurifier(made, network), pixels(3)
    assert not purifier.randomised
    torch.testing.assert_close(purifier(x, draws(3)), x - 0.2, rtol=0, atol=1e-13)
    assert network.level == pytest.approx(0.2 * (high - low))


def test_the_level_is_not_the_noise_added():
    made = card(network=DRUNetArgs(), level=0.0, sigma=0.3, clamp=False)
    network, x = Told(), pixels(2)
    z = torch.from_numpy(np.random.default_rng(4).normal(size=(2, 1, 1, 4, 4)))
    y = FeedforwardPurifier(made, network)(x, Script(z))
    torch.testing.assert_close(y, x + 0.3 * z[:, 0], rtol=0, atol=1e-13)
    assert network.level == 0.0


@pytest.mark.parametrize("arch", [FFDNetArgs(width=4, depth=2), DRUNetArgs(widths=(2, 2))])
def test_networks_that_need_a_noise_level(arch):
    assert card(network=arch, level=0.1).level == 0.1
    with pytest.raises(ValueError, match=f"network {arch.arch} needs a noise level"):
        card(network=arch)


@pytest.mark.parametrize("arch", [AutoencoderArgs(widths=(4,)), DnCNNArgs(), SpandrelArgs()])
def test_networks_without_a_noise_level(arch):
    assert card(network=arch).level is None
    with pytest.raises(ValueError, match=f"network {arch.arch} does not take a noise level"):
        card(network=arch, level=0.1)


COLOUR = ImageSpec(channels=3, height=4, width=5)


class PerImage(nn.Module):
    """Adds the mean of each image it is given, so that it matters what an image is."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return x + x.mean((1, 2, 3), keepdim=True)


def test_each_colour_by_itself():
    x = torch.from_numpy(np.random.default_rng(3).uniform(size=(2, 3, 4, 5)))
    network = PerImage()
    made = card(image=COLOUR, per_channel=True, clamp=False)
    purifier = FeedforwardPurifier(made, network)
    wanted = torch.stack([torch.stack([c + c.mean() for c in image]) for image in x])
    torch.testing.assert_close(purifier(x, draws(2)), wanted, rtol=0, atol=1e-13)
    assert network.shapes == [(6, 1, 4, 5)]
    assert purifier.evaluations == 3
    whole = FeedforwardPurifier(card(image=COLOUR, clamp=False), network)
    assert whole.evaluations == 1
    torch.testing.assert_close(whole(x, draws(2)), x + x.mean((1, 2, 3), keepdim=True))


def test_colours_share_no_noise_and_have_that_of_the_whole_image():
    x = torch.full((2, 3, 4, 5), 0.5)
    settings = {"image": COLOUR, "sigma": 0.1, "clamp": False}
    apart = FeedforwardPurifier(card(per_channel=True, **settings), nn.Identity())(x, draws(2))
    assert torch.equal(apart, FeedforwardPurifier(card(**settings), nn.Identity())(x, draws(2)))
    assert not torch.equal(apart[:, 0], apart[:, 1])


def test_no_rows():
    made = card(image=COLOUR, per_channel=True, sigma=0.1)
    purifier = FeedforwardPurifier(made, nn.Identity())
    assert purifier(torch.empty(0, 3, 4, 5), Noise(0, (), ())).shape == (0, 3, 4, 5)


CHAIN = SequentialArgs.model_validate(
    {
        "layers": [
            {"kind": "conv", "name": "0", "inputs": 1, "outputs": 1, "kernel": 3, "padding": 1},
            {"kind": "sigmoid"},
        ]
    }
)


@pytest.mark.parametrize(
    "arch",
    [
        CHAIN,
        DnCNNArgs(width=4, depth=3),
        FFDNetArgs(width=4, depth=3),
        DRUNetArgs(widths=(2, 3, 4), blocks=1),
    ],
)
def test_every_network_purifies_from_its_card(arch):
    """Colour by colour, in a range of its own, told 0.1 where it is told anything."""
    told = {"level": 0.1} if arch.arch in ("ffdnet", "drunet") else {}
    settings = {"image": COLOUR, "sigma": 0.05, "data_range": (-1.0, 1.0), "per_channel": True}
    made = card(network=arch, **settings, **told)
    torch.manual_seed(0)
    network = build_network(made).eval().requires_grad_(False)
    purifier, x = FeedforwardPurifier(made, network), torch.full((2, 3, 4, 5), 0.4)
    x.requires_grad_()
    y = purifier(x, draws(2))
    assert y.shape == x.shape
    assert 0.0 <= y.min() < y.max() <= 1.0
    seen = 2.0 * (x + 0.05 * draws(2).normal(0, (3, 4, 5))) - 1.0
    for colour in range(3):
        part = network(seen[:, colour : colour + 1], *[0.2 for _ in told])
        torch.testing.assert_close(y[:, colour], ((part + 1.0) / 2.0).clamp(0.0, 1.0)[:, 0])
    y.sum().backward()
    assert x.grad.abs().max() > 0


def test_what_spandrel_detects_is_not_built_from_a_card():
    with pytest.raises(ValueError, match="spandrel finds this network in its tensors"):
        build_network(card(network=SpandrelArgs()))
