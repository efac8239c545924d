"""A graph that runs on any number of rows, in portions that it takes.

Graphs are exported for one batch size, or for a range of them. What fills up a portion is a copy of
its first row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from purify_audit.models.exported.signature import Rows, TensorSpec

Network = Callable[..., Tensor]
"""Tensors in the order of a signature to one tensor."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that runs.

    Attributes:
        network: computes it, on one device.
        inputs: what it takes, in order.
        image: the name of the input that takes images.
        seed: the name of the input that takes one seed for all rows of a call, if there is one.
        differentiable: whether autograd sees through it; then it computes in the precision that it
            is given.
    """

    network: Network
    inputs: tuple[TensorSpec, ...]
    image: str
    seed: str | None
    differentiable: bool

    def __call__(self, given: dict[str, Tensor]) -> Tensor:
        """The output for any number of rows.

        Args:
            given: inputs by name, [n, …] each, the seed too: then rows are computed one by one.

        Returns:
            [n, …]; an output that does not have a row for each of the input's, as it is.
        """
        x, parts = given[self.image], []
        for portion in self.portions(len(x)):
            index = torch.tensor(portion.filled, device=x.device)
            filled = {name: tensor[index] for name, tensor in given.items()}
            if self.seed is not None:
                filled[self.seed] = filled[self.seed][0]
            part = self.network(*(filled[spec.name] for spec in self.inputs))
            if part.shape[:1] != index.shape:
                return part
            parts.append(part[: portion.count])
        return torch.cat(parts)

    @property
    def rows(self) -> Rows:
        """How many rows go into one call."""
        taken = [spec.rows for spec in self.inputs if spec.name != self.seed]
        most = [r.most for r in taken if r.most is not None] + [1] * (self.seed is not None)
        return Rows(max(r.least for r in taken), min(most, default=None))

    def portions(self, n: int) -> Iterator["Portion"]:
        """Rows of each call for n rows.

        All of one length: kernels are chosen by it, and a row's last bits by them.
        """
        size = min(n, self.rows.most or n)
        fill = max(size, self.rows.least)
        for first in range(0, n, size):
            asked = list(range(first, min(first + size, n)))
            yield Portion(asked + (fill - len(asked)) * [first], len(asked))


@dataclass(frozen=True, slots=True)
class Portion:
    """Rows of one call, by place; those behind the first `count` are copies of the first."""

    filled: list[int]
    count: int
