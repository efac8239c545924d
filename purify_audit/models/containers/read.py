"""Read untrusted files of weights without executing code in them.

The kind of a file is determined by its content, not its name. PyTorch files are first checked from
their headers (`zip_checks`, `legacy`, `pickle_checks`), then read by `torch.load` with
`weights_only=True`, and the result is checked again (`trees`). A full unpickle, which can run any
code, happens only if the user allows it and the file needs it.
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
from purify_audit.models.containers.file_kinds import SAVE_WEIGHTS, Container, container_of, listed
from purify_audit.models.containers.legacy import scan_legacy
from purify_audit.models.containers.pickle_checks import MAX_PICKLE, Scan, scan_pickle
from purify_audit.models.containers.trees import plain_tree
from purify_audit.models.containers.zip_checks import Archive, check_archive


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of a file of weights.

    Attributes:
        tree: nested dict, list and tuple of dense tensors on the CPU, str, numbers and None. For
            safetensors, one dict of tensors by name. Tensors may view the file: do not write to it.
        container: the kind of file.
        unpickled: whether a full unpickle was needed, so that code in it may have run.
        sha256: of the whole file, in hexadecimal.
    """

    tree: object
    container: Container
    unpickled: bool
    sha256: str


def read_weights(path: Path, allow_pickle: bool = False) -> Contents:
    """Read a file written by `torch.save`, now or before 1.6, or safetensors.

    Zip archives and safetensors are memory-mapped, so tensors take memory on use, at most the size
    of the file. Legacy files are read at once.

    Args:
        path: the file, or a link to it.
        allow_pickle: unpickle fully, which may run code, if there is no other way.

    Raises:
        CheckpointError: not a regular file of these kinds; damaged; a full unpickle is needed and
            not allowed, or fails; or the file declares or contains more than its size permits (see
            `zip_checks`, `pickle_checks` and `trees`).
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


def _scan_zip(path: Path) -> Scan:
    archive = check_archive(path)
    if archive.kind != "pickle":
        kinds = {
            "torchscript": "is a TorchScript archive: a graph and no weights alone; use it"
            " directly as a purifier or classifier",
            "exported program": "is an exported program (.pt2): a graph and no weights alone; use"
            " it directly as a purifier or classifier",
            "other": "is a zip archive that torch.save did not write (it has no data.pkl); unpack"
            " it if it contains the file",
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
        present = -1 if entry is None else entry.size
        if storage.bytes != present:
            actual = "is missing" if entry is None else f"has {present} bytes"
            raise CheckpointError(
                f"{archive.path}: a tensor needs {storage.bytes} bytes of entry"
                f" 'data/{printable(key)}', which {actual}: damaged"
            )


def _refuse_pickle(path: Path, scan: Scan) -> NoReturn:
    names = scan.disallowed
    needs = f"names {listed(names)}" if names else f"has an opcode {scan.beyond}"
    raise CheckpointError(
        f"{path}: {needs}, which only a full unpickle can load, and that can run any code;"
        f" {SAVE_WEIGHTS}, or use --allow-pickle if you trust the author of this file"
    )


def _read_safetensors(path: Path) -> object:
    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {printable(str(error))}") from None


def _torch_load(path: Path, container: Container, weights_only: bool) -> object:
    # torch.load maps only files opened by name, and decides by the suffix .safetensors.
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
            f" installed; load it where it was created and {SAVE_WEIGHTS}"
        ) from None
    except Exception as error:  # torch does not document its errors on damaged files
        raise CheckpointError(f"{path}: PyTorch cannot load it: {_first_line(error)}") from None


def _plain(path: Path, value: object) -> object:
    try:
        return plain_tree(str(path), value, path.stat().st_size)
    except CheckpointError:
        raise
    except Exception as error:  # after a full unpickle, objects can run any code
        raise CheckpointError(f"{path}: its contents are unusable: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """The first line of an error; without the preamble of PyTorch's restricted loader."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return printable(text.partition("\n")[0] or type(error).__name__)
