"""Estimates of x0 and eps from a diffusion network, whichever quantity it predicts."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Estimate:
    """A network's estimates from noisy images x = sqrt(abar) x0 + sqrt(1 − abar) eps.

    Attributes:
        x0: the clean image, in the network's data range; same shape as x.
        eps: the noise; same shape as x.
        variance: logits of a learned variance, in [−1, 1] by training, same shape as x; or none.
    """

    x0: Tensor
    eps: Tensor
    variance: Tensor | None


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A network and the meaning of its input and output.

    Attributes:
        network: (x [n, c, h, w], times [n]) -> [n, c or 2c, h, w].
        prediction: eps (Ho et al. 2020), x0, v = sqrt(abar) eps − sqrt(1 − abar) x0 (Salimans and
            Ho 2022, appendix D), or score = −eps / sqrt(1 − abar) (Song et al. 2021).
        time_conditioning: the second input: a time (`index`, `continuous`), or `sigma`; then the
            first is x / sqrt(abar) = x0 + sigma eps, and the score −eps / sigma (Karras et al.
            2022, B.1).
    """

    network: nn.Module
    prediction: Literal["eps", "x0", "v", "score"]
    time_conditioning: Literal["index", "continuous", "sigma"] = "index"

    def __call__(self, x: Tensor, time: float, abar: float) -> Estimate:
        """Estimate from x at a time input of the network, where the signal has variance `abar`."""
        if self.time_conditioning == "sigma":
            return self._from_sigma(x, abar)
        times = torch.full((x.shape[0],), time, dtype=x.dtype, device=x.device)
        out = self.network(x, times)
        variance = None
        if out.shape[1] == 2 * x.shape[1]:
            out, variance = out.chunk(2, 1)
        signal, noise = math.sqrt(abar), math.sqrt(1.0 - abar)
        match self.prediction:
            case "eps":
                return Estimate((x - noise * out) / signal, out, variance)
            case "x0":
                return Estimate(out, (x - signal * out) / noise, variance)
            case "v":
                return Estimate(signal * x - noise * out, noise * x + signal * out, variance)
            case "score":
                eps = -noise * out
                return Estimate((x - noise * eps) / signal, eps, variance)

    def _from_sigma(self, x: Tensor, abar: float) -> Estimate:
        """The same for a variance-exploding network, whose input is x0 + sigma eps."""
        sigma = math.sqrt((1.0 - abar) / abar)
        noisy = x / math.sqrt(abar)
        times = torch.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device)
        out = self.network(noisy, times)
        match self.prediction:
            case "x0":
                return Estimate(out, (noisy - out) / sigma, None)
            case "eps":
                return Estimate(noisy - sigma * out, out, None)
            case "score":
                return Estimate(noisy + sigma**2 * out, -sigma * out, None)
            case "v":
                raise AssertionError("the card refuses v-prediction conditioned on sigma")
