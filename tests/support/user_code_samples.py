"""Purifiers as other people write them: they draw from whatever generator is at hand.

None of them knows of this package. Images are [n, c, h, w] in [0, 1] unless a class says otherwise.
"""

import random
import threading
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


def three_steps(x):
    """x <- 0.9 x + 0.05 z, three times: its compression rate is 0.9 cubed, whatever is drawn."""
    for _ in range(3):
        x = 0.9 * x + 0.05 * torch.randn_like(x)
    return x


def one_image_for_all(x):
    """Adds the same noise to every image of a batch."""
    return 0.5 * x + 0.25 + 0.05 * torch.randn(1, *x.shape[1:])


def random_time(x):
    """One random strength for the whole batch, and noise of each image's own."""
    t = torch.rand(())
    return 0.5 * x + 0.25 + 0.1 * t * torch.randn_like(x)


def numpy_time(x):
    """The same, drawn from NumPy's global generator, as DiffPure draws its random t*."""
    t = np.random.randint(1, 100) / 100  # noqa: NPY002
    return 0.5 * x + 0.25 + 0.1 * t * torch.randn_like(x)


def python_shift(x):
    return 0.25 + 0.5 * x + 0.1 * random.random()


def numpy_noise(x):
    """Noise of every image's own, but from NumPy."""
    z = np.random.randn(*x.shape)  # noqa: NPY002
    return 0.25 + 0.5 * x + 0.05 * torch.from_numpy(z).to(x)


def image_by_image(x):
    """A loop over the images of a batch, each with a draw of its own."""
    return torch.stack([0.5 * image + 0.25 + 0.05 * torch.randn(image.shape) for image in x])


def until_bright(x):
    """Every image is noised as often as its pixels say."""
    rows = []
    for image in x:
        for _ in range(1 + int(10 * image.mean().item())):
            image = 0.9 * image + 0.05 + 0.02 * torch.randn_like(image)
        rows.append(image)
    return torch.stack(rows)


def shuffled_strengths(x):
    """Mixes strengths among the images of a batch."""
    strength = torch.linspace(0.1, 0.05, len(x))[torch.randperm(len(x))]
    return 0.5 * x + 0.25 + strength[:, None, None, None] * torch.randn_like(x)


def doubled(x):
    """Two copies at once, as classifier-free guidance runs them."""
    both = torch.cat((x, x)) + 0.05 * torch.randn(2 * len(x), *x.shape[1:])
    first, second = both.chunk(2)
    return 0.25 * (first + second) + 0.25


def seeded_by_a_draw(x):
    """Draws a seed, and noise from a generator of that seed: the seed itself is of no matter."""
    generator = torch.Generator().manual_seed(int(torch.randint(0, 2**31, ())))
    return 0.5 * x + 0.25 + 0.05 * torch.randn(x.shape, generator=generator)


def always_seed_zero(x):
    """Claims to be random, and draws the same numbers for ever."""
    torch.manual_seed(0)
    return 0.5 * x + 0.25 + 0.05 * torch.randn_like(x)


def replays_itself(x):
    """Adds noise and takes half of the same noise away again, by going back to an old state."""
    state = torch.get_rng_state()
    x = x + torch.randn_like(x)
    torch.set_rng_state(state)
    return 0.5 * (x - 0.5 * torch.randn_like(x)) + 0.25


def unseeded_numpy(x):
    """Entropy of the operating system, which nobody can replay."""
    z = np.random.default_rng().standard_normal(x.shape)
    return 0.25 + 0.5 * x + 0.05 * torch.from_numpy(z).to(x)


def by_the_clock(x):
    """Noise from the time of day."""
    z = np.random.default_rng(time.time_ns()).standard_normal(x.shape)
    return 0.25 + 0.5 * x + 0.05 * torch.from_numpy(z).to(x)


def in_a_thread(x):
    """Draws in another thread, where nothing is captured."""
    made = []
    thread = threading.Thread(target=lambda: made.append(torch.randn(x.shape)))
    thread.start()
    thread.join()
    return 0.25 + 0.5 * x + 0.05 * made[0]


