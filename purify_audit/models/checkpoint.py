"""Native checkpoints: one safetensors file with weights and the card that describes their use.

Reading and checking a header executes nothing and needs no torch; only `load_tensors` does.
"""

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purify_audit.core.digests import file_sha256
from purify_audit.core.errors import CardError, CheckpointError
from purify_audit.core.files import read_errors, regular_size, written_atomically
from purify_audit.core.records import printable
from purify_audit.spec.card import ClassifierCard, PurifierCard, TransformCard, parse_card
from purify_audit.spec.load_options import Recognised

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "purify_audit"

_MAX_HEADER = 100_000_000  # the format's own limit
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
_ITEM_BYTES |= {"U8": 1, "BOOL": 1, "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
_MAX_AXES = 64  # torch's limit
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Type and shape of a tensor, from a header."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk (or an input transformation, which has no file and no tensors).

    Attributes:
        source: the path as given, or the transformation's name.
        card: its description.
        tensors: name -> dtype and shape, from the header.
        sha256: of the whole file, or of the card's JSON if there is no file.
        path: the file or folder, if any.
        state: the tensors of a published format; none for native checkpoints.
        recognised: the published format, and assumptions about it.
    """

    source: str
    card: PurifierCard | ClassifierCard
    tensors: dict[str, TensorInfo]
    sha256: str
    path: Path | None
    state: Callable[[], dict[str, "Tensor"]] | None = None
    recognised: Recognised | None = None

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(prod(info.shape) for info in self.tensors.values())


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check the header and card of a native checkpoint; nothing is executed.

    Raises:
        CheckpointError: not a regular file, empty, truncated, not safetensors, or sizes in the
            header do not match the file.
        CardError: no card, or an invalid one.
    """
    path = Path(path)
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    if METADATA_KEY not in metadata:
        raise CardError(
            f"{path}: no card: the header has no '{METADATA_KEY}' entry, which describes the use of"
            f" the weights; write a card and attach it with `purify-audit attach {path} CARD OUT`"
        )
    card = parse_card(metadata[METADATA_KEY], str(path))
    tensors = tensor_infos(header)
    return Checkpoint(str(path), card, tensors, file_sha256(path), path)


def holds_card(path: Path) -> bool:
    """Whether a file is safetensors with a card; false for any other file."""
    try:
        return METADATA_KEY in read_header(path).get("__metadata__", {})
    except CheckpointError:
        return False


def tensor_infos(header: dict[str, Any]) -> dict[str, TensorInfo]:
    """Types and shapes of the tensors of a checked header."""
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: TensorInfo(e["dtype"], tuple(e["shape"])) for name, e in entries.items()}


def transform_checkpoint(source: str, card: TransformCard) -> Checkpoint:
    """An input transformation as a checkpoint: no file and no tensors, only a card."""
    digest = hashlib.sha256(card.model_dump_json().encode()).hexdigest()
    return Checkpoint(source, card, {}, digest, None)


def load_tensors(checkpoint: Checkpoint) -> dict[str, "Tensor"]:
    """All tensors of a checkpoint, as stored, on the CPU.

    Raises:
        CheckpointError: a tensor holds NaN or infinity (in float32), or the file cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if checkpoint.path is None:
        return {}
    try:
        tensors = load_file(checkpoint.path) if checkpoint.state is None else checkpoint.state()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: cannot be read: {printable(str(error))}"
        ) from None
    for name, tensor in tensors.items():
        bad = tensor.numel() - int(torch.isfinite(tensor.float()).sum())
        if bad:
            raise CheckpointError(
                f"{checkpoint.path}: tensor '{printable(name)}' has {bad} NaN or infinite values of"
                f" {tensor.numel()}; the training or the conversion that wrote it failed"
            )
    return tensors


def save_checkpoint(
    path: str | Path, card: PurifierCard | ClassifierCard, tensors: dict[str, "Tensor"]
) -> None:
    """Write a native checkpoint atomically."""
    from safetensors.torch import save

    path = Path(path)
    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={METADATA_KEY: card.model_dump_json()},
    )
    with written_atomically(path, CheckpointError) as scratch:
        scratch.write_bytes(data)


def read_header(path: Path) -> dict[str, Any]:
    """The checked JSON header of a safetensors file.

    Raises:
        CheckpointError: see `read_checkpoint`.
    """
    size = regular_size(path, CheckpointError, "a .safetensors file")
    with read_errors(path, CheckpointError), path.open("rb") as file:
        _refuse_other_formats(path, file.read(9))
        file.seek(0)
        (length,) = struct.unpack("<Q", file.read(8))
        room = min(size - 8, _MAX_HEADER)
        if length > room:
            raise CheckpointError(
                f"{path}: the header declares {length} bytes but can have at most {room}:"
                " truncated, or not a safetensors file"
            )
        text = file.read(length)
    header = _parse_header(path, text)
    _check_layout(path, header, size - 8 - length)
    return header


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if not start:
        raise CheckpointError(f"{path}: is empty")
    # A safetensors header of, say, 1152 bytes begins like a pickle, but then has these bytes.
    if start.startswith(_PICKLES) and start[4:] != b"\0\0\0\0{":
        raise CheckpointError(
            f"{path}: is a Python pickle (a .pt/.pth/.ckpt file), whatever its name; pickles"
            " can run code when opened, so save the weights as safetensors instead"
        )
    if len(start) < 8:
        raise CheckpointError(f"{path}: has only {len(start)} bytes: truncated")


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(entries := dict(pairs)) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise CheckpointError(f"{path}: the header repeats '{printable(name)}'")
        return entries

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: the header is not JSON: not a safetensors file") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ in the header is not a map of strings")
    return header


def _check_layout(path: Path, header: dict[str, Any], data_bytes: int) -> None:
    """Every tensor is inside the file, has the length of its shape, and none overlap."""
    named = [(n, f"{path}: tensor '{printable(n)}'") for n in header if n != "__metadata__"]
    spans = sorted((*_span(where, header[name], data_bytes), where) for name, where in named)
    reached = 0
    for begin, end, where in spans:
        if begin != reached:
            raise CheckpointError(
                f"{where} begins at byte {begin} where {reached} was expected: the header leaves a"
                " gap, or tensors overlap"
            )
        reached = end
    if reached != data_bytes:
        raise CheckpointError(f"{path}: {data_bytes - reached} bytes belong to no tensor")


def _span(where: str, entry: object, data_bytes: int) -> tuple[int, int]:
    """The first byte of a tensor, and the one after its last."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            numbers = (*shape, begin, end)
        case _:
            raise CheckpointError(f"{where}: the header does not give its dtype, shape and offsets")
    if dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{where} is of unknown type '{printable(dtype)}'")
    if len(shape) > _MAX_AXES or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        fault = printable(f"shape {shape} and offsets {[begin, end]}")
        raise CheckpointError(f"{where}: {fault} are not integers in range")
    needed = prod(shape) * _ITEM_BYTES[dtype]
    if end - begin != needed or end > data_bytes:
        raise CheckpointError(
            f"{where} of shape {shape} and type {dtype} needs {needed} bytes; the header places it"
            f" at {begin}..{end} of {data_bytes}: truncated or damaged"
        )
    return begin, end
