"""Square Attack: gradient-free random search with squares.

Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient black-box
adversarial attack via random search", ECCV 2020. Random numbers are addressed by seed, image
id, restart and query, and no sum depends on the order of its terms, so an image's proposals are the
same in every batch.
"""

import math
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from purify_audit.attacks.ball import Ball
from purify_audit.attacks.pgd import AttackOutput, BestIterate, LossOracle
from purify_audit.core.noise import Noise, Stream
from purify_audit.spec.norms import Norm

_P_INIT = 0.8  # share of the pixels in the first window
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries, for every p_init
_SMALLEST = {"linf": 1, "l2": 3, "l1": 2}  # window side
_TILES = 5  # of the first l2 image, in each direction

# The step of a random number is _PURPOSES · query + purpose. Query 0 is the starting image.
_PURPOSES = 8
_ROWS, _COLUMNS, _SIGNS, _TURNS = range(4)


def square(
    objective: LossOracle,
    ball: Ball,
    seed: int,
    ids: tuple[int, ...],
    queries: int,
    restart: int = 0,
) -> AttackOutput:
    """Random search from stripes (l-inf) or bumps (l1, l2); keeps what `BestIterate` prefers.

    For l1 the search is that for l2 with l1 lengths (like l1-Square of Croce and Hein, "Mind the
    box", ICML 2021); what clipping to [0, 1] leaves unused goes into the next window.

    The paper's search ends with the first success; this one uses all queries for every image.

    Args:
        objective: the objective to maximise; query q is evaluated under the draws of step q.
        ball: the constraint.
        seed: of the proposals, in [0, 2**64).
        ids: image ids [n], which address the proposals.
        queries: evaluations of every image, including the start; in [1, 2**21).
        restart: addresses the proposals; in [0, 2**32).

    Returns:
        The best images; `last` equals `x`.
    """
    noise = Noise(seed, ids, (restart,) * len(ids), Stream.ATTACK, ball.x.device)
    best = BestIterate(ball.x)
    for query in range(queries):
        if query == 0:
            x = _stripes(ball, noise) if ball.norm == "linf" else _tiles(ball, noise)
        else:
            side = _side(ball, query, queries)
            propose = _recolour if ball.norm == "linf" else _move
            x = propose(best.x, ball, noise, query, side)
        best.update(x, objective.evaluate(x, query))
    return replace(best.result(), last=best.x)


def _side(ball: Ball, query: int, queries: int) -> int:
    """Side of the windows of a query, pixels: the integer nearest to sqrt(p · pixels).

    At least 1 (l1: 2, l2: 3), and, unlike in the paper, less than the image's shorter side: a
    window of the whole image could not be moved.
    """
    height, width = ball.x.shape[2:]
    halvings = sum(10_000 * query >= mark * queries for mark in _HALVINGS)
    nearest = math.floor(math.sqrt(_P_INIT * 0.5**halvings * height * width) + 0.5)
    return max(1, min(max(nearest, _SMALLEST[ball.norm]), min(height, width) - 1))


def _stripes(ball: Ball, noise: Noise) -> Tensor:
    """Vertical stripes one pixel wide, ±eps in each channel: the first l-inf image."""
    _, channels, _, width = ball.x.shape
    return ball.project(ball.x + ball.eps * noise.signs(_SIGNS, (channels, 1, width)))


def _recolour(x: Tensor, ball: Ball, noise: Noise, query: int, side: int) -> Tensor:
    """Images with one window of δ = ±eps, one sign in each channel (algorithm 2).

    The paper adds ±2 eps and projects, which is the same.
    """
    down, across = _windows(x, noise, query, side)
    signs = noise.signs(_PURPOSES * query + _SIGNS, (x.shape[1], 1, 1))
    inside = _inside(down, across, side)[:, :1]
    return torch.where(inside, ball.project(ball.x + ball.eps * signs), x)


