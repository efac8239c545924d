"""Reading exported graphs: container, card, and whether the two agree.

The card is JSON inside the file: `purify_audit.json` among the extra files of a torch.export or
TorchScript archive, the metadata entry `purify_audit` of an ONNX model. Reading executes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from purify_audit.core.digests import file_sha256
from purify_audit.core.errors import CardError, CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.checkpoint import METADATA_KEY, Checkpoint, TensorInfo
from purify_audit.models.containers.file_kinds import ZIP, first_bytes, looks_like_onnx
from purify_audit.models.containers.zip_checks import check_archive
from purify_audit.models.exported.cards import assumed_card, check_fit
from purify_audit.models.exported.onnx import read_onnx
from purify_audit.models.exported.pt2 import read_exported, read_tensors
from purify_audit.models.exported.signature import Signature
from purify_audit.spec.architectures import GraphArgs
from purify_audit.spec.card import ClassifierCard, GraphCard, parse_card
from purify_audit.spec.load_options import Assumption, LoadOptions, Recognised

if TYPE_CHECKING:
    from torch import Tensor

Container = Literal["pt2", "onnx", "torchscript"]

CARD_FILE = f"{METADATA_KEY}.json"
"""Name of the card among the extra files of an archive."""

_NAMES = {"pt2": "torch.export graph", "onnx": "ONNX graph", "torchscript": "TorchScript"}
_CODES = {
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
}
_CODES |= {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True, slots=True)
class _Graph:
    """A graph before its card."""

    path: Path
    container: Container
    signature: Signature | None
    card: str | bytes | None
    sha256: str
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    state: "Callable[[], dict[str, Tensor]] | None" = None
    unpickled: bool = False


def graph_container(path: Path) -> Container | None:
    """The container of an exported graph; none for other files.

    Raises:
        CheckpointError: it cannot be read, or is a damaged zip archive.
    """
    start, suffix = first_bytes(path), path.suffix.lower()
    if start.startswith(ZIP):
        kinds: dict[str, Container] = {"exported program": "pt2", "torchscript": "torchscript"}
        return kinds.get(check_archive(path).kind)
    if suffix == ".onnx" or looks_like_onnx(start):
        return "onnx"
    return None


def read_graph(path: Path, card_text: bytes | None, options: LoadOptions) -> Checkpoint:
    """Read an exported graph and its card; nothing in it is executed.

    Args:
        path: a file for which `graph_container` is not none.
        card_text: a separate card, which takes precedence over that in the file.
        options: `allow_pickle` for files whose loading executes code; `assume`, for graphs without
            a card, what their signature does not determine.

    Raises:
        CheckpointError: the file is damaged, of another version, not a function of images, or
            executes code when loaded and the user does not allow that.
        CardError: the card cannot be used, or contradicts the graph.
        PlanError: there is no card, and settings are missing; the message lists them.
    """
    container = graph_container(path)
    if container is None:
        raise CheckpointError(f"{path}: is not a graph of torch.export, ONNX or TorchScript")
    graph = {"onnx": _onnx, "pt2": _exported, "torchscript": _torchscript}[container](path, options)
    text = graph.card if card_text is None else card_text
    assumptions: tuple[Assumption, ...] = ()
    if text is None:
        card, assumptions = assumed_card(
            path, (_NAMES[container], container), graph.signature, options
        )
    elif options.assume:
        named = printable(", ".join(options.assume))
        raise CardError(f"{path}: has a card, which is complete: leave out --assume {named}")
    else:
        card = _own_card(graph, text)
    if graph.signature is not None:
        check_fit(path, card, graph.signature)
    recognised = Recognised(
        format=_NAMES[container],
        container="protobuf" if container == "onnx" else "zip",
        unpickled=graph.unpickled,
        assumptions=assumptions,
    )
    return Checkpoint(str(path), card, graph.tensors, graph.sha256, path, graph.state, recognised)


def _onnx(path: Path, options: LoadOptions) -> _Graph:
    graph = read_onnx(path)
    card = graph.metadata.get(METADATA_KEY)
    return _Graph(path, "onnx", graph.signature, card, graph.sha256, graph.tensors)


def _exported(path: Path, options: LoadOptions) -> _Graph:
    archive = check_archive(path)
    graph = read_exported(archive)
    if graph.opaque and not options.allow_pickle:
        raise CheckpointError(
            f"{path}: {graph.opaque}, so it can only be loaded by torch.export.load, which"
            " executes code in the file: give --allow-pickle if you trust its author"
        )
    extra = f"extra/{CARD_FILE}"
    return _Graph(
        path,
        "pt2",
        graph.signature,
        archive.read(extra) if extra in archive.entries else None,
        file_sha256(path),
        {name: TensorInfo(_CODES[a.dtype], a.shape) for name, a in graph.stored.items()},
        lambda: read_tensors(archive, graph),
        graph.opaque is not None,
    )


def _torchscript(path: Path, options: LoadOptions) -> _Graph:
    archive = check_archive(path)
    if not options.allow_pickle:
        raise CheckpointError(
            f"{path}: is TorchScript, a program that runs when it is loaded: give --allow-pickle if"
            " you trust its author, or save the model with torch.export.save, whose graphs"
            " are data"
        )
    extra = f"extra/{CARD_FILE}"
    card = archive.read(extra) if extra in archive.entries else None
    return _Graph(path, "torchscript", None, card, file_sha256(path), unpickled=True)


def _own_card(graph: _Graph, text: str | bytes) -> GraphCard | ClassifierCard:
    card = parse_card(text, str(graph.path))
    if not isinstance(card, GraphCard | ClassifierCard) or not isinstance(card.network, GraphArgs):
        raise CardError(f"{graph.path}: its card is not that of a graph, but of '{card.family}'")
    if card.network.container != graph.container:
        raise CardError(
            f"{graph.path}: its card says that it is {card.network.container}; it is"
            f" {graph.container}"
        )
    return card
