"""Native purifiers written as graphs that other tools can run (`torch.export`, `.pt2`).

The whole purification becomes one graph, every network evaluation written out. Its noise is an
input for each array of standard normals that the purifier reads, `z_0` for step 0 and so on, so
the graph under the same numbers is the same purifier.
"""

import os
import warnings
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from purify_audit.core.errors import CheckpointError, PlanError
from purify_audit.core.noise import Noise, Stream
from purify_audit.core.records import printable
from purify_audit.models.checkpoint import Checkpoint
from purify_audit.models.exported.read import CARD_FILE, read_graph
from purify_audit.models.load import load_purifier, purifier_card
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.purifiers.feedforward import FeedforwardPurifier
from purify_audit.spec.architectures import GraphArgs
from purify_audit.spec.card import DiffusionCard, FeedforwardCard, GraphCard, PurifierCard
from purify_audit.spec.load_options import LoadOptions

MAX_EVALUATIONS = 200
"""Network evaluations in a graph: each is written out, and tracing one takes a second or more."""

TOLERANCE = 1e-5
"""How far a pixel of the graph may be from the native purifier's."""

_MOST_ROWS = 2**16  # of a micro-batch (`purify_audit.spec.audit_plan.AuditPlan`)
_TRACED_ROWS = 3  # a traced batch of 1 would be taken for a constant
_CPU = torch.device("cpu")

_Native = DiffusionPurifier | FeedforwardPurifier


def export_purifier(checkpoint: Checkpoint, out: Path, card: PurifierCard | None = None) -> None:
    """Write a native purifier as a graph with its card, for any batch size.

    The file is written when the graph has given what the purifier gives, for two rows of noise.

    Args:
        checkpoint: a diffusion or feed-forward purifier's.
        out: the `.pt2` file.
        card: the checkpoint's card with some settings changed, if any were.

    Raises:
        PlanError: it is another kind of purifier, has too many evaluations, or `out` has another
            suffix.
        CheckpointError: PyTorch cannot trace it for any batch size, the graph gives other images,
            or `out` cannot be written; and see `load_purifier`.
    """
    card = purifier_card(checkpoint) if card is None else card
    if not isinstance(card, DiffusionCard | FeedforwardCard):
        raise PlanError(
            f"{checkpoint.source}: has no native network, so there is nothing to export; only"
            " diffusion and feed-forward purifiers are exported"
        )
    if out.suffix != ".pt2":
        raise PlanError(f"{out}: is no name of an exported graph; let it end in .pt2")
    purifier = cast(_Native, load_purifier(checkpoint, _CPU, card))
    if purifier.evaluations > MAX_EVALUATIONS:
        raise PlanError(
            f"{checkpoint.source}: a purification has {purifier.evaluations} network evaluations,"
            f" and a graph of more than {MAX_EVALUATIONS} takes too long to write; export one of"
            " fewer steps (--sampler ddim:steps=10)"
        )
    draws = _steps_read(purifier)
    program = _traced(checkpoint.source, purifier, draws)
    graph_card = GraphCard(
        name=card.name,
        image=card.image,
        provenance=card.provenance,
        network=GraphArgs(container="pt2"),
        noise="inputs" if draws else "none",
        noise_inputs={f"z_{step}": card.image.shape for step in range(draws)},
        evaluations=purifier.evaluations,
        clamp=False,
    )
    data = BytesIO()
    torch.export.save(program, data, extra_files={CARD_FILE: graph_card.model_dump_json()})
    scratch = out.parent / f".purify-audit.{os.getpid()}.pt2"
    try:
        scratch.write_bytes(data.getvalue())
        _compare(out, purifier, read_graph(scratch, None, LoadOptions()))
        os.replace(scratch, out)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):  # it is gone if all went well
            scratch.unlink()


class _Reader:
    """Stands for the addresses of one row, and remembers how many steps were read."""

    def __init__(self) -> None:
        self.steps = 0

    def __len__(self) -> int:
        return 1

    def normal(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.normals(step, 1, shape)[0]

    def normals(self, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
        self.steps = max(self.steps, first + count)
        return torch.zeros(count, 1, *shape)


class _Inputs:
    """Stands for the addresses of a batch: step k is the k-th of the graph's noise inputs."""

    def __init__(self, z: tuple[Tensor, ...]) -> None:
        self.z = z

    def __len__(self) -> int:
        return 1  # only decides how many steps are asked for at a time

    def normal(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.z[step]

    def normals(self, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
        return torch.stack(self.z[first : first + count])


class _Whole(nn.Module):
    """A purification as a module of images and noise, whose weights tracing finds."""

    def __init__(self, purifier: _Native) -> None:
        super().__init__()
        self.network, self._purifier = purifier.network, purifier

    def forward(self, x: Tensor, *z: Tensor) -> Tensor:
        return self._purifier(x, cast(Noise, _Inputs(z)))


def _steps_read(purifier: _Native) -> int:
    """How many steps of noise a purification reads; those between may be left unread."""
    reader = _Reader()
    with torch.no_grad():
        purifier(torch.zeros(1, *purifier.image.shape), cast(Noise, reader))
    return reader.steps


def _traced(source: str, purifier: _Native, draws: int) -> torch.export.ExportedProgram:
    """The graph, for 1 to 65,536 rows.

    Raises:
        CheckpointError: PyTorch cannot trace it.
    """
    rows = torch.export.Dim("rows", min=1, max=_MOST_ROWS)
    like = torch.zeros(_TRACED_ROWS, *purifier.image.shape)
    free = {0: rows}
    shapes = (free, (free,) * draws) if draws else (free,)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch.export about itself
            return torch.export.export(
                _Whole(purifier).eval(),
                (like, *(like.clone() for _ in range(draws))),
                dynamic_shapes=shapes,
                strict=False,
            )
    except Exception as error:  # torch promises no list of what tracing raises
        fault = printable(str(error).strip().partition("\n")[0] or type(error).__name__)
        raise CheckpointError(
            f"{source}: PyTorch {torch.__version__} cannot export it for any batch size: {fault}"
        ) from None


def _compare(out: Path, purifier: _Native, written: Checkpoint) -> None:
    """Raise CheckpointError unless the graph gives what the purifier gives."""
    noise = Noise(0, (0, 1), (0, 1), Stream.PREFLIGHT)
    x = noise.uniform(0, purifier.image.shape)
    noise = replace(noise, stream=Stream.PURIFY)
    with torch.no_grad():
        gap = load_purifier(written, _CPU)(x, noise) - purifier(x, noise)
    if not float(gap.abs().max()) <= TOLERANCE:
        raise CheckpointError(
            f"{out}: not written, because the graph's pixels differ from the purifier's by up to"
            f" {float(gap.abs().max()):.3g}"
        )
