"""Dishonest purifiers: each looks robust by a trick, and each must end in its named finding."""

import random
import zlib

import numpy as np
import torch
from subjects import DIGITS
from torch import nn


class Cheat:
    """Half-way to grey plus a little addressed noise: honest, until a subclass spoils it."""

    image = DIGITS
    randomised = True
    evaluations = 1

    def __call__(self, x, noise):
        return (0.25 + 0.5 * x + 0.02 * noise.normal(0, self.image.shape)).clamp(0, 1)


class GlobalNoise(Cheat):
    """Draws from torch's global generator, like most published purifiers."""

    def __call__(self, x, noise):
        return (0.5 * x + 0.25 + 0.02 * torch.randn_like(x)).clamp(0, 1)


class NumpyNoise(Cheat):
    """Reseeds numpy's global generator in every call: repeatable, and still not addressed."""

    def __call__(self, x, noise):
        np.random.seed(0)  # noqa: NPY002
        z = torch.from_numpy(np.random.standard_normal(x.shape).astype(np.float32))  # noqa: NPY002
        return (0.25 + 0.5 * x + 0.02 * z).clamp(0, 1)


class PythonNoise(Cheat):
    """Shifts every image by a number from Python's random module."""

    def __call__(self, x, noise):
        return (0.25 + 0.5 * x + 0.1 * random.random()).clamp(0, 1)


class DropoutLeftOn(Cheat):
    """A network in training mode."""

    def __init__(self):
        self.dropout = nn.Dropout(0.2).train()

    def __call__(self, x, noise):
        return self.dropout(0.5 * x + 0.25).clamp(0, 1)


class CountsCalls(Cheat):
    """Gives another answer with every call."""

    calls = 0

    def __call__(self, x, noise):
        self.calls += 1
        return super().__call__(x, noise) * (1 - 1e-3 * (self.calls % 7))


class BatchStatistics(Cheat):
    """Normalises with the mean of the batch."""

    def __call__(self, x, noise):
        return (super().__call__(x, noise) - 0.3 * x.mean(0, keepdim=True)).clamp(0, 1)


class PairDetector(Cheat):
    """Answers for an image what it answered for the most similar other image in the batch."""

    def __call__(self, x, noise):
        y = super().__call__(x, noise)
        distance = torch.cdist(x.flatten(1), x.flatten(1)).fill_diagonal_(torch.inf)
        nearest = distance.argmin(1)
        close = distance.gather(1, nearest[:, None])[:, 0] < 1.0
        first = torch.minimum(nearest, torch.arange(len(x)))
        return torch.where(close[:, None, None, None], y[first], y)


class Remembers(Cheat):
    """Answers for an image what it answered for the last similar one: a rate of nearly 0."""

    def __init__(self):
        self.seen, self.answers = None, None

    def __call__(self, x, noise):
        y = super().__call__(x, noise)
        if self.seen is not None:
            distance = torch.cdist(x.flatten(1), self.seen.flatten(1))
            nearest = distance.argmin(1)
            close = distance.gather(1, nearest[:, None])[:, 0] < 1.0
            y = torch.where(close[:, None, None, None], self.answers[nearest], y)
        self.seen, self.answers = x.clone(), y.clone()
        return y


class NaNForOne(Cheat):
    """NaN for images whose id is even."""

    def __call__(self, x, noise):
        y = super().__call__(x, noise)
        y[torch.tensor(noise.images) % 2 == 0] = torch.nan
        return y


class NaNLater(Cheat):
    """NaN for the one image it is told, which preflight does not see."""

    def __init__(self, image):
        self.target = image

    def __call__(self, x, noise):
        y = super().__call__(x, noise)
        y[torch.tensor(noise.images) == self.target] = torch.nan
        return y


class WrongShape(Cheat):
    """Flattens its images."""

    def __call__(self, x, noise):
        return super().__call__(x, noise).flatten(1)


class WrongType(Cheat):
    """Returns float64."""

    def __call__(self, x, noise):
        return super().__call__(x, noise).double()


class OtherRange(Cheat):
    """Returns pixels in [−1, 1]: its rate is of other units."""

    def __call__(self, x, noise):
        return 2 * x - 1 + 0.02 * noise.normal(0, self.image.shape)


class SlightlyOut(Cheat):
    """Leaves [0, 1] a little."""

    def __call__(self, x, noise):
        return x + 0.1 * noise.normal(0, self.image.shape)


