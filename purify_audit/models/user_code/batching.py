"""The rows of a batch that user code with its own randomness may purify in one call.

Alignment needs every row to have its own numbers, whatever is beside it. Code that draws
`randn_like(x)` for a batch does; code that draws one random time for the whole batch does not, and
gets rows of one address at a time; code that draws row after row gets one row at a time. Which of
the three it is shows when a few rows are purified in two batch sizes and with other shared numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from purify_audit.core.noise import Noise
from purify_audit.models.user_code.capture import Capture
from purify_audit.models.user_code.draws import UNSTUDIED, Draw, DrawSite, Sharing

Together = Literal["batch", "address", "row"]
"""Rows purified in one call: any; those of one image and draw; one."""

Run = Callable[[Tensor, Capture], Tensor]
"""Images to purified images, inside a capture."""

_ROUNDING = 1e-5
_SIZES = (2, 3)  # of the batches that are compared


@dataclass(frozen=True, slots=True)
class Handling:
    """How code must be called for its draws to be aligned.

    Attributes:
        together: the rows of one call.
        sharing: what is known of draws that are not indexed by row.
        randomised: whether its output depends on what it draws.
    """

    together: Together
    sharing: Sharing
    randomised: bool

    def groups(self, noise: Noise) -> list[list[int]]:
        """Rows that are purified together, by place."""
        if self.together == "batch":
            return [list(range(len(noise)))]
        if self.together == "row":
            return [[n] for n in range(len(noise))]
        found: dict[tuple[int, int], list[int]] = {}
        for n, address in enumerate(zip(noise.images, noise.draws, strict=True)):
            found.setdefault(address, []).append(n)
        return list(found.values())

    def stricter(self) -> "Handling":
        """For a draw that was not foreseen: fewer rows together."""
        fewer: Together = "address" if self.together == "batch" else "row"
        return replace(self, together=fewer, sharing=replace(self.sharing, harmless=False))


ONE_ROW = Handling("row", Sharing(), True)
"""What is always right."""


def study(run: Run, x: Tensor) -> Handling:
    """Find out by purifying two and three of some images, with other shared numbers in between.

    Args:
        run: purifies.
        x: images [n, c, h, w]; few are used.

    Raises:
        UnalignedRandomnessError: the code draws what cannot be aligned.
        UserCodeError: it does not run, whatever the number of rows.
    """
    (y, two), (_, three) = (_try(run, x, size, UNSTUDIED) for size in _SIZES)
    other_y, other = _try(run, x, _SIZES[0], UNSTUDIED, salt=1)
    constant = frozenset(d.state for d in two.draws) & frozenset(d.state for d in other.draws)
    shared = _shared(two.draws, three.draws)
    known = Sharing(shared or frozenset(), constant, harmless=True)
    studying = replace(known, studied=False)
    if studying != UNSTUDIED:  # some draws are answered otherwise, now that they are known
        y, _ = _try(run, x, _SIZES[0], studying)
        other_y, _ = _try(run, x, _SIZES[0], studying, salt=1)
    matters = randomised = not _same(y, other_y)
    if two.draws and not matters:
        randomised = not _same(y, _try(run, x, _SIZES[0], studying, seed=1)[0])
    if shared is None or (matters and two.states != three.states):
        return Handling("row", replace(known, harmless=False), randomised)
    together: Together = "address" if matters else "batch"
    return Handling(together, replace(known, harmless=not matters), randomised)


def _try(
    run: Run, x: Tensor, size: int, sharing: Sharing, salt: int = 0, seed: int = 0
) -> tuple[Tensor, Capture]:
    rows = x[torch.arange(size, device=x.device) % len(x)]
    ids = tuple(range(size))
    capture = Capture(Noise(seed, ids, ids, device=x.device), sharing, salt)
    return run(rows, capture), capture


def _same(a: Tensor, b: Tensor) -> bool:
    """But for what kernels without a fixed order of summation do."""
    if a.shape != b.shape:
        return False
    a, b = (t.double().nan_to_num(0.0, 0.0, 0.0) for t in (a, b))
    return torch.allclose(a, b, rtol=0.0, atol=_ROUNDING * max(1.0, float(a.abs().max())))


def _shared(two: list[Draw], three: list[Draw]) -> frozenset[DrawSite] | None:
    """Kinds of draws that have the same shape for two and for three images.

    None where the draws of the two batches do not match, one by one.
    """
    if [d.site for d in two] != [d.site for d in three]:
        return None
    shared, rows = set[DrawSite](), set[DrawSite]()
    for small, large in zip(two, three, strict=True):
        if small.shape == large.shape:
            shared.add(small.site)
        elif small.has_rows and (small.shape[0], large.shape[0]) == _SIZES:
            rows.add(small.site)
        else:
            return None
    return None if shared & rows else frozenset(shared)
