"""Diffusion purification: noise the image to t*, then run the reverse process back to an image.

Every chain follows the notation of its paper, with coefficients in float64; x is in the network's
data range, `draw(k, x)` is the k-th array of standard normals of this round (0: forward noising).
A chain is an iterator of steps, so that a gradient needs the memory of one step only.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from purify_audit.core.noise import Noise
from purify_audit.models.protocols import PurifierFromCard, Step
from purify_audit.models.purifiers.denoiser import Denoiser, Estimate
from purify_audit.models.purifiers.schedule import NoiseSchedule, noise_schedule, reverse_indices
from purify_audit.spec.card import DiffusionCard
from purify_audit.spec.samplers import (
    SMALLEST_TIME,
    ContinuousSampler,
    DDIMSampler,
    DDPMSampler,
    OneStepSampler,
    VPODESampler,
    VPSDESampler,
)

Draw = Callable[[int, Tensor], Tensor]
Normals = Callable[[Tensor], Tensor]
"""Standard normals in the shape and type of their argument."""

_NORMALS_AHEAD = 2**19  # normals generated at a time: fewer, larger calls


@dataclass(frozen=True, slots=True)
class DiffusionPurifier(PurifierFromCard):
    """Noise to t*, denoise, as often as the sampler's `rounds` say (Nie et al. 2022).

    Attributes:
        card: its settings.
        network: in eval mode, on the device of the images.
    """

    card: DiffusionCard
    network: nn.Module

    @property
    def evaluations(self) -> int:
        """Network evaluations in one purification."""
        return self.card.sampler.rounds * _chain_length(self.card)

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Purify images float32 [n, c, h, w] in [0, 1] under their draws."""
        for step in self.chain(noise):
            x = step(x)
        return x

    def chain(self, noise: Noise) -> Iterator[Step]:
        """One purification, step by step: at most one network evaluation in each."""
        low, high = self.card.data_range
        yield lambda x: x * (high - low) + low
        length = _chain_length(self.card) + 1
        for round_ in range(self.card.sampler.rounds):
            yield from self._one_round(_ahead(noise, round_ * length, self.card))
        yield self._to_image

    def predict(self, x: Tensor, index: int) -> Estimate:
        """The network's estimate from noisy images x (data range) at an index of the schedule."""
        schedule = noise_schedule(self.card.schedule)
        return self._denoiser()(x, self._index_time(index, schedule), schedule.alpha_bar(index))

    def _to_image(self, x: Tensor) -> Tensor:
        low, high = self.card.data_range
        image = (x - low) / (high - low)
        return image.clamp(0.0, 1.0) if self.card.sampler.clamp else image

    def _one_round(self, draw: Draw) -> Iterator[Step]:
        sampler, schedule = self.card.sampler, noise_schedule(self.card.schedule)
        indices = _indices(self.card)
        start = schedule.alpha_bar(indices[0])
        yield lambda x: math.sqrt(start) * x + math.sqrt(1.0 - start) * draw(0, x)
        match sampler:
            case DDPMSampler() | DDIMSampler():
                step = self._ddpm if isinstance(sampler, DDPMSampler) else self._ddim
                for k, (i, prev) in enumerate(zip(indices, (*indices[1:], -1), strict=True)):
                    yield partial(step, i=i, prev=prev, z=partial(draw, k + 1))
            case ContinuousSampler():
                for k in range(_chain_length(self.card)):
                    yield partial(self._euler, k=k, z=partial(draw, k + 1))
            case OneStepSampler():
                yield lambda x: self._limit(self.predict(x, indices[0]).x0, sampler.clip)

    def _ddpm(self, x: Tensor, i: int, prev: int, z: Normals) -> Tensor:
        """Ho et al. 2020, eq. 7 and algorithm 2; variances as in Nichol and Dhariwal 2021.

        (Diffusers' DDPMScheduler also adds noise in a last step that does not start at index 0,
        unless the variance is fixed-small.)
        """
        sampler, schedule = self.card.sampler, noise_schedule(self.card.schedule)
        assert isinstance(sampler, DDPMSampler)
        alpha_bar_t, alpha_bar_prev = schedule.alpha_bar(i), schedule.alpha_bar(prev)
        beta = 1.0 - alpha_bar_t / alpha_bar_prev
        estimate = self.predict(x, i)
        x0 = self._limit(estimate.x0, sampler.clip)
        x = (
            math.sqrt(alpha_bar_prev) * beta / (1.0 - alpha_bar_t) * x0
            + math.sqrt(1.0 - beta) * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar_t) * x
        )
        if prev >= 0:  # the last step adds no noise
            small = beta * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar_t)
            x = x + _deviation(sampler, beta, small, estimate) * z(x)
        return x

    def _ddim(self, x: Tensor, i: int, prev: int, z: Normals) -> Tensor:
        """Song, Meng and Ermon 2021, eqs. 12 and 16.

        After clipping x0, eps is recomputed from it, or (`clipped_eps` false, the default of
        diffusers' DDIMScheduler) left as predicted, which is a different purifier.
        """
        sampler, schedule = self.card.sampler, noise_schedule(self.card.schedule)
        assert isinstance(sampler, DDIMSampler)
        alpha_bar_t, alpha_bar_prev = schedule.alpha_bar(i), schedule.alpha_bar(prev)
        estimate = self.predict(x, i)
        x0, eps = estimate.x0, estimate.eps
        if sampler.clip:
            x0 = self._limit(x0, clip=True)
        if sampler.clip and sampler.clipped_eps:
            eps = (x - math.sqrt(alpha_bar_t) * x0) / math.sqrt(1.0 - alpha_bar_t)
        variance = (
            sampler.eta**2
            * (1.0 - alpha_bar_prev)
            / (1.0 - alpha_bar_t)
            * (1.0 - alpha_bar_t / alpha_bar_prev)
        )
        x = (
            math.sqrt(alpha_bar_prev) * x0
            + math.sqrt(max(1.0 - alpha_bar_prev - variance, 0.0)) * eps
        )
        if variance > 0.0:
            x = x + math.sqrt(variance) * z(x)
        return x

    def _euler(self, x: Tensor, k: int, z: Normals) -> Tensor:
        """Reverse VP-SDE or probability-flow ODE (without noise), on a uniform time grid.

        Discretised as by Nie et al. (2022): score at the start of each interval, the last interval
        shorter by 1e-5, noise on every step of the SDE; a network of indices is given t · steps.
        """
        sampler, schedule = self.card.sampler, noise_schedule(self.card.schedule)
        assert isinstance(sampler, ContinuousSampler)
        denoiser = self._denoiser()
        unit, t_star = schedule.steps, self.card.t_star
        steps = sampler.steps or t_star
        t = t_star * (steps - k) / (steps * unit)
        dt = t_star / (steps * unit) - (SMALLEST_TIME if k == steps - 1 else 0.0)
        beta, alpha_bar_t = schedule.beta(t), schedule.continuous_alpha_bar(t)
        index = min(t_star * (steps - k) / steps, unit - 1)  # not unit * t: 7.000000000000001
        time = (unit - 1) * t if self.card.time_conditioning == "continuous" else index
        eps = denoiser(x, time, alpha_bar_t).eps
        score = -1.0 / math.sqrt(1.0 - alpha_bar_t) * eps
        if isinstance(sampler, VPODESampler):
            return x + dt * 0.5 * beta * (x + score)
        return x + dt * (0.5 * beta * x + beta * score) + math.sqrt(beta * dt) * z(x)

    def _denoiser(self) -> Denoiser:
        return Denoiser(self.network, self.card.prediction, self.card.time_conditioning)

    def _index_time(self, index: int, schedule: NoiseSchedule) -> float:
        """The network's time input at an index: the index, or 999 t for 1000 steps."""
        if self.card.time_conditioning == "index":
            return float(index)
        return (schedule.steps - 1) * (index + 1) / schedule.steps

    def _limit(self, x0: Tensor, clip: bool) -> Tensor:
        return x0.clamp(*self.card.data_range) if clip else x0


