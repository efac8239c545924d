"""Check that a diffusion purifier's network denoises when run with its card's settings.

Two reference errors: the best linear estimate from single pixels; and the same network with its
output read as another prediction, or given another time. Confused data ranges [0, 1] and [−1, 1]
pass both if the network was trained on images of every contrast.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from purify_audit.core.findings import Finding, finding
from purify_audit.core.noise import Noise, Stream
from purify_audit.images.image_set import ImageSet
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.purifiers.schedule import noise_schedule
from purify_audit.models.runner import Runner
from purify_audit.spec.architectures import EDMArgs

_NOISE_LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0)  # noise to signal, for data of half-range 1
_TRAINED = 1.0  # trained at least up to this noise, or up to that of t* if it is more
_IMAGES = 64  # of which the first few are also denoised with other settings
_FEW = 16
_TIMES = {"a quarter of": 0.25, "half": 0.5, "twice": 2.0, "four times": 4.0}
_BETTER = 2.0 / 3.0  # of the error at some level; a trained network's error grows at every level


def check_denoising(runner: Runner, images: ImageSet) -> Finding | None:
    """PA106 unless a diffusion network estimates the noise well, and best with its own settings.

    Args:
        runner: of the purifier.
        images: clean images; at most 64 are used.
    """
    purifier = runner.purifier
    if not isinstance(purifier, DiffusionPurifier):
        return None
    images = images.select(list(range(min(len(images), _IMAGES))))
    few = images.select(list(range(min(len(images), _FEW))))
    indices, abar = _levels(purifier)
    errors = _errors(runner, purifier, images, indices)
    limits = _linear_errors(images.pixels, purifier.card.data_range, abar)
    own = _errors(runner, purifier, few, indices)
    others = {name: _errors(runner, p, few, indices) for name, p in _variants(purifier)}
    better = {n: e for n, e in others.items() if (e <= own).all() and (e < _BETTER * own).any()}
    best = min(better, key=lambda name: float(better[name].sum()), default=None)
    if best is None and (errors < limits).all():
        return None
    compared = f"{best} it would be {_listed(better[best])}" if best else ""
    return finding(
        "PA106",
        f"Predicting the noise, the network's mean square error is {_listed(errors)} at"
        f" {len(indices)} noise levels;"
        f" {compared or f'shrinking every pixel towards one grey has {_listed(limits)}'}.",
        {
            "indices": indices,
            "mean_square_errors": errors.tolist(),
            "limits": limits.tolist(),
            "better": list(better),
        },
    )


def _levels(purifier: DiffusionPurifier) -> tuple[list[int], np.ndarray]:
    """Indices of the schedule to check, and ᾱ (the share of signal in the variance) there."""
    low, high = purifier.card.data_range
    abar = noise_schedule(purifier.card.schedule).abar
    ratio = np.sqrt((1.0 - abar) / abar) / ((high - low) / 2.0)
    known = max(purifier.card.t_star - 1, int(np.abs(ratio - _TRAINED).argmin()))
    nearest = [int(np.abs(ratio - level).argmin()) for level in _NOISE_LEVELS]
    indices = [index for index in nearest if index <= known]
    return indices, np.asarray(abar[indices])


def _errors(
    runner: Runner, purifier: DiffusionPurifier, images: ImageSet, indices: list[int]
) -> np.ndarray:
    """Mean square errors of the estimate of eps, for each of the indices (Ho et al. 2020)."""
    low, high = purifier.card.data_range
    schedule = noise_schedule(purifier.card.schedule)
    squares = np.zeros(len(indices))
    for first in range(0, len(images), runner.microbatch):
        some = images.select(list(range(first, min(first + runner.microbatch, len(images)))))
        x = torch.from_numpy(some.pixels.copy()).to(runner.device) * (high - low) + low
        ids = tuple(some.ids.tolist())
        noise = Noise(runner.seed, ids, (0,) * len(ids), Stream.PREFLIGHT, runner.device)
        for step, index in enumerate(indices):
            z, alpha_bar = noise.normal(step, some.image_shape), schedule.alpha_bar(index)
            eps = purifier.predict(alpha_bar**0.5 * x + (1.0 - alpha_bar) ** 0.5 * z, index).eps
            error = (eps - z).square().mean((1, 2, 3)).sum()
            squares[step] += float(error.nan_to_num(float("inf")).clamp(max=1e9))
    return squares / len(images)


def _linear_errors(
    pixels: np.ndarray, data_range: tuple[float, float], abar: np.ndarray
) -> np.ndarray:
    """Mean square error of the best linear estimate from single pixels, for each ᾱ [levels].

    For a pixel of variance v it is v ᾱ / (v ᾱ + 1 − ᾱ) (Wiener filter), averaged over pixels; or
    that of pixels uniform over the data range, if larger.
    """
    width, noise = data_range[1] - data_range[0], 1.0 - abar
    signal = abar[:, None] * pixels.var(0, dtype=np.float64).ravel() * width**2
    uniform = abar * width**2 / 12.0
    own = (signal / (signal + noise[:, None])).mean(1)
    return np.asarray(np.maximum(own, uniform / (uniform + noise)))


def _variants(purifier: DiffusionPurifier) -> Iterator[tuple[str, DiffusionPurifier]]:
    """The same network with other settings."""
    card = purifier.card
    if isinstance(card.network, EDMArgs):
        return  # its preconditioning fixes prediction and time conditioning
    for prediction in ("eps", "x0", "v", "score"):
        possible = card.time_conditioning != "sigma" or prediction != "v"
        if prediction != card.prediction and possible:
            changed = card.model_copy(update={"prediction": prediction})
            yield f"taken for a prediction of {prediction}", replace(purifier, card=changed)
    last = float("inf") if card.time_conditioning == "sigma" else float(card.schedule.steps - 1)
    for name, factor in _TIMES.items():
        network = _OtherTime(purifier.network, factor, last)
        yield f"given {name} the time", replace(purifier, network=network)


class _OtherTime(nn.Module):
    """A network that is given another time, at most the last."""

    def __init__(self, network: nn.Module, factor: float, last: float) -> None:
        super().__init__()
        self.network, self.factor, self.last = network, factor, last

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.network(x, (self.factor * t).clamp(max=self.last))
        return out


def _listed(numbers: np.ndarray) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)
