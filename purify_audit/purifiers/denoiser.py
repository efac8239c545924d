"""One contract for whatever a diffusion network predicts."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a network thinks of noisy images x = sqrt(abar) x0 + sqrt(1 − abar) eps.

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
    """A network, and what its output means.

    Attributes:
        network: (x [n, c, h, w], times [n]) -> [n, c or 2c, h, w].
        prediction: eps (Ho et al. 2020), x0, v = sqrt(abar) eps − sqrt(1 − abar) x0 (Salimans and
            Ho 2022, appendix D), or score = −eps / sqrt(1 − abar) (Song et al. 2021).
    """

    network: nn.Module
    prediction: Literal["eps", "x0", "v", "score"]

    def __call__(self, x: Tensor, time: float, abar: float) -> Estimate:
        """Estimate from x at the time that the network is told, where `abar` of it is signal."""
        times = torch.full((len(x),), time, dtype=x.dtype, device=x.device)
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