class HashedNoise(Cheat):
    """Noise that is a function of the image's bytes: x and x + δ never meet the same noise."""

    def __call__(self, x, noise):
        rows = []
        for row in x:
            seed = zlib.crc32(row.numpy().tobytes())
            z = np.random.default_rng(seed).standard_normal(row.shape).astype(np.float32)
            rows.append(torch.from_numpy(z))
        return (0.25 + 0.5 * x + 0.1 * torch.stack(rows)).clamp(0, 1)


class IgnoresDraw(Cheat):
    """Claims to be randomised and is not."""

    def __call__(self, x, noise):
        return (0.25 + 0.5 * x).clamp(0, 1)


class HidesDraw(Cheat):
    """Is randomised and claims not to be."""

    randomised = False


class Constant(Cheat):
    """The same picture for everybody: a rate of 0 and an attack that never succeeds."""

    randomised = False

    def __call__(self, x, noise):
        return torch.full_like(x, 0.5)


class BelowRounding(Cheat):
    """Compresses by a million, at which float32 measures only its own rounding."""

    randomised = False

    def __call__(self, x, noise):
        return 0.5 + 2.0**-20 * x


class DriftsLater(Cheat):
    """Honest while preflight looks, another function after 15 calls."""

    calls = 0

    def __call__(self, x, noise):
        self.calls += 1
        return super().__call__(x, noise) * (0.9 if self.calls > 15 else 1.0)


class Inverts(Cheat):
    """Compresses well, and makes every digit unreadable."""

    def __call__(self, x, noise):
        return 1 - super().__call__(x, noise)


# Those that follow fool gradient attacks.


class Quantised(Cheat):
    """Rounds to nine levels: the gradient is zero wherever there is one."""

    def __call__(self, x, noise):
        return torch.round(8 * super().__call__(x, noise)) / 8


class Detached(Cheat):
    """Lets no gradient through."""

    def __call__(self, x, noise):
        return super().__call__(x.detach(), noise)


class HalfDetached(Cheat):
    """Lets the gradient of every other image through: half of the attack looks fine."""

    def __call__(self, x, noise):
        y = super().__call__(x, noise)
        every_other = torch.tensor(noise.images, device=x.device) // 4 % 2 == 0
        return torch.where(every_other[:, None, None, None], y.detach(), y)


class Shattered(Cheat):
    """Adds a ripple too small to see and too steep to follow; its gradient is the true one."""

    def __call__(self, x, noise):
        return super().__call__(x, noise) + 0.02 * torch.sin(5e3 * x)


class Saturated(Cheat):
    """Steps between the grey levels of the digits: flat where they are, passable for an attack."""

    randomised = False
    steepness = 800.0

    def __call__(self, x, noise):
        # sixteen levels; a step half-way between two of them
        scaled = 16 * x
        level = torch.floor(scaled).detach()
        apart = (scaled - level - 0.5) / 16
        return ((level + torch.sigmoid(self.steepness * apart)) / 16).clamp(0, 1)


class HashedInput(Cheat):
    """Noise seeded by the image's bytes, written so that gradients pass beside it."""

    def __call__(self, x, noise):
        rows = []
        for row in x.detach():
            seed = zlib.crc32(row.cpu().numpy().tobytes())
            z = np.random.default_rng(seed).standard_normal(row.shape)
            rows.append(torch.from_numpy(z).to(x))
        return (0.25 + 0.5 * x + 0.2 * torch.stack(rows)).clamp(0, 1)


class StraightThrough(Cheat):
    """Rounds, and claims in the backward pass that it did not."""

    def __call__(self, x, noise):
        y = super().__call__(x, noise)
        return y + (torch.round(8 * y) / 8 - y).detach()


class _Spoilt(torch.autograd.Function):
    """The identity with a false gradient."""

    @staticmethod
    def forward(ctx, x, spoil):
        ctx.spoil = spoil
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return ctx.spoil(g), None


def negated(g):
    return -g


def shuffled(g):
    """The pixels of each image in another order, always the same."""
    place = torch.from_numpy(np.random.default_rng(1).permutation(g[0].numel()))
    return g.flatten(1)[:, place].reshape(g.shape)


def same_for_all(g):
    return torch.ones_like(g)


class NegatedGradient(Cheat):
    """True forwards, downhill backwards."""

    def __call__(self, x, noise):
        return super().__call__(_Spoilt.apply(x, negated), noise)


class ShuffledGradient(Cheat):
    """True forwards, nonsense backwards."""

    def __call__(self, x, noise):
        return super().__call__(_Spoilt.apply(x, shuffled), noise)


