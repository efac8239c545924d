"""Exported graphs that draw random numbers by themselves, which are captured as in other code."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from purify_audit.core.findings import Finding
from purify_audit.core.noise import Noise
from purify_audit.models.exported.batches import Graph, Portion
from purify_audit.models.user_code.batching import ONE_ROW
from purify_audit.models.user_code.draws import CapturedDraw
from purify_audit.models.user_code.purifier import UserPurifier, Learnt
from purify_audit.spec.architectures import CodeArgs
from purify_audit.spec.card import CodeCard, GraphCard, ImageSpec

_STUDIED = (2, 3)  # rows with which `rows.study` learns which draws count rows


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """A graph run as somebody's own code is, portion by portion.

    Attributes:
        code: the graph, its randomness captured.
        graph: the same, which knows its portions. One call of it is one purification: what it
            draws in another call has another address.
        any_precision: it runs in float64 when given float64.
    """

    code: UserPurifier
    graph: Graph
    any_precision: bool = field(default=True, init=False)

    @property
    def image(self) -> ImageSpec:
        """The images it takes and returns."""
        return self.code.image

    @property
    def randomised(self) -> bool:
        """Whether the output depends on the draw, as its card says."""
        return self.code.randomised

    @property
    def evaluations(self) -> int:
        """Network evaluations in one purification, as its card says."""
        return self.code.evaluations

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Purify images float32 [n, c, h, w] in [0, 1] under their draws; see `UserPurifier`."""
        parts, n = list[Tensor](), len(x)
        portions: Iterable[Portion] = self.graph.portions(n)
        if not _tells_rows(self.graph):  # row by row, which the graph itself fills up
            portions = [Portion(list(range(n)), n)]
        for rows in portions:
            images, draws = ([ids[k] for k in rows.filled] for ids in (noise.images, noise.draws))
            some = replace(noise, images=tuple(images), draws=tuple(draws))
            part = self.code(x[rows.filled], some)
            if part.shape[:1] != (len(rows.filled),):
                return part
            parts.append(part[: rows.count])
        return torch.cat(parts)

    def capture_report(self, x: Tensor) -> tuple[CapturedDraw, ...]:
        """What it draws while it purifies images [n, c, h, w]; see `UserPurifier`."""
        return self.code.capture_report(x)

    def findings(self) -> list[Finding]:
        """What running it has shown to be wrong with it, or worth knowing."""
        return self.code.findings()


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
    run = UserPurifier(code, lambda x: graph({graph.image: x}), card.data_range, learnt)
    return CapturedGraph(run, graph)


def _tells_rows(graph: Graph) -> bool:
    """Whether draws that count rows can be told from others, by calls of two sizes.

    In a graph of one batch size, any axis of that length might.
    """
    rows = graph.rows
    return rows.least <= _STUDIED[0] and (rows.most is None or rows.most >= _STUDIED[1])
