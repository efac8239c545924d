"""How to spend network evaluations on images, draws and directions. No torch.

The mean rate of n images, each measured under K draws crossed with Q pairs of directions v, −v, has
variance (σ²(image) + σ²(draw)/K + σ²(pair)/Q + σ²(draw × pair)/(KQ)) / n: the random-effects layout
of Searle, Casella and McCulloch (Variance Components, 1992, chapter 4), where what is odd in the
direction cancels within a pair.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from purify_audit.spec.tuning import Components

DRAWS = (2, 3, 4, 6, 8, 12, 16)
"""Numbers of draws to choose from; two at least, which tell randomness from perturbation."""
PAIRS = (1, 2, 4, 8, 16, 32)
"""Numbers of pairs of directions to choose from."""

_NEAR = 1.05  # where no design is good enough: how near to the best one a cheaper one must come


@dataclass(frozen=True, slots=True)
class Design:
    """How many images, and how much for each.

    Attributes:
        images: how many.
        draws: of each image.
        directions: of each image, in pairs.
        half_width: of the interval that they give.
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
        rates: [images, draws, pairs, 2], at least two images and two pairs. With one draw, what
            belongs to draws is zero.

    Returns:
        Unbiased estimates; negative ones become zero.
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
    """Of the t interval of the mean of so many images whose values have this variance."""
    return float(stdtrit(images - 1, 0.5 + level / 2)) * math.sqrt(variance / images)


def images_needed(variance: float, tolerance: float, level: float, most: int) -> int | None:
    """The smallest number of images, two or more, whose interval is as narrow as a tolerance.

    Returns:
        None where `most` are too few.
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
    goal: tuple[float, float],
    most: int,
    randomised: bool = True,
) -> Design:
    """The design that reaches a tolerance with the fewest purifications.

    Args:
        parts: variance components.
        cost: draws and directions -> purifications of one image.
        goal: half-width and level of the interval.
        most: images that there are.
        randomised: whether draws differ.

    Returns:
        Where no design reaches the tolerance, the cheapest of all images whose interval is nearly
        as narrow as the narrowest.
    """
    tolerance, level = goal
    good, rest = list[Design](), list[Design]()
    for draws in DRAWS if randomised else (1,):
        for pairs in PAIRS:
            spread = variance(parts, draws, pairs)
            needed = images_needed(spread, tolerance, level, most)
            n = most if needed is None else needed
            half = half_width(spread, max(n, 2), level)
            made = Design(n, draws, 2 * pairs, half, n * cost(draws, 2 * pairs))
            (rest if needed is None else good).append(made)
    if not good:
        limit = _NEAR * min(design.half_width for design in rest)
        good = [design for design in rest if design.half_width <= limit]
    return min(good, key=lambda design: design.purifications)
