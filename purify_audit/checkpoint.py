"""Native checkpoints: one safetensors file that holds weights and the card saying how to run them.

Reading a header and checking it runs nothing and needs no torch; only `load_tensors` does.
"""

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purify_audit.card import ClassifierCard, PurifierCard, TransformCard, parse_card
from purify_audit.errors import CardError, CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "purify_audit"

_MAX_HEADER = 100_000_000  # the format's own limit
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
_ITEM_BYTES |= {"U8": 1, "BOOL": 1, "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk (or an input transformation, which has no file and no tensors).

    Attributes:
        source: the path as it was given, or the transformation's name.
        card: how to build and run it.
        tensors: name -> dtype and shape, from the header.
        sha256: of the whole file; of the card's JSON where there is no file.
        path: the file, or none.
    """

    source: str
    card: PurifierCard | ClassifierCard
    tensors: dict[str, TensorInfo]
    sha256: str
    path: Path | None

    @property
    def parameters(self) -> int:
        """The count of numbers in all tensors."""
        return sum(prod(info.shape) for info in self.tensors.values())


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a native checkpoint's header and card; nothing is executed.

    Raises:
        CheckpointError: not a regular file, empty, truncated, not safetensors, or a header whose
            sizes do not match the file.
        CardError: no card, or one that cannot be used.
    """
    path = Path(path)
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    if METADATA_KEY not in metadata:
        raise CardError(
            f"{path}: no card: the header has no '{METADATA_KEY}' entry, so nothing says how to run"
            f" these weights; write a card and attach it with `purify-audit attach {path} CARD OUT`"
        )
    card = parse_card(metadata[METADATA_KEY], str(path))
    tensors = {name: TensorInfo(e["dtype"], tuple(e["shape"])) for name, e in header.items()}
    return Checkpoint(str(path), card, tensors, file_sha256(path), path)


def transform_checkpoint(source: str, card: TransformCard) -> Checkpoint:
    """An input transformation as a checkpoint: no file and no tensors, only a card."""
    digest = hashlib.sha256(card.model_dump_json().encode()).hexdigest()
    return Checkpoint(source, card, {}, digest, None)


def load_tensors(checkpoint: Checkpoint) -> dict[str, "Tensor"]:
    """All tensors of a checkpoint, as stored, on the CPU.

    Raises:
        CheckpointError: a tensor holds NaN or infinity, or the file cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if checkpoint.path is None:
        return {}
    try:
        tensors = load_file(checkpoint.path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{checkpoint.path}: cannot be read: {error}") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{checkpoint.path}: tensor '{name}' holds {bad} NaN or infinite values of"
                f" {tensor.numel()}; the training or the conversion that wrote it went wrong"
            )
    return tensors


def save_checkpoint(
    path: str | Path, card: PurifierCard | ClassifierCard, tensors: dict[str, "Tensor"]
) -> None:
    """Write a native checkpoint (atomically: a reader sees the old file or the whole new one)."""
    from safetensors.torch import save

    path = Path(path)
    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={METADATA_KEY: card.model_dump_json()},
    )
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(path: Path) -> dict[str, Any]:
    """The checked JSON header of a safetensors file.

    Raises:
        CheckpointError: see `read_checkpoint`.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: is a directory, not a .safetensors file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            _refuse_other_formats(path, start)
            (length,) = struct.unpack("<Q", start)
            if length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{path}: the header claims {length} bytes but the file has {size - 8} after"
                    " its first 8: truncated, or not a safetensors file"
                )
            text = file.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    header = _parse_header(path, text)
    _check_layout(path, header, size - 8 - length)
    return header


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if not start:
        raise CheckpointError(f"{path}: is empty")
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise CheckpointError(
            f"{path}: is a Python pickle (a .pt/.pth/.ckpt file), whatever its name says; pickles"
            " can run code when opened, so save the weights as safetensors instead"
        )
    if len(start) < 8:
        raise CheckpointError(f"{path}: has only {len(start)} bytes: truncated")


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise CheckpointError(f"{path}: the header names '{name}' twice")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: the header is not JSON: not a safetensors file") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ in the header is not a map of strings")
    return header


def _check_layout(path: Path, header: dict[str, Any], data_bytes: int) -> None:
    """Every tensor lies inside the file, has the bytes its shape needs, and none overlap."""
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
            needed = prod(shape) * _ITEM_BYTES[dtype] if whole else -1
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{path}: the header's entry for tensor '{name}' is malformed"
            ) from None
        if not whole or end - begin != needed or end > data_bytes:
            raise CheckpointError(
                f"{path}: tensor '{name}' of shape {shape} and type {dtype} needs {needed} bytes;"
                f" the header places it at {begin}..{end} of {data_bytes}: truncated or damaged"
            )
        spans.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise CheckpointError(
                f"{path}: tensor '{name}' begins at byte {begin} where {reached} was expected:"
                " the header leaves a hole or makes tensors overlap"
            )
        reached = end
    if reached != data_bytes:
        raise CheckpointError(f"{path}: {data_bytes - reached} bytes belong to no tensor")
