"""Optimal allocation of network evaluations to images, draws and directions. No torch.

The mean rate of n images, each measured under K draws crossed with Q pairs of directions v, −v, has
variance (σ²(image) + σ²(draw)/K + σ²(pair)/Q + σ²(draw × pair)/(KQ)) / n: the random-effects model
of Searle, Casella and McCulloch (Variance Components, 1992, chapter 4). Effects odd in the
direction cancel within a pair.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from purify_audit.spec.tuning import Components

DRAWS = (2, 3, 4, 6, 8, 12, 16)
"""Candidate numbers of draws; at least two, which separate randomness from perturbation."""
PAIRS = (1, 2, 4, 8, 16, 32)
"""Candidate numbers of pairs of directions."""

_NEAR = (
    1.05  # with no design within the tolerance: the widest interval accepted, over the narrowest
)


@dataclass(frozen=True, slots=True)
class Design:
    """An allocation, with its expected precision and cost.

    Attributes:
        images: number of images.
        draws: draws per image.
        directions: directions per image, in pairs.
        half_width: expected half-width of the interval.
        purifications: of all images together.
    """

    images: int
    draws: int
    directions: int
    half_width: float
    purifications: int


def components(rates: np.ndarray) -> Components:
    """Variance components of rates, by analysis of variance.

    Args:
        rates: [images, draws, pairs, 2], at least two images and two pairs. With one draw, its
            components are zero.

    Returns:
        Unbiased estimates, negative ones set to zero.
    """
    n, k, q, _ = rates.shape
    even, odd = rates.mean(3), (rates[..., 0] - rates[..., 1]) / 2
    mean = even.mean((1, 2), keepdims=True)
    draw = both = 0.0
    if k > 1:
        rest = even - even.mean(2, keepdims=True) - even.mean(1, keepdims=True) + mean
        both = float(np.square(rest).sum() / (n * (k - 1) * (q - 1)))
        draw = float(even.mean(2).var(1, ddof=1).mean()) - both / q
    pair = float(even.mean(1).var(1, ddof=1).mean()) - both / k
    image = float(mean.var(ddof=1)) - (draw / k + pair / q + both / (k * q))
    return Components(
        image=max(image, 0.0),
        draw=max(draw, 0.0),
        pair=max(pair, 0.0),
        both=both,
        odd=float(np.square(odd).mean()),
    )


def largest(parts: Sequence[Components]) -> Components:
    """The largest of each component."""
    names = Components.model_fields
    return Components(**{name: max(getattr(part, name) for part in parts) for name in names})


def variance(parts: Components, draws: int, pairs: int) -> float:
    """Variance of an image's mean rate over draws crossed with pairs."""
    crossed = parts.both / (draws * pairs)
    return parts.image + parts.draw / draws + parts.pair / pairs + crossed


def half_width(variance: float, images: int, level: float) -> float:
    """Half-width of the t interval of a mean over images whose values have this variance."""
    return float(stdtrit(images - 1, 0.5 + level / 2)) * math.sqrt(variance / images)


def images_needed(variance: float, tolerance: float, level: float, most: int) -> int | None:
    """The smallest number of images (at least 2) whose half-width is within a tolerance.

    Returns:
        None where `most` images are too few.
    """
    low, high = 2, most  # the half-width falls with n
    if most < 2 or half_width(variance, most, level) > tolerance:
        return None
    while low < high:
        middle = (low + high) // 2
        if half_width(variance, middle, level) <= tolerance:
            high = middle
        else:
            low = middle + 1
    return low


def cheapest(
    parts: Components,
    cost: Callable[[int, int], int],
    *,
    tolerance: float,
    level: float,
    most: int,
    randomised: bool = True,
) -> Design:
    """The design that reaches a tolerance with the fewest purifications.

    Args:
        parts: variance components.
        cost: draws and directions -> purifications of one image.
        tolerance: half-width of the interval.
        level: of the interval.
        most: images available.
        randomised: whether draws differ.

    Returns:
        Where no design reaches the tolerance, the cheapest design on all images whose interval is
        at most 5% wider than the narrowest.
    """
    good, rest = list[Design](), list[Design]()
    for draws in DRAWS if randomised else (1,):
        for pairs in PAIRS:
            spread = variance(parts, draws, pairs)
            needed = images_needed(spread, tolerance, level, most)
            n = most if needed is None else needed
            half = half_width(spread, max(n, 2), level)
            design = Design(n, draws, 2 * pairs, half, n * cost(draws, 2 * pairs))
            (rest if needed is None else good).append(design)
    if not good:
        limit = _NEAR * min(design.half_width for design in rest)
        good = [design for design in rest if design.half_width <= limit]
    return min(good, key=lambda design: design.purifications)
