"""Strangers' files of weights, read without running what is in them.

What a file is, its content tells and not its name. A file that PyTorch wrote is checked from its
headers first (`zip_checks`, `legacy`, `pickle_checks`), then read by `torch.load` with
`weights_only=True`; and what came of it is checked again (`trees`). Only a user who allows it gets
a full unpickle, which can run any code, and then only of a file that needs it.
"""

import os
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from purify_audit.core.digests import file_sha256
from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.checkpoint import read_header
from purify_audit.models.containers.file_kinds import (
    SAVE_WEIGHTS,
    ZIP,
    Container,
    container_of,
    first_bytes,
    listed,
    looks_like_onnx,
)
from purify_audit.models.containers.legacy import scan_legacy
from purify_audit.models.containers.pickle_checks import MAX_PICKLE, Scan, scan_pickle
from purify_audit.models.containers.trees import plain_tree, state_dicts, strip_prefix
from purify_audit.models.containers.zip_checks import Archive, check_archive

__all__ = [
    "Contents",
    "is_exported_program",
    "is_onnx",
    "is_torchscript",
    "read_weights",
    "state_dicts",
    "strip_prefix",
]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file of weights holds.

    Attributes:
        tree: nested dict, list and tuple of dense tensors on the CPU, str, numbers and None. For
            safetensors, one dict of tensors by name. Tensors may view the file: do not write to it.
        container: how it was stored.
        unpickled: whether it took a full unpickle, so that code in it may have run.
        sha256: of the whole file, in hexadecimal.
    """

    tree: object
    container: Container
    unpickled: bool
    sha256: str


def read_weights(path: Path, allow_pickle: bool = False) -> Contents:
    """Read a file of weights: what `torch.save` writes, now or before 1.6, or safetensors.

    Zip archives and safetensors are mapped: their tensors take memory when they are used, and then
    the file's size at most. A legacy file's take its size at once.

    Args:
        path: the file; a link to one will do.
        allow_pickle: unpickle fully, and so perhaps run code, if there is no other way.

    Raises:
        CheckpointError: it is no regular file of these kinds; it is damaged; it needs a full
            unpickle that is not allowed, or that fails; or it claims or holds more than a file of
            its size can (see `zip_checks`, `pickle_checks` and `trees`).
    """
    path = Path(path)
    container = container_of(path)
    if container == "safetensors":
        value, unpickled = _read_safetensors(path), False
    else:
        scan = scan_legacy(path) if container == "legacy pickle" else _scan_zip(path)
        unpickled = bool(scan.disallowed or scan.beyond)
        if unpickled and not allow_pickle:
            _refuse_pickle(path, scan)
        value = _torch_load(path, container, weights_only=not unpickled)
    tree = _plain(path, value)
    return Contents(tree, container, unpickled, file_sha256(path))


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (`torch.jit.save`).

    Raises:
        CheckpointError: it cannot be read, or is a zip archive that is damaged.
    """
    return _is_archive(path, "torchscript")


def is_exported_program(path: Path) -> bool:
    """Whether a file is an exported program, `.pt2` (`torch.export.save`).

    Raises:
        CheckpointError: it cannot be read, or is a zip archive that is damaged.
    """
    return _is_archive(path, "exported program")


def is_onnx(path: Path) -> bool:
    """Whether a file begins as an ONNX model does: a protobuf whose field 1 is a small version.

    Raises:
        CheckpointError: it cannot be read.
    """
    return looks_like_onnx(first_bytes(Path(path)))


def _is_archive(path: Path, kind: str) -> bool:
    path = Path(path)
    return first_bytes(path).startswith(ZIP) and check_archive(path).kind == kind


def _scan_zip(path: Path) -> Scan:
    archive = check_archive(path)
    if archive.kind != "pickle":
        kinds = {
            "torchscript": "is a TorchScript archive: a graph and no weights alone; give it as a"
            " purifier or classifier itself",
            "exported program": "is an exported program (.pt2): a graph and no weights alone; give"
            " it as a purifier or classifier itself",
            "other": "is a zip archive that torch.save did not write (it has no data.pkl); unpack"
            " it if it holds the file",
        }
        raise CheckpointError(f"{path}: {kinds[archive.kind]}")
    for name, entry in archive.entries.items():
        if not entry.stored:
            raise CheckpointError(
                f"{path}: entry '{printable(name)}' is compressed, which torch.save never does;"
                f" load it and {SAVE_WEIGHTS}"
            )
    size = archive.entries["data.pkl"].size
    if size > MAX_PICKLE:
        raise CheckpointError(f"{path}: its pickle has {size} bytes; {MAX_PICKLE} are allowed")
    scan = scan_pickle(str(path), BytesIO(archive.read("data.pkl")))
    _check_storages(archive, scan)
    return scan


def _check_storages(archive: Archive, scan: Scan) -> None:
    for key, storage in scan.storages.items():
        entry = archive.entries.get(f"data/{key}")
        held = -1 if entry is None else entry.size
        if storage.bytes != held:
            what = "is not there" if entry is None else f"has {held} bytes"
            raise CheckpointError(
                f"{archive.path}: a tensor needs {storage.bytes} bytes of entry"
                f" 'data/{printable(key)}', which {what}: damaged"
            )


def _refuse_pickle(path: Path, scan: Scan) -> NoReturn:
    names = scan.disallowed
    wants = f"asks for {listed(names)}" if names else f"has an opcode {scan.beyond}"
    raise CheckpointError(
        f"{path}: {wants}, which only a full unpickle can load, and that can run any code;"
        f" {SAVE_WEIGHTS}, or give --allow-pickle if you trust whoever made this file"
    )


def _read_safetensors(path: Path) -> object:
    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {printable(str(error))}") from None


def _torch_load(path: Path, container: Container, weights_only: bool) -> object:
    # torch.load maps only what it opens by name, and takes a name in .safetensors at its word.
    mapped = container == "zip pickle" and not os.fspath(path).endswith(".safetensors")
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            return torch.load(  # noqa: TID251 - weights only, unless the user allows more
                path if mapped else file, map_location="cpu", weights_only=weights_only, mmap=mapped
            )
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{path}: needs the Python module '{printable(str(error.name))}', which is not"
            f" installed; load it where it was made and {SAVE_WEIGHTS}"
        ) from None
    except Exception as error:  # torch promises no list of what it raises over damaged bytes
        raise CheckpointError(f"{path}: PyTorch cannot load it: {_first_line(error)}") from None


def _plain(path: Path, value: object) -> object:
    try:
        return plain_tree(str(path), value, path.stat().st_size)
    except CheckpointError:
        raise
    except Exception as error:  # after a full unpickle, objects may do anything
        raise CheckpointError(f"{path}: what it holds is unusable: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """Of an error's text; of a refusal by PyTorch's restricted loader, the reason."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return printable(text.partition("\n")[0] or type(error).__name__)
