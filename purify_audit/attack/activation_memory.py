"""How many steps of a chain keep autograd's graph for the way back: as many as memory is free for.

A graph that is kept saves a second forward pass of its step. The bits of a gradient do not depend
on it (`gradients.exact`), so it is decided where an attack runs, and is no part of its plan.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from purify_audit.attack.free_memory import free_memory
from purify_audit.attack.gradients import Gradient, Head, exact, steps_of
from purify_audit.core.errors import InputError
from purify_audit.core.noise import Noise
from purify_audit.models.protocols import Purifier, Step

MOST = 4 * 2**30
"""Bytes of kept graphs, however much is free."""
_SHARE = 4  # of free memory, one part: the rest is the user's, the head's and the allocator's


@dataclass(frozen=True, slots=True)
class _Known:
    """What the first gradient of a purifier has shown, at one shape of micro-batch."""

    purifier: Purifier
    shape: torch.Size
    dtype: torch.dtype
    kept: int


@dataclass(slots=True)
class ActivationMemory:
    """Exact gradients, with the graphs of as many last steps kept as `budget` holds.

    The first gradient of a purifier and a shape keeps none; it runs every step twice anyway, and
    shows what a step's graph holds, and whether a step gives the same bits with a graph as without.
    A purifier of which one step does not (some networks run other kernels where no gradient is
    wanted) keeps none.

    Attributes:
        budget: bytes of kept graphs; none: a quarter of what is free at a purifier's first
            gradient, at most `MOST`.
        exhausted: whether memory ran out with graphs kept; none are any more.
    """

    budget: int | None = None
    exhausted: bool = False
    _known: list[_Known] = field(default_factory=list, repr=False)

    def exact(self, purifier: Purifier, noise: Noise, head: Head, x: Tensor) -> Gradient:
        """Jᵀ g of a purification of x [n, c, h, w] under `noise` (`gradients.exact`).

        Raises:
            OutOfMemoryError: with no graph kept.
        """
        steps, kept = list(steps_of(purifier, noise)), self.kept(purifier, x)
        if kept is None:
            return self._first(purifier, steps, head, x)
        try:
            return exact(steps, head, x, kept)
        except torch.OutOfMemoryError:
            if kept == 0:
                raise
            self.exhausted = True
        return exact(steps, head, x)

    def kept(self, purifier: Purifier, x: Tensor) -> int | None:
        """Steps of a purifier that keep their graph with images like x; none before the first."""
        for known in self._known:
            same = known.purifier is purifier or known.purifier == purifier
            if same and (known.shape, known.dtype) == (x.shape, x.dtype):
                return 0 if self.exhausted else known.kept
        return None

    def _first(self, purifier: Purifier, steps: list[Step], head: Head, x: Tensor) -> Gradient:
        weights, kept = _weights(purifier), 0
        watched = [_Watched(step, weights) for step in steps]
        try:
            found: Gradient | None = exact(watched, head, x)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, InputError):  # torch.func lets nobody watch what is saved
            found = None
        if found is None:
            found = exact(steps, head, x)
        elif all(step.repeats for step in watched):
            kept = _fitting([step.held for step in watched], self._budget(x.device))
        self._known.append(_Known(purifier, x.shape, x.dtype, kept))
        return found

    def _budget(self, device: torch.device) -> int:
        if self.budget is not None:
            return self.budget
        return min(free_memory(device) // _SHARE, MOST)


def _fitting(sizes: list[int], budget: int) -> int:
    """How many of the last sizes add up to no more than the budget."""
    count, total = 0, 0
    for size in reversed(sizes):
        total += size
        if total > budget:
            break
        count += 1
    return count


@dataclass(slots=True)
class _Watched:
    """A step that `exact` runs without a graph, and then once more with one.

    Attributes:
        step: what is watched.
        weights: addresses of memory that is there in any case.
        out: of the first run.
        held: bytes that the second run's graph holds, its result among them.
        repeats: whether the second run gave the bits of the first.
    """

    step: Step
    weights: frozenset[int]
    out: Tensor | None = None
    held: int = 0
    repeats: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """The step."""
        if self.out is None:
            self.out = self.step(x)
            return self.out
        sizes: dict[int, int] = {}

        def see(t: Tensor) -> Tensor:
            memory = t.untyped_storage()
            sizes[memory.data_ptr()] = memory.nbytes()
            return t

        with saved_tensors_hooks(see, lambda t: t):
            y = self.step(x)
        see(y)
        self.held = sum(size for place, size in sizes.items() if place not in self.weights)
        self.repeats = _bits(y).equal(_bits(self.out))
        self.out = None
        return y


def _bits(t: Tensor) -> Tensor:
    return t.detach().contiguous().view(torch.uint8)


def _weights(purifier: Purifier) -> frozenset[int]:
    """Where a purifier's networks have their parameters and buffers."""
    values: list[Any] = [purifier, *getattr(purifier, "__dict__", {}).values()]
    if dataclasses.is_dataclass(purifier):
        values += [getattr(purifier, f.name) for f in dataclasses.fields(purifier)]
    modules = [value for value in values if isinstance(value, nn.Module)]
    tensors = (t for module in modules for t in (*module.parameters(), *module.buffers()))
    return frozenset(t.untyped_storage().data_ptr() for t in tensors)
