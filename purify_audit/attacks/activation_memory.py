"""Activation checkpointing: how many steps of a chain store activations for the backward pass.

A stored graph saves the second forward pass of its step. The bits of a gradient do not depend on it
(`gradients.exact`), so it is decided by free memory at run time, and is no part of a plan.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from purify_audit.attacks.free_memory import free_memory
from purify_audit.attacks.gradients import Gradient, Head, exact, steps_of
from purify_audit.core.errors import InputError
from purify_audit.core.noise import Noise
from purify_audit.models.protocols import Purifier, Step

MOST = 4 * 2**30
"""Largest budget for stored graphs, bytes."""
_SHARE = 4  # one part of free memory; the rest is for the classifier and fragmentation


@dataclass(frozen=True, slots=True)
class _Known:
    """Number of steps whose graphs are stored, for a purifier and a shape of micro-batch."""

    purifier: Purifier
    shape: torch.Size
    dtype: torch.dtype
    kept: int


@dataclass(slots=True)
class ActivationMemory:
    """Exact gradients that store the graphs of as many last steps as fit into a budget.

    The first gradient for a purifier and a shape stores none. It runs every step twice, and
    measures the size of each step's graph, and whether the step's output has the same bits with
    and without a graph. If one does not (some networks use other kernels without gradients), no
    graphs are stored.

    Attributes:
        budget: bytes of stored graphs; none: a quarter of the free memory at a purifier's first
            gradient, at most `MOST`.
        exhausted: whether memory ran out with stored graphs; then none are stored.
    """

    budget: int | None = None
    exhausted: bool = False
    _known: list[_Known] = field(default_factory=list, repr=False)

    def exact(self, purifier: Purifier, noise: Noise, head: Head, x: Tensor) -> Gradient:
        """Jᵀ g of a purification of x [n, c, h, w] under `noise` (`gradients.exact`).

        Raises:
            OutOfMemoryError: out of memory without stored graphs.
        """
        steps, kept = list(steps_of(purifier, noise)), self.kept(purifier, x)
        if kept is None:
            return self._first_gradient(purifier, steps, head, x)
        try:
            return exact(steps, head, x, kept)
        except torch.OutOfMemoryError:
            if kept == 0:
                raise
            self.exhausted = True
        return exact(steps, head, x)

    def kept(self, purifier: Purifier, x: Tensor) -> int | None:
        """Steps whose graphs are stored for images like x; none before the first gradient."""
        for known in self._known:
            same = known.purifier is purifier or known.purifier == purifier
            if same and (known.shape, known.dtype) == (x.shape, x.dtype):
                return 0 if self.exhausted else known.kept
        return None

    def _first_gradient(
        self, purifier: Purifier, steps: list[Step], head: Head, x: Tensor
    ) -> Gradient:
        weights, kept = _weights(purifier), 0
        measured = [_MeasuredStep(step, weights) for step in steps]
        try:
            result: Gradient | None = exact(measured, head, x)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, InputError):  # torch.func allows no hooks on saved tensors
            result = None
        if result is None:
            result = exact(steps, head, x)
        elif all(step.repeats for step in measured):
            kept = _fitting([step.held for step in measured], self._budget(x.device))
        self._known.append(_Known(purifier, x.shape, x.dtype, kept))
        return result

    def _budget(self, device: torch.device) -> int:
        if self.budget is not None:
            return self.budget
        return min(free_memory(device) // _SHARE, MOST)


def _fitting(sizes: list[int], budget: int) -> int:
    """How many of the last sizes fit into the budget together."""
    count, total = 0, 0
    for size in reversed(sizes):
        total += size
        if total > budget:
            break
        count += 1
    return count


@dataclass(slots=True)
class _MeasuredStep:
    """A step that `exact` runs without a graph, then with one, whose size is measured.

    Attributes:
        step: the step.
        weights: addresses of parameters and buffers, which are not counted.
        out: output of the first run.
        held: bytes held by the second run's graph, including its output.
        repeats: whether both runs had the same bits.
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

        def record(t: Tensor) -> Tensor:
            memory = t.untyped_storage()
            sizes[memory.data_ptr()] = memory.nbytes()
            return t

        with saved_tensors_hooks(record, lambda t: t):
            y = self.step(x)
        record(y)
        self.held = sum(size for place, size in sizes.items() if place not in self.weights)
        self.repeats = _bits(y).equal(_bits(self.out))
        self.out = None
        return y


def _bits(t: Tensor) -> Tensor:
    return t.detach().contiguous().view(torch.uint8)


def _weights(purifier: Purifier) -> frozenset[int]:
    """Addresses of the parameters and buffers of a purifier's networks."""
    values: list[Any] = [purifier, *getattr(purifier, "__dict__", {}).values()]
    if dataclasses.is_dataclass(purifier):
        values += [getattr(purifier, f.name) for f in dataclasses.fields(purifier)]
    modules = [value for value in values if isinstance(value, nn.Module)]
    tensors = (t for module in modules for t in (*module.parameters(), *module.buffers()))
    return frozenset(t.untyped_storage().data_ptr() for t in tensors)
