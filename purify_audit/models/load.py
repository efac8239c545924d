"""Build the model of a checkpoint, with a strict comparison of its tensors."""

from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor, nn

from purify_audit.core.errors import CardError, CheckpointError, PlanError
from purify_audit.core.records import printable
from purify_audit.models.checkpoint import Checkpoint, load_tensors
from purify_audit.models.exported.purifier import load_graph_classifier, load_graph_purifier
from purify_audit.models.networks import build_network
from purify_audit.models.networks.spandrel_model import spandrel_network
from purify_audit.models.protocols import Classifier, Purifier
from purify_audit.models.purifiers.classifier import NormalisedClassifier
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.purifiers.engine import run_by
from purify_audit.models.purifiers.feedforward import FeedforwardPurifier
from purify_audit.models.purifiers.schedule import noise_schedule
from purify_audit.models.purifiers.transforms import TransformPurifier
from purify_audit.models.user_code.factory import load_code_classifier, load_code_purifier
from purify_audit.spec.architectures import CodeArgs, GraphArgs, SpandrelArgs
from purify_audit.spec.card import (
    ClassifierCard,
    CodeCard,
    DiffusionCard,
    FeedforwardCard,
    GraphCard,
    PurifierCard,
    TransformCard,
)
from purify_audit.spec.engine import PLAIN, Engine
from purify_audit.spec.samplers import ContinuousSampler


def load_purifier(
    checkpoint: Checkpoint,
    device: torch.device,
    card: PurifierCard | None = None,
    engine: Engine = PLAIN,
) -> Purifier:
    """The purifier of a checkpoint, ready on a device.

    Args:
        checkpoint: from `read_checkpoint`.
        device: where it will run.
        card: replaces the checkpoint's card, if its settings were changed.
        engine: how its network is run.

    Raises:
        CheckpointError: it is a classifier; tensors are missing, unexpected, wrongly shaped or
            not finite.
        CardError: the noise schedule is not usable.
        PlanError: the engine does not apply to it, or the device does not support it.
    """
    card = purifier_card(checkpoint) if card is None else card
    if engine != PLAIN and not isinstance(card, DiffusionCard | FeedforwardCard):
        raise PlanError(
            f"{checkpoint.source}: has no network built from a file of weights, so it runs only"
            " without --precision, --compile and --channels-last"
        )
    match card:
        case TransformCard():
            return TransformPurifier(card)
        case DiffusionCard():
            _check_schedule(checkpoint.source, card)
            network = _network(checkpoint, card, device)
            return DiffusionPurifier(card, run_by(engine, network, device))
        case FeedforwardCard():
            network = _network(checkpoint, card, device)
            return FeedforwardPurifier(card, run_by(engine, network, device))
        case GraphCard():
            return load_graph_purifier(checkpoint, card, device)
        case CodeCard():
            return load_code_purifier(card, device)


def purifier_card(checkpoint: Checkpoint) -> PurifierCard:
    """The checkpoint's card, if it is a purifier's.

    Raises:
        CheckpointError: it is a classifier.
    """
    if isinstance(checkpoint.card, ClassifierCard):
        raise CheckpointError(f"{checkpoint.source}: is a classifier, not a purifier")
    return checkpoint.card


def load_classifier(checkpoint: Checkpoint, device: torch.device) -> Classifier:
    """The classifier of a checkpoint, ready on a device.

    Raises:
        CheckpointError: it is a purifier, or its tensors do not fit; see `load_purifier`.
    """
    card = checkpoint.card
    if not isinstance(card, ClassifierCard):
        raise CheckpointError(f"{checkpoint.source}: is a purifier, not a classifier")
    match card.network:
        case GraphArgs():
            return load_graph_classifier(checkpoint, device)
        case CodeArgs():
            return load_code_classifier(card, device)
    mean, std = (torch.tensor(v, device=device).reshape(1, -1, 1, 1) for v in (card.mean, card.std))
    return NormalisedClassifier(card, _network(checkpoint, card, device), mean, std)


