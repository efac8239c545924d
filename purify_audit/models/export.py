"""Export of native purifiers as graphs that other tools can run (`torch.export`, `.pt2`).

The whole purification becomes one graph with every network evaluation unrolled. Each array of
standard normals that the purifier reads is an input, `z_0` for step 0 and so on; for equal inputs
the graph is the same function as the purifier.
"""

import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from purify_audit.core.errors import CheckpointError, PlanError
from purify_audit.core.files import written_atomically
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
"""Network evaluations in a graph: each is unrolled, and tracing one takes a second or more."""

TOLERANCE = 1e-5
"""Largest difference of a pixel of the graph from the native purifier's."""

_MAX_ROWS = 2**16  # of a micro-batch (`purify_audit.spec.audit_plan.AuditPlan`)
_TRACED_ROWS = 3  # a batch of 1 would be specialised as a constant
_CPU = torch.device("cpu")

_Native = DiffusionPurifier | FeedforwardPurifier


def export_purifier(checkpoint: Checkpoint, out: Path, card: PurifierCard | None = None) -> None:
    """Write a native purifier as a graph with its card, for any batch size.

    The file is written only if the graph's output equals the purifier's on two rows of noise.

    Args:
        checkpoint: of a diffusion or feed-forward purifier.
        out: the `.pt2` file.
        card: replaces the checkpoint's card, if its settings were changed.

    Raises:
        PlanError: it is another kind of purifier, has too many evaluations, or `out` has another
            suffix.
        CheckpointError: PyTorch cannot trace it for a dynamic batch size, the graph's output
            differs, or `out` cannot be written; and see `load_purifier`.
    """
    card = purifier_card(checkpoint) if card is None else card
    if not isinstance(card, DiffusionCard | FeedforwardCard):
        raise PlanError(
            f"{checkpoint.source}: has no native network, so there is nothing to export; only"
            " diffusion and feed-forward purifiers are exported"
        )
    if out.suffix != ".pt2":
        raise PlanError(f"{out}: is not a valid name for an exported graph; use the suffix .pt2")
    purifier = cast(_Native, load_purifier(checkpoint, _CPU, card))
    if purifier.evaluations > MAX_EVALUATIONS:
        raise PlanError(
            f"{checkpoint.source}: a purification has {purifier.evaluations} network evaluations,"
            f" and a graph of more than {MAX_EVALUATIONS} takes too long to write; export one of"
            " fewer steps (--sampler ddim:steps=10)"
        )
    recorder = _NoiseRecorder()
    with torch.no_grad():
        purifier(torch.zeros(1, *purifier.image.shape), cast(Noise, recorder))
    draws = recorder.steps
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
    with written_atomically(out, CheckpointError) as scratch:
        scratch.write_bytes(data.getvalue())
        _compare(out, purifier, read_graph(scratch, None, LoadOptions()))


class _NoiseRecorder:
    """Substitute for the noise of one row; counts the steps up to the last one read."""

    def __init__(self) -> None:
        self.steps = 0

    def __len__(self) -> int:
        return 1

    def normal(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.normals(step, 1, shape)[0]

    def normals(self, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
        self.steps = max(self.steps, first + count)
        return torch.zeros(count, 1, *shape)


class _NoiseInputs:
    """Substitute for the noise of a batch: step k is the k-th noise input of the graph."""

    def __init__(self, z: tuple[Tensor, ...]) -> None:
        self.z = z

    def __len__(self) -> int:
        return 1  # only determines how many steps are requested at a time

    def normal(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.z[step]

    def normals(self, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
        return torch.stack(self.z[first : first + count])


class _PurificationModule(nn.Module):
    """A purification as a module of images and noise, with its weights registered."""

    def __init__(self, purifier: _Native) -> None:
        super().__init__()
        self.network, self._purifier = purifier.network, purifier

    def forward(self, x: Tensor, *z: Tensor) -> Tensor:
        return self._purifier(x, cast(Noise, _NoiseInputs(z)))


def _traced(source: str, purifier: _Native, draws: int) -> torch.export.ExportedProgram:
    """The traced graph, for 1 to 65,536 rows.

    Raises:
        CheckpointError: PyTorch cannot trace it.
    """
    rows = torch.export.Dim("rows", min=1, max=_MAX_ROWS)
    example = torch.zeros(_TRACED_ROWS, *purifier.image.shape)
    dynamic = {0: rows}
    shapes = (dynamic, (dynamic,) * draws) if draws else (dynamic,)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.export's own deprecations
            return torch.export.export(
                _PurificationModule(purifier).eval(),
                (example, *(example.clone() for _ in range(draws))),
                dynamic_shapes=shapes,
                strict=False,
            )
    except Exception as error:  # torch does not document what tracing raises
        fault = printable(str(error).strip().partition("\n")[0] or type(error).__name__)
        raise CheckpointError(
            f"{source}: PyTorch {torch.__version__} cannot export it for any batch size: {fault}"
        ) from None


def _compare(out: Path, purifier: _Native, exported: Checkpoint) -> None:
    """Raise CheckpointError if the graph's output differs from the purifier's."""
    noise = Noise(0, (0, 1), (0, 1), Stream.PREFLIGHT)
    x = noise.uniform(0, purifier.image.shape)
    noise = replace(noise, stream=Stream.PURIFY)
    with torch.no_grad():
        gap = load_purifier(exported, _CPU)(x, noise) - purifier(x, noise)
    if not float(gap.abs().max()) <= TOLERANCE:
        raise CheckpointError(
            f"{out}: not written, because the graph's pixels differ from the purifier's by up to"
            f" {float(gap.abs().max()):.3g}"
        )
