"""Data whose posterior is known in closed form, the perfect denoisers of it, and scripted noise.

For x_t = sqrt(a) x0 + sqrt(1 - a) e with e standard normal and every pixel independent:

- x0 ~ N(m, s^2):  x_t ~ N(sqrt(a) m, v), v = a s^2 + 1 - a, and x0 | x_t is normal with mean
  m + sqrt(a) s^2 / v (x_t - sqrt(a) m) and variance s^2 (1 - a) / v.
- x0 ~ sum_k w_k N(m_k, s_k^2): the same for each component k, weighted by its responsibility
  r_k(x_t), proportional to w_k N(x_t; sqrt(a) m_k, v_k).

A Gaussian is a mixture of one. Nothing here calls the schedules, denoisers or samplers under test.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from purify_audit.core.noise import Noise
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.spec.architectures import UNetArgs
from purify_audit.spec.card import DiffusionCard, ImageSpec, Provenance
from purify_audit.spec.samplers import ContinuousSampler, CosineSchedule, LinearSchedule, VPSchedule

PROVENANCE = Provenance(data="none", command="none", licence="none")
UNUSED_UNET = UNetArgs(width=8, multipliers=(1,), blocks=1)


@dataclass(frozen=True)
class Mixture:
    """Independent pixels, each from sum_k weights[k] N(means[k], stds[k]^2), in the data range."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    def posterior(self, x: Tensor, abar: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of x0 given x_t = x, elementwise."""
        logs, means, variances = [], [], []
        for w, m, s in zip(self.weights, self.means, self.stds, strict=True):
            v = abar * s * s + 1.0 - abar
            away = x - math.sqrt(abar) * m
            logs.append(math.log(w) - 0.5 * math.log(v) - away**2 / (2.0 * v))
            means.append(m + math.sqrt(abar) * s * s / v * away)
            variances.append(torch.full_like(x, s * s * (1.0 - abar) / v))
        log, m, v = torch.stack(logs), torch.stack(means), torch.stack(variances)
        r = torch.exp(log - log.amax(0))  # softmax, which is slow on tensors this small
        r = r / r.sum(0)
        mean = (r * m).sum(0)
        return mean, (r * (v + (m - mean) ** 2)).sum(0)


def gaussian(mean: float, std: float) -> Mixture:
    return Mixture((1.0,), (mean,), (std,))


TWO_BUMPS = Mixture((0.35, 0.65), (-0.6, 0.5), (0.15, 0.25))


class PerfectDenoiser(nn.Module):
    """The posterior mean of some data, in the words of any of the four predictions.

    Args:
        data: what the clean images are.
        prediction: eps, x0, v or score.
        abar: of the time that the network is told.
        logits: [c, h, w], returned as the second half of the channels; or none.
    """

    def __init__(
        self,
        data: Mixture,
        prediction: str,
        abar: Callable[[float], float],
        logits: Tensor | None = None,
    ):
        super().__init__()
        self.data, self.prediction, self.abar, self.logits = data, prediction, abar, logits

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        assert bool((t == t[0]).all())
        a = self.abar(float(t[0]))
        x0, _ = self.data.posterior(x, a)
        out = {
            "x0": x0,
            "eps": (x - math.sqrt(a) * x0) / math.sqrt(1.0 - a),
            "v": (math.sqrt(a) * x - x0) / math.sqrt(1.0 - a),
            "score": (math.sqrt(a) * x0 - x) / (1.0 - a),
        }[self.prediction]
        return out if self.logits is None else torch.cat((out, self.logits.expand_as(out)), 1)


class Constant(nn.Module):
    """The same output for every pixel of every image at every time."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


class Recorder(nn.Module):
    """Another network, and what it was given."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.images: list[Tensor] = []
        self.times: list[float] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        assert bool((t == t[0]).all())
        self.images.append(x.detach().clone())
        self.times.append(float(t[0]))
        return self.network(x, t)


