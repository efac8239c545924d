"""Purifiers and classifiers that are exported graphs: torch.export, ONNX or TorchScript."""

from dataclasses import dataclass

import torch
from torch import Tensor

from purify_audit.core.errors import CheckpointError
from purify_audit.core.noise import Noise
from purify_audit.models.checkpoint import Checkpoint
from purify_audit.models.containers.zip_checks import check_archive
from purify_audit.models.exported.batches import Graph, Network
from purify_audit.models.exported.captured import captured
from purify_audit.models.exported.cards import image_input
from purify_audit.models.exported.interpreter import Program
from purify_audit.models.exported.onnx import read_onnx
from purify_audit.models.exported.onnx_runtime import OnnxNetwork
from purify_audit.models.exported.pt2 import read_exported, read_tensors
from purify_audit.models.exported.signature import Signature, TensorSpec
from purify_audit.models.exported.torchscript import TorchNetwork
from purify_audit.models.protocols import ClassifierFromCard, Purifier, PurifierFromCard
from purify_audit.spec.architectures import GraphArgs
from purify_audit.spec.card import ClassifierCard, GraphCard


class _Exported:
    """What a graph's container decides: ONNX Runtime computes forward only, in float32."""

    __slots__ = ()
    graph: Graph

    @property
    def differentiable(self) -> bool:
        """Whether a gradient can be taken through it."""
        return self.graph.differentiable

    @property
    def any_precision(self) -> bool:
        """Whether it runs in float64 when given float64."""
        return self.graph.differentiable


@dataclass(frozen=True, slots=True)
class GraphPurifier(PurifierFromCard, _Exported):
    """An exported graph as a purifier that is deterministic, or takes noise or a seed as input.

    Attributes:
        card: its settings.
        graph: images in the card's data range, and noise or a seed, to images in that range.
    """

    card: GraphCard
    graph: Graph

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Purify images float32 [n, c, h, w] in [0, 1] under their draws.

        The k-th noise input has the standard normals of step k. A seed is one integer for a whole
        call, so such a graph purifies row by row, each with its own seed, derived from the integers
        of step 0.
        """
        low, high = self.card.data_range
        given = {self.graph.image: x * (high - low) + low}
        for step, (name, shape) in enumerate(self.card.noise_inputs.items()):
            given[name] = noise.normal(step, shape).to(x.dtype)
        if self.graph.seed is not None:
            given[self.graph.seed] = self._seeds(noise)
        y = self.graph(given)
        if not y.is_floating_point():
            return y
        y = (y - low) / (high - low)
        return y.clamp(0.0, 1.0) if self.card.clamp else y

    def _seeds(self, noise: Noise) -> Tensor:
        """A seed for each row, not negative, of the type and shape that the graph takes."""
        spec = next(spec for spec in self.graph.inputs if spec.name == self.graph.seed)
        words = noise.integers(0, (2,), 2**32)
        seeds = words[:, 0] * 2**31 + (words[:, 1] >> 1)
        if spec.dtype != "int64":
            seeds = (words[:, 0] >> 1).to(getattr(torch, spec.dtype))
        return seeds.reshape(-1, *(1 for _ in spec.shape or ()))


@dataclass(frozen=True, slots=True)
class GraphClassifier(ClassifierFromCard, _Exported):
    """An exported graph as a classifier, behind the normalisation on its card.

    Attributes:
        card: its settings.
        graph: normalised images to logits.
    """

    card: ClassifierCard
    graph: Graph

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images float32 [n, channels, height, width] in [0, 1].

        Raises:
            CheckpointError: the output has another shape.
        """
        mean, std = (x.new_tensor(v).reshape(1, -1, 1, 1) for v in (self.card.mean, self.card.std))
        logits = self.graph({self.graph.image: (x - mean) / std})
        if logits.shape != (len(x), self.classes):
            raise CheckpointError(
                f"{self.card.name}: gave an output of shape {list(logits.shape)}, not logits of"
                f" shape {[len(x), self.classes]}"
            )
        return logits


def load_graph_purifier(checkpoint: Checkpoint, card: GraphCard, device: torch.device) -> Purifier:
    """The purifier of an exported graph, ready on a device.

    Raises:
        CheckpointError: it cannot be run.
    """
    graph = _graph(checkpoint, card, device)
    if card.noise != "captured":
        return GraphPurifier(card, graph)
    return captured(card, graph, checkpoint.source)


def load_graph_classifier(checkpoint: Checkpoint, device: torch.device) -> GraphClassifier:
    """The classifier of an exported graph, ready on a device.

    Raises:
        CheckpointError: it cannot be run.
    """
    card = checkpoint.card
    assert isinstance(card, ClassifierCard), "the caller has checked"
    return GraphClassifier(card, _graph(checkpoint, card, device))


def _graph(checkpoint: Checkpoint, card: GraphCard | ClassifierCard, device: torch.device) -> Graph:
    assert isinstance(card.network, GraphArgs), "the caller has checked"
    network, signature = _network(checkpoint, card, device)
    image = image_input(card, signature).name
    noise = card.noise_inputs if isinstance(card, GraphCard) else {}
    seed = next((s.name for s in signature.inputs if s.name not in (image, *noise)), None)
    differentiable = card.network.container != "onnx"
    return Graph(network, signature.inputs, image, seed, differentiable)


def _network(
    checkpoint: Checkpoint, card: GraphCard | ClassifierCard, device: torch.device
) -> tuple[Network, Signature]:
    """The network of a graph, and its signature."""
    path = checkpoint.path
    assert path is not None, "a graph is a file"
    assert isinstance(card.network, GraphArgs), "the caller has checked"
    allowed = checkpoint.recognised is not None and checkpoint.recognised.unpickled
    match card.network.container:
        case "onnx":
            signature = read_onnx(path).signature
            return OnnxNetwork(path, signature), signature
        case "pt2":
            archive = check_archive(path)
            graph = read_exported(archive)
            if graph.opaque is None:
                arrays = read_tensors(archive, graph)
                return Program(str(path), graph, arrays, device), graph.signature
            return TorchNetwork(path, device, allowed), graph.signature
        case "torchscript":
            return TorchNetwork(path, device, allowed), _by_card(card)


def _by_card(card: GraphCard | ClassifierCard) -> Signature:
    """The inputs of a graph without a signature: images, then noise or a seed, by the card."""
    names = ["images", *(card.noise_inputs if isinstance(card, GraphCard) else ())]
    inputs = [TensorSpec(name, "float32", None) for name in names]
    if isinstance(card, GraphCard) and card.noise == "seed":
        inputs.append(TensorSpec("seed", "int64", ()))
    return Signature(tuple(inputs), TensorSpec("output", "float32", None), None)
