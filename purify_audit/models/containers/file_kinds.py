"""The kind of a file of weights, by its first bytes and not by its name."""

from io import BytesIO
from pathlib import Path
from typing import Literal, NoReturn

from purify_audit.core.errors import CheckpointError
from purify_audit.core.files import read_errors, regular_size
from purify_audit.core.records import printable
from purify_audit.models.containers import legacy
from purify_audit.models.containers.pickle_checks import MAX_PICKLE, names_in

Container = Literal["zip pickle", "legacy pickle", "safetensors"]

SAVE_WEIGHTS = "save its weights alone, with torch.save(model.state_dict(), FILE)"
"""The remedy for a file that cannot be read, for messages."""

ZIP = b"PK\x03\x04"
"""The first bytes of a zip archive."""

_START = 512  # bytes by which a file is recognised; a tar header is that long
_EDM = ("torch_utils.", "dnnlib.", "training.")  # modules of StyleGAN's and EDM's own code


def first_bytes(path: Path) -> bytes:
    """The first bytes of a regular file.

    Raises:
        CheckpointError: it is not a regular file, is empty, or cannot be read.
    """
    regular_size(path, CheckpointError, "a file of weights")
    with read_errors(path, CheckpointError), path.open("rb") as file:
        start = file.read(_START)
    if not start:
        raise CheckpointError(f"{path}: is empty")
    return start


def container_of(path: Path) -> Container:
    """The container of a file of weights; the contents of a zip archive are not yet checked.

    Raises:
        CheckpointError: not a regular file, or of an unsupported kind, which the message names.
    """
    start = first_bytes(path)
    if legacy.is_tar(start):
        raise CheckpointError(
            f"{path}: is a tar archive; if PyTorch wrote it, that was before 2017: load it there"
            f" and {SAVE_WEIGHTS}; else unpack it"
        )
    if start.startswith(ZIP):
        return "zip pickle"
    if start.startswith(legacy.START):
        return "legacy pickle"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return "safetensors"
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        _refuse_plain_pickle(path)
    raise CheckpointError(f"{path}: {_other(start)}")


def _refuse_plain_pickle(path: Path) -> NoReturn:
    with path.open("rb") as file:
        names = names_in(BytesIO(file.read(MAX_PICKLE)))
    named = f" that names {listed(names)}" if names else ""
    if any(name.startswith(_EDM) for name in names):
        raise CheckpointError(
            f"{path}: is a pickle{named}: EDM's and StyleGAN's files run code that is stored in"
            " them; convert it once, where their code is and you trust the file:"
            " torch.save(pickle.load(open(FILE, 'rb'))['ema'].state_dict(), 'edm.pt')"
        )
    raise CheckpointError(
        f"{path}: is a Python pickle{named}, not written by torch.save; load it where it was"
        f" created and {SAVE_WEIGHTS}"
    )


_SIGNATURES = {
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"BZh": "is compressed with bzip2; unpack it first",
    b"\xfd7zXZ\0": "is compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it first",
    b"Rar!": "is a RAR archive; unpack it first",
    b"\x89HDF": "is an HDF5 file (Keras writes these); convert the weights to safetensors",
    b"\x93NUMPY": "is a numpy array, not a file of weights",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; run `git lfs pull`",
}


def _other(start: bytes) -> str:
    """The kind of a file without weights, by its first bytes."""
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            return kind
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")):
        return (
            "is a web page, not the file it should be: the download failed or required a login;"
            " download it again"
        )
    if looks_like_onnx(start):
        return (
            "is an ONNX graph, not a file of weights; use it directly as a purifier or classifier"
        )
    if all(byte in b"\t\n\r\f" or byte >= 0x20 for byte in start) and 0x7F not in start:
        return "is a text file, not a file of weights"
    return "is neither what torch.save writes nor safetensors: damaged, or of another kind"


def looks_like_onnx(start: bytes) -> bool:
    """Whether a file with these first bytes is an ONNX model.

    That is a protobuf (onnx.proto, `ModelProto`) whose field 1 is a small version; writers go on
    with field 2, 7 or 8, which are the producer, the graph and the operator sets.
    """
    return (
        len(start) > 2 and start[0] == 0x08 and 1 <= start[1] <= 20 and start[2] in b"\x12\x3a\x42"
    )


def listed(names: list[str]) -> str:
    """The first three names of a pickle, for messages."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"`{printable(name)}`" for name in names[:3]) + more
