"""From what the user names to a model that runs: strict, or an error that says what differs."""

from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from purify_audit.card import (
    ClassifierCard,
    DiffusionCard,
    FeedforwardCard,
    ImageSpec,
    PurifierCard,
    TransformCard,
)
from purify_audit.checkpoint import Checkpoint, load_tensors
from purify_audit.errors import CheckpointError, PlanError
from purify_audit.networks import build_network
from purify_audit.purifier import Classifier, Purifier
from purify_audit.purifiers.diffusion import DiffusionPurifier
from purify_audit.purifiers.feedforward import FeedforwardPurifier
from purify_audit.purifiers.transforms import TransformPurifier


@dataclass(frozen=True, slots=True)
class NormalisedClassifier:
    """A network behind its own normalisation.

    Attributes:
        card: every choice that was made.
        network: normalised images to logits; in eval mode.
        mean: [1, channels, 1, 1].
        std: [1, channels, 1, 1].
    """

    card: ClassifierCard
    network: nn.Module
    mean: Tensor
    std: Tensor

    @property
    def image(self) -> ImageSpec:
        """The images it takes."""
        return self.card.image

    @property
    def classes(self) -> int:
        """The number of logits."""
        return self.card.classes

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images float32 [n, channels, height, width] in [0, 1]."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


def load_purifier(
    checkpoint: Checkpoint, device: torch.device, card: PurifierCard | None = None
) -> Purifier:
    """The purifier of a checkpoint, ready on a device.

    Args:
        checkpoint: from `read_checkpoint`.
        device: where it will run.
        card: the checkpoint's card with some settings changed, if any were.

    Raises:
        CheckpointError: it is a classifier; tensors are missing, unexpected, wrongly shaped or
            not finite.
    """
    card = purifier_card(checkpoint) if card is None else card
    match card:
        case TransformCard():
            return TransformPurifier(card)
        case DiffusionCard():
            return DiffusionPurifier(card, _network(checkpoint, card, device))
        case FeedforwardCard():
            return FeedforwardPurifier(card, _network(checkpoint, card, device))


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
    mean, std = (torch.tensor(v, device=device).reshape(1, -1, 1, 1) for v in (card.mean, card.std))
    return NormalisedClassifier(card, _network(checkpoint, card, device), mean, std)


def choose_device(name: str) -> torch.device:
    """The device of a name: `auto` is CUDA where there is one.

    Raises:
        PlanError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise PlanError(f"device '{name}' is not auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if int(number or 0) >= count:
        raise PlanError(f"device '{name}': this machine has {count} {kind.upper()} devices")
    return torch.device(name)


def _network(
    checkpoint: Checkpoint,
    card: DiffusionCard | FeedforwardCard | ClassifierCard,
    device: torch.device,
) -> nn.Module:
    """Build without memory, compare with the file, then take the file's tensors as weights."""
    try:
        with torch.device("meta"):
            network = build_network(card)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.source}: the card's network: {error}") from None
    _forget_batch_counts(network)
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    found = {
        name: info.shape
        for name, info in checkpoint.tensors.items()
        if not name.endswith("num_batches_tracked")  # a counter of training, unused in eval mode
    }
    _compare(checkpoint.source, wanted, found)
    tensors = load_tensors(checkpoint)
    network.load_state_dict({name: tensors[name].float() for name in wanted}, assign=True)
    return network.eval().requires_grad_(False).to(device)


def _forget_batch_counts(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None


def _compare(
    source: str, wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> None:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing:
        near = get_close_matches(missing[0], extra, n=1)
        hint = f"; it does hold '{near[0]}'" if near else ""
        raise CheckpointError(
            f"{source}: {len(missing)} tensors that the card's network needs are missing:"
            f" {_some(missing)}{hint}"
        )
    if extra:
        raise CheckpointError(
            f"{source}: {len(extra)} tensors are not part of the card's network: {_some(extra)}"
        )
    for name in sorted(wanted):
        if wanted[name] != found[name]:
            raise CheckpointError(
                f"{source}: tensor '{name}' has shape {list(found[name])};"
                f" the card's network needs {list(wanted[name])}"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