def gamma_noise(x):
    """A distribution that is not answered."""
    return 0.5 * x + 0.25 + 0.01 * torch.distributions.Gamma(2.0, 1.0).sample(x.shape)


def swallows(x):
    """Hides what goes wrong."""
    try:
        return gamma_noise(x)
    except Exception:
        return x


def rare_gamma(x):
    """Draws what cannot be aligned, but only for bright images."""
    return gamma_noise(x) if bool((x > 0.99).any()) else 0.5 * x + 0.25


def writes_to_its_input(x):
    x.mul_(0.5).add_(0.25)
    return x.add_(0.05 * torch.randn_like(x))


def one_at_a_time(x):
    """Was never meant for a batch."""
    (image,) = x
    return (0.5 * image + 0.25 + 0.05 * torch.randn_like(image))[None]


def fails(x):
    raise KeyError("no such noise level")


class Dropout(nn.Module):
    """Dropout left on deliberately, batch normalisation in eval mode."""

    def __init__(self, channels=1):
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.2)
        self.out = nn.Conv2d(8, channels, 3, padding=1)
        self.eval()
        self.dropout.train()

    def forward(self, x):
        return 0.5 * x + 0.25 + 0.1 * self.out(self.dropout(F.silu(self.norm(self.conv(x)))))


class Checkpointed(nn.Module):
    """A chain that draws inside of gradient checkpoints, or without them.

    Args:
        kind: none, `reentrant` or `new`.
    """

    def __init__(self, kind=None):
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.kind = kind

    def step(self, x):
        return 0.8 * x + 0.1 * torch.tanh(self.conv(x)) * (1 + torch.randn_like(x))

    def forward(self, x):
        for _ in range(3):
            if self.kind is None:
                x = self.step(x)
            else:
                x = checkpoint(self.step, x, use_reentrant=self.kind == "reentrant")
        return x


class Langevin(nn.Module):
    """Steps along the gradient of an energy, taken with autograd inside (Hill et al. 2021)."""

    def __init__(self, differentiable=False):
        super().__init__()
        torch.manual_seed(4)
        self.energy = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 64, 1)
        )
        self.differentiable = differentiable

    def forward(self, x):
        for _ in range(3):
            if not self.differentiable or not x.requires_grad:
                x = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=self.differentiable)
            x = x - 0.5 * g + 0.05 * torch.randn_like(x)
        return x if self.differentiable else x.detach()


class BatchNormLeftOn(nn.Module):
    """A network that nobody put into eval mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        return 0.5 + 0.1 * self.norm(x + 0.05 * torch.randn_like(x))


class HalfPrecision(nn.Module):
    """Computes and returns float16."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(1, 1, 3, padding=1).half()

    def forward(self, x):
        return 0.5 * x.half() + 0.25 + 0.1 * self.conv(x.half()) + 0.05 * torch.randn_like(x).half()


class Counter:
    """Holds a network, and a generator that is seeded once and goes on from call to call."""

    def __init__(self):
        torch.manual_seed(5)
        self.network = nn.Conv2d(1, 1, 1)
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, x):
        noise = torch.randn(x.shape, generator=self.generator)
        return 0.5 * x + 0.25 + 0.05 * noise + 0.0 * self.network(x)


@torch.inference_mode()
def under_inference_mode(x):
    """As pipelines are decorated: nothing of it can be differentiated."""
    return 0.5 * x + 0.25 + 0.05 * torch.randn_like(x)


class DrawsBackwards(torch.autograd.Function):
    """Draws what cannot be aligned, but only in its backward pass."""

    @staticmethod
    def forward(ctx, x):
        return 0.5 * x + 0.25

    @staticmethod
    def backward(ctx, g):
        return g * torch._standard_gamma(torch.ones_like(g))


class OneWay(nn.Module):
    """A network with its own idea of a gradient."""

    def forward(self, x):
        return DrawsBackwards.apply(x) + 0.05 * torch.randn_like(x)
