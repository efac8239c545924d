"""Noise schedules in float64: alpha_bar, the share of signal variance at each time."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from purify_audit.spec.samplers import (
    CosineSchedule,
    LinearSchedule,
    Schedule,
    Spacing,
    TableSchedule,
    VPSchedule,
)


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """x_i = sqrt(abar[i]) x + sqrt(1 − abar[i]) z for i = 0 … steps − 1.

    Attributes:
        abar: float64 [steps], decreasing, in (0, 1].
        beta_min: of the continuous VP process, beta(t) = beta_min + t (beta_max − beta_min).
        beta_max: see `beta_min`; index i of the discrete schedule is time t = (i + 1) / steps.
    """

    abar: np.ndarray
    beta_min: float
    beta_max: float

    @property
    def steps(self) -> int:
        """The number of indices, which is also how many of them make one unit of time."""
        return len(self.abar)

    def alpha_bar(self, index: int) -> float:
        """abar[index]; 1 for index −1, the clean image."""
        return float(self.abar[index]) if index >= 0 else 1.0

    def beta(self, t: float) -> float:
        """The continuous noise rate at time t in [0, 1] (Song et al. 2021, eq. 32)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def continuous_alpha_bar(self, t: float) -> float:
        """Abar at time t of the continuous process: exp(−∫₀ᵗ beta) (Song et al. 2021, eq. 33)."""
        return math.exp(-t * self.beta_min - 0.5 * t * t * (self.beta_max - self.beta_min))


@lru_cache(maxsize=8)
def noise_schedule(schedule: Schedule) -> NoiseSchedule:
    """The coefficients of a card's schedule.

    A linear schedule's continuous counterpart has beta(t) = steps · beta_i (Song et al. 2021,
    appendix C), so the usual 1e-4 … 2e-2 over 1000 steps becomes 0.1 … 20.
    """
    match schedule:
        case LinearSchedule(steps=steps, beta_start=start, beta_end=end):
            beta = np.linspace(start, end, steps)
            return NoiseSchedule(np.cumprod(1.0 - beta), steps * start, steps * end)
        case CosineSchedule(steps=steps, offset=offset, beta_max=beta_max):
            t = np.arange(steps + 1) / steps
            level = np.cos((t + offset) / (1.0 + offset) * np.pi / 2) ** 2
            beta = np.minimum(1.0 - level[1:] / level[:-1], beta_max)
            return NoiseSchedule(np.cumprod(1.0 - beta), math.nan, math.nan)
        case TableSchedule(betas=betas):
            return NoiseSchedule(np.cumprod(1.0 - np.array(betas)), math.nan, math.nan)
        case VPSchedule(steps=steps, beta_min=low, beta_max=high):
            t = np.arange(1, steps + 1) / steps
            return NoiseSchedule(np.exp(-t * low - 0.5 * t * t * (high - low)), low, high)


def reverse_indices(
    t_star: int,
    steps: int | None,
    stride: int | None,
    spacing: Spacing = "trailing",
    offset: int = 0,
) -> tuple[int, ...]:
    """Indices that the reverse process visits, in order; its last step leads to the image.

    With neither steps nor a stride: every index. With T = t_star, n = `steps` and k = 0 … n − 1, in
    the order visited:

    - trailing: ceil(T (n − k) / n) − 1: from T − 1, in steps as even as integers allow;
    - leading: (n − 1 − k) floor(T / n) + offset: down to `offset`;
    - linspace: (T − 1)(n − 1 − k) / (n − 1), rounded to nearest (halves to even): from T − 1 down
      to 0; index 0 alone for n = 1.

    With a stride: T − 1, T − 1 − stride, …, whatever the spacing. The names are those of Lin et al.
    (2024, section 3.3).

    Where T is the length of the training schedule, these are the timesteps of diffusers' schedulers
    (`timestep_spacing`, `steps_offset`); its trailing rounds to nearest, which is the same where n
    divides T. Its DDIMScheduler always steps by floor(T / n) indices and not to the next index of
    the grid, which differs for linspace (diffusers issue 12633).

    Where T is shorter, the indices below t* are divided as if they were the whole schedule. The
    last timesteps of a leading or trailing grid over the whole schedule, which diffusers uses for
    image-to-image, are a stride from t* instead: of 50 timesteps of 1000 with offset 1, the last
    five (81, 61, 41, 21, 1) are t* = 82, stride 20.

    Raises:
        ValueError: the first index of a leading grid is beyond T − 1.
    """
    if steps is None:
        return tuple(range(t_star - 1, -1, -(stride or 1)))
    match spacing:
        case "trailing":
            return tuple(-(-t_star * (steps - k) // steps) - 1 for k in range(steps))
        case "leading":
            step = t_star // steps
            first = (steps - 1) * step + offset
            if first >= t_star:
                raise ValueError(f"{steps} leading steps from offset {offset} begin at {first}")
            return tuple(range(first, offset - 1, -step))
        case "linspace":
            grid = np.linspace(0, t_star - 1, steps).round()
            return tuple(int(index) for index in grid[::-1])