def _network(
    checkpoint: Checkpoint,
    card: DiffusionCard | FeedforwardCard | ClassifierCard,
    device: torch.device,
) -> nn.Module:
    """Build on the meta device, compare with the file, then assign the file's tensors."""
    if isinstance(card.network, SpandrelArgs):  # detected in the tensors, not built from a card
        channels = 1 if card.per_channel else card.image.channels
        shape = (channels, card.image.height, card.image.width)
        return spandrel_network(load_tensors(checkpoint), shape, checkpoint.source).to(device)
    try:
        with torch.device("meta"):
            network = build_network(card)
    except CardError as error:
        raise CardError(f"{checkpoint.source}: {error}") from None
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.source}: the card's network: {error}") from None
    state, stored = network.state_dict(), {n: t.shape for n, t in checkpoint.tensors.items()}
    counts = {name for name, tensor in state.items() if not tensor.is_floating_point()}
    expected = {n: tuple(t.shape) for n, t in state.items() if n in stored or n not in counts}
    _compare(checkpoint.source, expected, stored)
    weights = _floats(checkpoint, [name for name in state if name not in counts])
    unused = {name: torch.tensor(0) for name in counts}  # batch counters, used in training only
    network.load_state_dict(weights | unused, assign=True)
    return network.eval().requires_grad_(False).to(device)


def _floats(checkpoint: Checkpoint, names: list[str]) -> dict[str, Tensor]:
    """The weights of these names, in float32.

    Raises:
        CheckpointError: one is of integers, or not finite.
    """
    for name in names:
        if not checkpoint.tensors[name].dtype.startswith(("F", "BF")):
            raise CheckpointError(
                f"{checkpoint.source}: tensor '{name}' is of type {checkpoint.tensors[name].dtype};"
                " weights are floating-point numbers"
            )
    tensors = load_tensors(checkpoint)
    return {name: tensors[name].float() for name in names}


def _check_schedule(source: str, card: DiffusionCard) -> None:
    """ᾱ must start below 1, never increase and stay above 0, or the sampler divides by zero.

    Raises:
        CardError: it is not so.
    """
    schedule, end = noise_schedule(card.schedule), card.t_star / card.schedule.steps
    left = schedule.abar[: card.t_star]
    if isinstance(card.sampler, ContinuousSampler):
        times = end / (card.sampler.steps or card.t_star), end
        left = np.array([schedule.continuous_alpha_bar(t) for t in times])
    if left[-1] <= 0.0 or np.diff(left, prepend=1.0).max() > 0.0 or left[0] >= 1.0:
        raise CardError(
            f"{source}: the noise schedule leaves {left[0]:g} of the image's variance at first and"
            f" {left[-1]:g} at t_star; it must fall from less than 1 to more than 0"
        )


def _compare(
    source: str, expected: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]]
) -> None:
    missing, extra = (
        sorted(expected.keys() - stored.keys()),
        sorted(stored.keys() - expected.keys()),
    )
    if missing:
        near = get_close_matches(missing[0], extra[:1000], n=1)
        hint = f"; it contains '{printable(near[0])}'" if near else ""
        raise CheckpointError(
            f"{source}: {len(missing)} tensors that the card's network needs are missing:"
            f" {_some(missing)}{hint}"
        )
    if extra:
        raise CheckpointError(
            f"{source}: {len(extra)} tensors are not part of the card's network: {_some(extra)}"
        )
    for name in sorted(expected):
        if expected[name] != stored[name]:
            raise CheckpointError(
                f"{source}: tensor '{name}' has shape {list(stored[name])};"
                f" the card's network needs {list(expected[name])}"
            )


def _some(names: list[str]) -> str:
    return ", ".join(map(printable, names[:3])) + (", …" if len(names) > 3 else "")