def _tiles(ball: Ball, noise: Noise) -> Tensor:
    """A grid of 5×5 square bumps of equal length in the image's middle, of norm eps in all.

    Rotated at random, with a random sign in each channel; fewer than 5 rows or columns where an
    image is smaller.
    """
    _, channels, *sides = ball.x.shape
    side = max(1, min(sides) // _TILES)
    rows, columns = (min(_TILES, length // side) for length in sides)
    turns = noise.integers(_TURNS, (rows, columns), 2)
    signs = noise.signs(_SIGNS, (channels, rows, columns))
    bumps = _bumps(side).to(turns.device)[turns][:, None] * signs[..., None, None]
    grid = bumps.transpose(3, 4).reshape(len(turns), channels, rows * side, columns * side)
    spare = (sides[1] - columns * side, sides[0] - rows * side)
    left, top = (pixels // 2 for pixels in spare)
    delta = F.pad(grid, (left, spare[0] - left, top, spare[1] - top))
    return _add(ball, delta / _length(_energy(delta, (1, 2, 3), ball.norm), ball.norm))


def _move(x: Tensor, ball: Ball, noise: Noise, query: int, side: int) -> Tensor:
    """Images with perturbation moved from a second window to a first (algorithm 3).

    In each channel the first window becomes the direction of its present content plus ± a bump,
    both of length 1, and gets the length of what was in both windows and a share of the length
    that is not in use; the second becomes 0 outside the first. So the norm becomes eps, before
    pixels are clipped to [0, 1].
    """
    step, channels, norm = _PURPOSES * query, x.shape[1], ball.norm
    down, across = _windows(x, noise, query, side)
    inside = _inside(down, across, side)
    first, second = inside[:, :1], inside[:, 1:]
    turns = noise.integers(step + _TURNS, (1,), 2)[:, :, None]
    bumps = _bumps(side).to(x.device)
    row, column = (offset[:, 0].clamp(0, side - 1) for offset in (down, across))
    bump = bumps[turns, row[:, :, None], column[:, None, :]][:, None] * first
    bump = bump * noise.signs(step + _SIGNS, (channels, 1, 1))
    bump = _unit(bump, norm) if norm == "l1" else bump

    delta = (x.double() - ball.x.double()) / ball.eps
    unused = 1.0 - _energy(delta, (1, 2, 3), norm)  # negative by rounding: then the norm shrinks
    held = _energy(delta * (first | second), (2, 3), norm) + unused / channels
    shape = _unit(delta * first, norm) + bump
    # Where the two cancel (possible in a window of one pixel), the bump alone gives a direction.
    shape = _unit(torch.where(_energy(shape, (2, 3), norm) > 1e-9, shape, bump), norm)
    moved = torch.where(first, _length(held.clamp(min=0.0), norm) * shape, delta * ~second)
    return _add(ball, moved)


def _windows(x: Tensor, noise: Noise, query: int, side: int) -> tuple[Tensor, Tensor]:
    """Two windows for each image, uniform over all places in it.

    Returns:
        Offsets of the image's rows [n, 2, h] and columns [n, 2, w] from those where a window
        begins: 0 … side − 1 is inside.
    """
    offsets = []
    for purpose, length in zip((_ROWS, _COLUMNS), x.shape[2:], strict=True):
        corner = noise.integers(_PURPOSES * query + purpose, (2, 1), length - side + 1)
        offsets.append(torch.arange(length, device=x.device) - corner)
    return offsets[0], offsets[1]


def _inside(down: Tensor, across: Tensor, side: int) -> Tensor:
    """Which pixels are in the windows, bool [n, 2, h, w], from their offsets."""
    rows, columns = ((offset >= 0) & (offset < side) for offset in (down, across))
    return rows[:, :, :, None] & columns[:, :, None, :]


@cache
def _bumps(side: int) -> Tensor:
    """Two bumps side by side, one up and one down, of length 1 together: η*.

    Returns:
        float64 [2, side, side]: the pair and its transpose. Cached, so not to be modified.
    """
    left = side // 2
    pair = torch.cat((_bump(side, left), -_bump(side, side - left)), 1)
    pair = pair / pair.square().sum().sqrt()
    return torch.stack((pair, pair.T))


def _bump(height: int, width: int) -> Tensor:
    """η of the l2 attack, float64 [height, width], height ≥ width: square rings that fall outwards.

    At Chebyshev distance d from the middle it is the sum of 1 / j² over j = d + 1 … n + 1, where
    n = floor(height / 2).
    """
    n = height // 2
    terms = [1.0 / j**2 for j in range(1, n + 2)]
    rings = torch.tensor([math.fsum(terms[d:]) for d in range(n + 1)], dtype=torch.float64)
    row, column = ((torch.arange(m) - m // 2).abs() for m in (height, width))
    return rings[torch.maximum(row[:, None], column[None, :])]


def _energy(delta: Tensor, dims: tuple[int, ...], norm: Norm = "l2") -> Tensor:
    """Sum of squares (l1: of absolute values) over dims, which are kept, to 2**-50 (2**-40) a term.

    In integers: a sum of floats depends on the order of its terms, and that on the batch.
    """
    wide, units = delta.double(), 2.0**40 if norm == "l1" else 2.0**50
    terms = wide.abs() if norm == "l1" else wide.square()
    return (terms * units).round().to(torch.int64).sum(dims, keepdim=True).double() / units


def _length(energy: Tensor, norm: Norm) -> Tensor:
    """The norm that belongs to an energy."""
    return energy if norm == "l1" else energy.sqrt()


def _unit(delta: Tensor, norm: Norm) -> Tensor:
    """Each channel over its length; 0 stays 0."""
    return delta / _length(_energy(delta, (2, 3), norm), norm).clamp(min=1e-7)


def _add(ball: Ball, delta: Tensor) -> Tensor:
    """The clean images plus eps · delta in float64, rounded once, in [0, 1]."""
    z = ball.x.double() + ball.eps * delta
    if ball.norm == "l1":  # where rounding many small differences would leave the ball
        return ball.project(z)
    return z.to(ball.x.dtype).clamp(0.0, 1.0)