@dataclass
class Script:
    """Stands in for `Noise`: the normals of each step are values[:, step], given beforehand.

    Attributes:
        values: [rows, steps, c, h, w].
        asked: the steps that were read, in order.
    """

    values: Tensor
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)

    def normal(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.normals(step, 1, shape)[0]

    def normals(self, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
        assert tuple(shape) == tuple(self.values.shape[2:])
        assert first + count <= self.values.shape[1]
        self.asked.extend(range(first, first + count))
        return self.values[:, first : first + count].transpose(0, 1)


@dataclass(frozen=True)
class Shifted:
    """Another noise, its steps counted from `first`."""

    noise: Any
    first: int

    def __len__(self) -> int:
        return len(self.noise)

    def normal(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.noise.normal(self.first + step, shape)

    def normals(self, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
        return self.noise.normals(self.first + first, count, shape)


def draws(rows: int, seed: int = 5) -> Noise:
    """One image under draws 0 ... rows - 1."""
    return Noise(seed=seed, images=(3,) * rows, draws=tuple(range(rows)))


# --- schedules, written out ---------------------------------------------------------------------


def literal_abar(schedule: LinearSchedule | CosineSchedule | VPSchedule) -> list[float]:
    """abar of every index, one multiplication at a time (vp: its exponential)."""
    n, kept, out = schedule.steps, 1.0, []
    for i in range(n):
        match schedule:
            case LinearSchedule(beta_start=start, beta_end=end):
                kept *= 1.0 - (start + (end - start) * i / (n - 1))
            case CosineSchedule(offset=s, beta_max=most):
                level = [math.cos(((i + j) / n + s) / (1 + s) * math.pi / 2) ** 2 for j in (0, 1)]
                kept *= 1.0 - min(1.0 - level[1] / level[0], most)
            case VPSchedule():
                kept = continuous_abar(schedule, (i + 1) / n)
        out.append(kept)
    return out


def continuous_rate(schedule: LinearSchedule | VPSchedule) -> tuple[float, float]:
    """beta(0) and beta(1) of the continuous process."""
    if isinstance(schedule, VPSchedule):
        return schedule.beta_min, schedule.beta_max
    return schedule.steps * schedule.beta_start, schedule.steps * schedule.beta_end


def continuous_abar(schedule: LinearSchedule | VPSchedule, t: float) -> float:
    """exp(-integral of beta from 0 to t)."""
    low, high = continuous_rate(schedule)
    return math.exp(-low * t - (high - low) * t * t / 2.0)


def told_abar(card: DiffusionCard) -> Callable[[float], float]:
    """abar of the time a network is told.

    Index clock: the index i itself, but N t in the SDE and the ODE. Continuous clock: (N - 1) t,
    where index i is time (i + 1) / N.
    """
    n, schedule = card.schedule.steps, card.schedule
    euler = isinstance(card.sampler, ContinuousSampler)
    table = literal_abar(schedule)

    def abar(told: float) -> float:
        if euler:
            return continuous_abar(
                schedule, told / (n if card.time_conditioning == "index" else n - 1)
            )
        index = told if card.time_conditioning == "index" else told / (n - 1) * n - 1.0
        assert abs(index - round(index)) < 1e-9
        return table[round(index)]

    return abar


# --- purifiers ----------------------------------------------------------------------------------


def diffusion_card(sampler: Any, **changes: Any) -> DiffusionCard:
    """A card of small grey images, in (-1, 1), under the usual linear schedule."""
    settings: dict[str, Any] = {
        "name": "oracle",
        "image": ImageSpec(channels=1, height=2, width=2),
        "provenance": PROVENANCE,
        "network": UNUSED_UNET,
        "prediction": "eps",
        "time_conditioning": "index",
        "schedule": LinearSchedule(),
        "data_range": (-1.0, 1.0),
        "t_star": 30,
        "sampler": sampler,
    }
    return DiffusionCard(**{**settings, **changes})


def perfect_purifier(card: DiffusionCard, data: Mixture, logits: Any = None) -> DiffusionPurifier:
    """A diffusion purifier whose network knows the data exactly."""
    return DiffusionPurifier(card, PerfectDenoiser(data, card.prediction, told_abar(card), logits))


def pixels(rows: int, card: DiffusionCard, seed: int = 0) -> Tensor:
    """Images float64 [rows, c, h, w], uniform in [0, 1]."""
    values = np.random.default_rng(seed).uniform(size=(rows, *card.image.shape))
    return torch.from_numpy(values)
