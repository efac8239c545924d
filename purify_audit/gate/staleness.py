"""Whether a report matches the models in this directory, by digests: no code is run or imported.

The digest covers a file, a folder's configurations and weights, a factory's source and arguments,
or the settings of an input transformation (`purify_audit.models.checkpoint`,
`purify_audit.models.user_code.importing`).
"""

import ast
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from purify_audit.core.digests import file_sha256
from purify_audit.core.errors import InputError
from purify_audit.core.records import printable
from purify_audit.models.formats.diffusers_folder import files_of, folder_sha256
from purify_audit.models.formats.hub import HUB
from purify_audit.report.schema import ModelInfo, Report
from purify_audit.spec.architectures import CodeArgs
from purify_audit.spec.card import ClassifierCard, CodeCard, GraphCard, TransformCard

State = Literal["current", "stale", "unknown"]
Role = Literal["purifier", "classifier"]


@dataclass(frozen=True, slots=True)
class Digest:
    """The digest of a model in this directory.

    Attributes:
        value: in hexadecimal; none if it cannot be computed without running code or a download.
        doubt: why it cannot be computed, or why a mismatch would prove nothing.
    """

    value: str | None
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model of a report, compared with the one in this directory.

    Attributes:
        role: its role in the report.
        source: as the report names it.
        expected: its digest in the report.
        actual: its digest in this directory.
    """

    role: Role
    source: str
    expected: str
    actual: Digest

    @property
    def state(self) -> State:
        """Current if the digests agree, stale if the model has changed, else unknown."""
        if self.actual.value == self.expected:
            return "current"
        return "unknown" if self.actual.doubt else "stale"


def compare_models(
    report: Report, folders: tuple[Path, ...], checkpoint: Path | None = None
) -> tuple[CheckedModel, ...]:
    """The models of a report, each compared with the one in this directory.

    Args:
        report: the report.
        folders: searched for relative paths, in this order.
        checkpoint: the purifier's file or folder, instead of the path in the report.

    Raises:
        InputError: a model cannot be read, or `checkpoint` is given for a model without a file.
    """
    models: dict[Role, ModelInfo] = {"purifier": report.checkpoint}
    if report.classifier is not None:
        models["classifier"] = report.classifier
    checked = []
    for role, model in models.items():
        actual = _digest(model, folders, checkpoint if role == "purifier" else None)
        checked.append(CheckedModel(role, model.source, model.sha256, actual))
    return tuple(checked)


def _digest(model: ModelInfo, folders: tuple[Path, ...], named: Path | None) -> Digest:
    card = model.card
    code = isinstance(card, CodeCard | ClassifierCard) and isinstance(card.network, CodeArgs)
    if named is not None and (code or isinstance(card, TransformCard)):
        raise InputError(f"{printable(model.source)}: is no file, so --checkpoint cannot name it")
    if isinstance(card, TransformCard):  # no file: defined by its settings
        return Digest(hashlib.sha256(card.model_dump_json().encode()).hexdigest())
    if isinstance(card.network, CodeArgs):
        return _of_code(card.network, folders)
    if named is None and model.source.startswith(HUB):
        return Digest(None, "it is on a hub")
    path = _first(model.source, folders) if named is None else named
    if path is None:
        return Digest(None, "its file was not found")
    digest = _of_path(path)
    if isinstance(card, GraphCard) and path.suffix == ".onnx" and digest.value != model.sha256:
        return Digest(digest.value, "the digest of a graph may cover weights in other files")
    return digest


def _of_path(path: Path) -> Digest:
    if not path.is_dir():
        return Digest(file_sha256(path))
    try:
        return Digest(folder_sha256(path, files_of(path)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _first(name: str, folders: tuple[Path, ...]) -> Path | None:
    """The first folder's file of a name; an absolute path ignores the folders."""
    try:
        return next((folder / name for folder in folders if (folder / name).exists()), None)
    except (OSError, ValueError):  # too long, or with a NUL byte: not a file name
        return None


def _of_code(network: CodeArgs, folders: tuple[Path, ...]) -> Digest:
    """As `code_sha256` of `user_code.importing`, but the source file is found by its name alone.

    Importing would run it. If the file only imports or decorates the factory, the source is in
    another file, and a mismatch proves nothing.
    """
    module, colon, attribute = network.factory.partition(":")
    if not colon:
        return Digest(None, "its source cannot be located without importing it")
    source = _source(module, folders)
    if source is None:
        return Digest(None, "its source file was not found")
    digest = hashlib.sha256(json.dumps(network.model_dump(), sort_keys=True).encode())
    arguments = (_first(text, folders) for _, text in sorted(network.arguments.items()) if text)
    for file in (source, *arguments):
        if file is not None and file.is_file():
            digest.update(file_sha256(file).encode())
    defined = _defines(source, attribute.partition(".")[0])
    doubt = "" if defined else f"{source.name} does not define it, so its source may be elsewhere"
    return Digest(digest.hexdigest(), doubt)


def _source(module: str, folders: tuple[Path, ...]) -> Path | None:
    """The file of a module, named by its dotted name or its path."""
    if module.endswith(".py"):
        return _first(module, folders)
    path = module.replace(".", "/")
    return _first(f"{path}.py", folders) or _first(f"{path}/__init__.py", folders)


def _defines(source: Path, name: str) -> bool:
    """Whether a file defines an undecorated function or class of this name at its top level."""
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(
        isinstance(node, ast.FunctionDef | ast.ClassDef)
        and node.name == name
        and not node.decorator_list
        for node in tree.body
    )