class ConstantGradient(Cheat):
    """True forwards; backwards the same for every image."""

    def __call__(self, x, noise):
        return super().__call__(_Spoilt.apply(x, same_for_all), noise)


class NaNGradient(Cheat):
    """Adds the square root of 0, times 0: nothing forwards, NaN backwards."""

    def __call__(self, x, noise):
        nothing = torch.sqrt((0 * x).sum((1, 2, 3), keepdim=True))
        return super().__call__(x, noise) + 0 * nothing


class TrueInDouble(Cheat):
    """Its false gradient shows in float32 alone, and gradients are checked in float64."""

    def __call__(self, x, noise):
        spoil = shuffled if x.dtype == torch.float32 else torch.clone
        return super().__call__(_Spoilt.apply(x, spoil), noise)


class TrueInSmallBatches(Cheat):
    """Its false gradient shows in large micro-batches alone."""

    def __call__(self, x, noise):
        return super().__call__(_Spoilt.apply(x, shuffled if len(x) > 4 else torch.clone), noise)


class TrueOnTheGrid(Cheat):
    """Its gradient is true at clean digits, whose pixels are sixteenths, and nowhere else."""

    def __call__(self, x, noise):
        clean = ((16 * x) % 1 == 0).all(3).all(2).all(1)[:, None, None, None]
        false = super().__call__(_Spoilt.apply(x, shuffled), noise)
        return torch.where(clean, super().__call__(x, noise), false)


class LooksUp(Cheat):
    """Knows the clean images by their ids, and returns them: what comes in hardly matters."""

    randomised = False

    def __init__(self, images, leak=0.02):
        rows = torch.from_numpy(images.pixels.copy())
        self.known = dict(zip(images.ids.tolist(), rows))
        self.leak = leak

    def look_up(self, x, noise):
        return torch.stack([self.known.get(i, x[n]) for n, i in enumerate(noise.images)]).to(x)

    def __call__(self, x, noise):
        return (1 - self.leak) * self.look_up(x, noise).detach() + self.leak * x


class LooksUpNear(LooksUp):
    """The same for images near the clean one, so that a boundless attack succeeds."""

    def __call__(self, x, noise):
        known = self.look_up(x, noise).detach()
        far = (x - known).abs().amax((1, 2, 3), keepdim=True)
        return torch.where(far < 0.3, super().__call__(x, noise), x)


class OtherInGradMode(Cheat):
    """Computes something else where a gradient is wanted."""

    def __call__(self, x, noise):
        return super().__call__(0.5 - 0.5 * x if torch.is_grad_enabled() else x, noise)


class DriftsWhenTold(Cheat):
    """Honest until somebody sets `calls_left`, and for so many calls after."""

    calls_left = None

    def __call__(self, x, noise):
        y = super().__call__(x, noise)
        if self.calls_left is not None:
            self.calls_left -= 1
            y = y * (0.97 if self.calls_left < 0 else 1.0)
        return y


class Abstains(Cheat):
    """Returns NaN for what looks attacked to its own classifier."""

    def __init__(self, classifier):
        self.classifier = classifier

    def __call__(self, x, noise):
        y = super().__call__(x, noise)
        sure = self.classifier(y.float()).softmax(1).amax(1) > 0.9
        return torch.where(sure[:, None, None, None], y, torch.nan)


class ShatteredAndTurned(Shattered):
    """Turns the image over as well (its classifier knows), which BPDA does not see."""

    def __call__(self, x, noise):
        return super().__call__(x, noise).flip(3)


class HalfTrueAndTurned(Cheat):
    """Turned over; true in float64, and in float32 at half of the pixels: a weak attack succeeds
    now and then, about as often as fifty queries of Square."""

    def half(self, g):
        true = torch.from_numpy(np.random.default_rng(2).random(64) < 0.5).reshape(8, 8)
        return torch.where(true, g, shuffled(g))

    def __call__(self, x, noise):
        if x.dtype == torch.float32:
            x = _Spoilt.apply(x, self.half)
        return super().__call__(x, noise).flip(3)


class RippledAndTurned(Cheat):
    """A longer ripple than `Shattered`: the gradient next door agrees, that of a step away not."""

    def __call__(self, x, noise):
        return (super().__call__(x, noise) + 0.02 * torch.sin(400 * x)).flip(3)


class LooksUpRenamed(LooksUpNear):
    """Knows how the audit renames images."""

    def look_up(self, x, noise):
        rows = [self.known.get(i % 2**31, x[n]) for n, i in enumerate(noise.images)]
        return torch.stack(rows).to(x)
