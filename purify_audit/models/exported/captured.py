"""Exported graphs that draw random numbers by themselves, which are captured as in other code."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from purify_audit.core.noise import Noise
from purify_audit.models.exported.batches import Graph, Portion
from purify_audit.models.user_code.batching import ONE_ROW
from purify_audit.models.user_code.purifier import Learnt, UserPurifier
from purify_audit.spec.architectures import CodeArgs
from purify_audit.spec.card import CodeCard, GraphCard

_STUDIED = (2, 3)  # rows with which `rows.study` learns which draws count rows


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
        portions: Iterable[Portion] = self.graph.portions(n)
        if not _tells_rows(self.graph):  # row by row, which the graph itself fills up
            portions = [Portion(list(range(n)), n)]
        for rows in portions:
            images, draws = ([ids[k] for k in rows.filled] for ids in (noise.images, noise.draws))
            some = replace(noise, images=tuple(images), draws=tuple(draws))
            part = super().__call__(x[rows.filled], some)
            if part.shape[:1] != (len(rows.filled),):
                return part
            parts.append(part[: rows.count])
        return torch.cat(parts)


def captured(card: GraphCard, graph: Graph, source: str) -> CapturedGraph:
    """A graph as a purifier whose randomness is captured.

    Args:
        card: what is known of it.
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
    learnt = Learnt() if _tells_rows(graph) else Learnt(handling=ONE_ROW)
    return CapturedGraph(
        code, lambda x: graph({graph.image: x}), card.data_range, learnt, graph=graph
    )


def _tells_rows(graph: Graph) -> bool:
    """Whether draws that count rows can be told from others, by calls of two sizes.

    In a graph of one batch size, any axis of that length might.
    """
    rows = graph.rows
    return rows.least <= _STUDIED[0] and (rows.most is None or rows.most >= _STUDIED[1])
