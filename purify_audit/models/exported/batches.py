"""An exported graph, called with any number of rows in batches of a size that it accepts.

Graphs are exported for one batch size, or for a range of sizes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from purify_audit.models.exported.signature import Rows, TensorSpec
from purify_audit.models.microbatches import MicroBatch, microbatches

Network = Callable[..., Tensor]
"""Maps tensors, in the order of a signature, to one tensor."""


@dataclass(frozen=True, slots=True)
class Graph:
    """An exported graph.

    Attributes:
        network: computes it, on one device.
        inputs: its inputs, in order.
        image: name of the input for images.
        seed: name of the input for one seed for all rows of a call, if there is one.
        differentiable: whether autograd can differentiate it; then it computes in the precision of
            its input.
    """

    network: Network
    inputs: tuple[TensorSpec, ...]
    image: str
    seed: str | None
    differentiable: bool

    def __call__(self, given: dict[str, Tensor]) -> Tensor:
        """The output for any number of rows.

        Args:
            given: inputs by name, [n, …] each; with a seed, rows are computed one by one.

        Returns:
            [n, …]; an output without one row per input row, unchanged.
        """
        x, parts = given[self.image], []
        for batch in self.microbatches(len(x)):
            index = torch.tensor(batch.rows, device=x.device)
            filled = {name: tensor[index] for name, tensor in given.items()}
            if self.seed is not None:
                filled[self.seed] = filled[self.seed][0]
            part = self.network(*(filled[spec.name] for spec in self.inputs))
            if part.shape[:1] != index.shape:
                return part
            parts.append(part[: batch.count])
        return torch.cat(parts)

    @property
    def rows(self) -> Rows:
        """Batch sizes that one call accepts."""
        taken = [spec.rows for spec in self.inputs if spec.name != self.seed]
        most = [r.most for r in taken if r.most is not None] + [1] * (self.seed is not None)
        return Rows(max(r.least for r in taken), min(most, default=None))

    def microbatches(self, n: int) -> Iterator[MicroBatch]:
        """Rows of each call for n rows; all calls have one size."""
        size = min(n, self.rows.most or n)
        return microbatches(n, size, max(size, self.rows.least))
