"""The l1 ball inside the pixel range: projection, sparse ascent, random points.

Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML
2021. Sums are of integers, in units of 2**-40: they do not depend on the order of their terms, so
an image's result is the same in every batch.
"""

import math

import torch
from torch import Tensor

STEP_SHARE = 0.01
"""Share of an image's pixel values that a step of length eps of PGD moves, at least.

As Tramèr and Boneh ("Adversarial training and robustness for multiple perturbations", NeurIPS
2019); shorter steps move fewer, for a run that always moves as many ends in a perturbation that is
spread over them.
"""

_UNITS = 2.0**40
_SLACK = 1e-9  # a point this far beyond the ball is in it: no second rounding of what is projected


def project(x: Tensor, z: Tensor, eps: float) -> Tensor:
    """The nearest point (in l2) of the ball of radius eps around x and of [0, 1] at once.

    Each difference from x loses the same length λ, and is then cut at the end of the pixel range
    (proposition 2.1 of the paper); λ solves a piecewise linear equation, which is solved exactly.
    The result is rounded towards x, so rounding does not leave the ball.

    Args:
        x: clean images in [0, 1], [n, c, h, w].
        z: images [n, c, h, w], not necessarily in [0, 1].
        eps: radius.

    Returns:
        Images [n, c, h, w] with the type of x.
    """
    clean = x.double().flatten(1)
    delta = z.double().flatten(1) - clean
    size, room = delta.abs(), torch.where(delta > 0, 1.0 - clean, clean)
    kept = _reduced(size, room, _reduction(size, room, eps)[:, None])
    exact = clean + torch.copysign(kept, delta)
    rounded = exact.reshape(x.shape).to(x.dtype)
    too_far = (rounded.double().flatten(1) - clean).abs() > kept
    inward = torch.nextafter(rounded, x)
    return torch.where(too_far.reshape(x.shape), inward, rounded).clamp(0.0, 1.0)


def step(z: Tensor, gradient: Tensor, size: Tensor, entries: Tensor) -> Tensor:
    """The step that raises a linear loss most, of l1 length `size`, with z + step in [0, 1].

    None of its entries is above size / entries: so it moves at least so many pixel values, unless
    fewer have a gradient. Pixel values at the end of their range in the direction of the gradient
    are not moved, and what others may not move goes to those with the next largest gradients. With
    `entries` 1 this is the optimum of proposition 2.2 of the paper.

    Args:
        z: images in [0, 1], [n, c, h, w].
        gradient: of the loss [n, c, h, w]; NaN and infinity count as 0.
        size: l1 length of the step of each image [n].
        entries: number of pixel values [n], at least 1.

    Returns:
        float64 [n, c, h, w].
    """
    slope = gradient.nan_to_num(0.0, 0.0, 0.0).flatten(1)
    start = z.double().flatten(1)
    room = torch.where(slope > 0, 1.0 - start, start) * (slope != 0)
    budget = size.double()[:, None].clamp(max=float(start.shape[1]))
    most = torch.minimum(room, budget / entries.double()[:, None])
    order = slope.abs().argsort(dim=1, descending=True, stable=True)
    units = _whole(most.gather(1, order))
    left = _whole(budget) - (units.cumsum(1) - units)
    taken = torch.minimum(units, left.clamp(min=0)).double() / _UNITS
    moved = torch.zeros_like(start).scatter(1, order, taken)
    return torch.copysign(moved, slope.double()).reshape(z.shape)


def direction(uniform: Tensor) -> Tensor:
    """A direction that is uniform on the l1 sphere, from numbers in (0, 1) [n, c, h, w].

    Exponential variables over their sum, with random signs.
    """
    spread = 2.0 * uniform.double() - 1.0
    lengths = -spread.abs().clamp(min=1e-30).log()
    total = _whole(lengths).sum((1, 2, 3), keepdim=True).double() / _UNITS
    return torch.copysign(lengths, spread) / total.clamp(min=1e-12)


def step_entries(pixels: int, share: Tensor) -> Tensor:
    """How many pixel values a step of PGD moves at least, int64 [n].

    Args:
        pixels: of an image, times its channels.
        share: length of the step over the radius [n].
    """
    return (math.ceil(STEP_SHARE * pixels) * share).ceil().to(torch.int64).clamp(min=1)


def _whole(lengths: Tensor) -> Tensor:
    """Lengths in whole units, int64."""
    return (lengths * _UNITS).round().to(torch.int64)


def _reduced(size: Tensor, room: Tensor, by: Tensor) -> Tensor:
    """Lengths [n, d] that are left after a reduction [n, 1] and the end of the pixel range."""
    return torch.minimum((size - by).clamp(min=0.0), room)


def _reduction(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """The smallest λ ≥ 0 with sum min(room, max(size − λ, 0)) ≤ eps, [n].

    The sum falls linearly between the points where a term starts or stops to fall. Bisection among
    these points, sorted, finds the two between which it is eps.
    """

    def total(by: Tensor) -> Tensor:
        return _whole(_reduced(size, room, by)).sum(1, keepdim=True).double() / _UNITS

    zero = torch.zeros_like(size[:, :1])
    points = torch.cat((zero, size, (size - room).clamp(min=0.0)), 1).sort(1).values
    low = torch.zeros_like(zero, dtype=torch.int64)
    high = torch.full_like(low, points.shape[1] - 1)
    for _ in range(points.shape[1].bit_length()):
        middle = (low + high) // 2
        beyond = total(points.gather(1, middle)) > eps
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    by = points.gather(1, low)
    falling = ((size > by) & (size - room <= by)).sum(1, keepdim=True).clamp(min=1)
    exact = by + (total(by) - eps) / falling
    exact = torch.minimum(exact, points.gather(1, high))
    return torch.where(total(zero) > eps + _SLACK, exact, zero)[:, 0]
