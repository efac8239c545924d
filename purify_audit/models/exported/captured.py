"""Exported graphs with random operators, whose randomness is captured as in user code."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from purify_audit.core.noise import Noise
from purify_audit.models.exported.batches import Graph
from purify_audit.models.microbatches import MicroBatch
from purify_audit.models.user_code.batching import ONE_ROW
from purify_audit.models.user_code.purifier import Learnt, UserPurifier
from purify_audit.spec.architectures import CodeArgs
from purify_audit.spec.card import CodeCard, GraphCard

_STUDIED = (2, 3)  # batch sizes by which `batching.study` learns which draws are per row


@dataclass(frozen=True)
class CapturedGraph(UserPurifier):
    """A graph whose randomness is captured like that of user code, run batch by batch.

    Attributes:
        graph: what `code` calls. One call of it is one purification: random numbers of another call
            have other addresses.
    """

    graph: Graph = field(kw_only=True)

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Purify images float32 [n, c, h, w] in [0, 1] under their draws; see `UserPurifier`."""
        parts, n = list[Tensor](), len(x)
        batches: Iterable[MicroBatch] = self.graph.microbatches(n)
        if not _has_two_batch_sizes(self.graph):  # row by row, padded by the graph itself
            batches = [MicroBatch(list(range(n)), n)]
        for batch in batches:
            images, draws = ([ids[k] for k in batch.rows] for ids in (noise.images, noise.draws))
            some = replace(noise, images=tuple(images), draws=tuple(draws))
            part = super().__call__(x[batch.rows], some)
            if part.shape[:1] != (len(batch.rows),):
                return part
            parts.append(part[: batch.count])
        return torch.cat(parts)


def captured(card: GraphCard, graph: Graph, source: str) -> CapturedGraph:
    """A graph as a purifier whose randomness is captured.

    Args:
        card: its settings.
        graph: images in the card's data range to images in it.
        source: the file, for messages.
    """
    code = CodeCard(
        name=card.name,
        image=card.image,
        provenance=card.provenance,
        network=CodeArgs(factory=source[-500:]),
        randomised=True,
        evaluations=card.evaluations,
        clamp=card.clamp,
    )
    learnt = Learnt() if _has_two_batch_sizes(graph) else Learnt(handling=ONE_ROW)
    return CapturedGraph(
        code, lambda x: graph({graph.image: x}), card.data_range, learnt, graph=graph
    )


def _has_two_batch_sizes(graph: Graph) -> bool:
    """Whether per-row draws can be distinguished from others by calls of two batch sizes.

    With one fixed batch size, any axis of that length could be the rows.
    """
    rows = graph.rows
    return rows.least <= _STUDIED[0] and (rows.most is None or rows.most >= _STUDIED[1])