def _deviation(
    sampler: DDPMSampler, beta: float, small: float, estimate: Estimate
) -> Tensor | float:
    """Standard deviation of one ancestral step."""
    match sampler.variance:
        case "fixed-small":
            return math.sqrt(small)
        case "fixed-large":
            return math.sqrt(beta)
        case "learned-range":  # Nichol and Dhariwal 2021, eq. 15
            assert estimate.variance is not None, "the card has learned_variance"
            share = (estimate.variance + 1.0) / 2.0
            return torch.exp(0.5 * (share * math.log(beta) + (1.0 - share) * math.log(small)))


def _draws(card: DiffusionCard) -> int:
    """Arrays of normals that one round uses, the forward noise included."""
    match card.sampler:
        case VPODESampler() | OneStepSampler() | DDIMSampler(eta=0.0):
            return 1
        case VPSDESampler():
            return _chain_length(card) + 1
        case DDPMSampler() | DDIMSampler():  # no noise on the last step
            return _chain_length(card)


def _ahead(noise: Noise, first: int, card: DiffusionCard) -> Draw:
    """`draw` for one round, which generates the normals of many steps at a time.

    Read in order, forwards or backwards, every number is generated once.
    """
    shape, length = card.image.shape, _draws(card)
    chunk = max(1, min(length, _NORMALS_AHEAD // max(1, len(noise) * math.prod(shape))))
    cached: dict[int, Tensor] = {}

    def draw(k: int, like: Tensor) -> Tensor:
        start = k - k % chunk
        if start not in cached:
            cached.clear()
            cached[start] = noise.normals(first + start, min(chunk, length - start), shape)
        return cached[start][k - start].to(like.dtype)

    return draw


def _chain_length(card: DiffusionCard) -> int:
    """Network evaluations in one round."""
    match card.sampler:
        case DDPMSampler() | DDIMSampler():
            return len(_indices(card))
        case ContinuousSampler(steps=steps):
            return steps or card.t_star
        case OneStepSampler():
            return 1


def _indices(card: DiffusionCard) -> tuple[int, ...]:
    """Indices of the schedule that a strided sampler visits; the first is what it noises to.

    That is t* − 1, or lower for leading spacing, so that noise level and time input agree.
    """
    match card.sampler:
        case DDPMSampler() | DDIMSampler() as s:
            return reverse_indices(card.t_star, s.steps, s.stride, s.spacing, s.offset)
        case _:
            return (card.t_star - 1,)
