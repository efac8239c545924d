"""Is a saved report about the models that lie here? By digests alone: nothing is run or imported.

What a model's digest is taken over differs by what it is (`purify_audit.models.checkpoint`,
`purify_audit.models.user_code.importing.code_sha256`): a file, a folder's configurations and weights, a factory's
source and arguments, or the settings of an input transformation.
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
    """The digest of what lies here.

    Attributes:
        value: in hexadecimal; none where it cannot be had without running code or a network.
        doubt: why it cannot be had, or why another value than the report's proves nothing.
    """

    value: str | None
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """A model of a report, held against what lies here.

    Attributes:
        role: what it is to the report.
        source: as the report names it.
        expected: its digest in the report.
        here: its digest here.
    """

    role: Role
    source: str
    expected: str
    here: Digest

    @property
    def state(self) -> State:
        """Fresh if the digests agree; stale if they surely differ; else unknown."""
        if self.here.value == self.expected:
            return "current"
        return "unknown" if self.here.doubt else "stale"


def compare_models(
    report: Report, folders: tuple[Path, ...], checkpoint: Path | None = None
) -> tuple[Held, ...]:
    """The models of a report, each with its digest here.

    Args:
        report: the report.
        folders: where relative paths are looked for, in this order.
        checkpoint: the purifier's file or folder, wherever the report says that it was.

    Raises:
        InputError: what lies here cannot be read, or a file was named for what is none.
    """
    models: dict[Role, ModelInfo] = {"purifier": report.checkpoint}
    if report.classifier is not None:
        models["classifier"] = report.classifier
    held = []
    for role, model in models.items():
        here = _digest(model, folders, checkpoint if role == "purifier" else None)
        held.append(Held(role, model.source, model.sha256, here))
    return tuple(held)


def _digest(model: ModelInfo, folders: tuple[Path, ...], named: Path | None) -> Digest:
    card = model.card
    code = isinstance(card, CodeCard | ClassifierCard) and isinstance(card.network, CodeArgs)
    if named is not None and (code or isinstance(card, TransformCard)):
        raise InputError(f"{printable(model.source)}: is no file, so --checkpoint cannot name it")
    if isinstance(card, TransformCard):  # no file: its settings are all that it is
        return Digest(hashlib.sha256(card.model_dump_json().encode()).hexdigest())
    if isinstance(card.network, CodeArgs):
        return _of_code(card.network, folders)
    if named is None and model.source.startswith(HUB):
        return Digest(None, "it lies on a hub and not here")
    path = _first(model.source, folders) if named is None else named
    if path is None:
        return Digest(None, "there is no such file here")
    found = _of_path(path)
    if isinstance(card, GraphCard) and path.suffix == ".onnx" and found.value != model.sha256:
        return Digest(found.value, "the digest of a graph may cover weights in other files")
    return found


def _of_path(path: Path) -> Digest:
    if not path.is_dir():
        return Digest(file_sha256(path))
    try:
        return Digest(folder_sha256(path, files_of(path)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _first(name: str, folders: tuple[Path, ...]) -> Path | None:
    """The first place where there is something of a name; an absolute name has one place."""
    try:
        return next((folder / name for folder in folders if (folder / name).exists()), None)
    except (OSError, ValueError):  # too long, or with a NUL: no file's name
        return None


def _of_code(network: CodeArgs, folders: tuple[Path, ...]) -> Digest:
    """As `purify_audit.models.user_code.importing.code_sha256`, with the source found by its name alone.

    Importing would run it. So a factory that its file only imports or decorates has its source
    elsewhere, and a difference proves nothing.
    """
    module, colon, attribute = network.factory.partition(":")
    if not colon:
        return Digest(None, "its source is found only by importing it")
    source = _source(module, folders)
    if source is None:
        return Digest(None, "its source does not lie here")
    digest = hashlib.sha256(json.dumps(network.model_dump(), sort_keys=True).encode())
    arguments = (_first(text, folders) for _, text in sorted(network.arguments.items()) if text)
    for file in (source, *arguments):
        if file is not None and file.is_file():
            digest.update(file_sha256(file).encode())
    inside = _defines(source, attribute.partition(".")[0])
    doubt = "" if inside else f"{source.name} does not define it, so its source may be elsewhere"
    return Digest(digest.hexdigest(), doubt)


def _source(module: str, folders: tuple[Path, ...]) -> Path | None:
    """The file of a module's name, or of the path of a Python file."""
    if module.endswith(".py"):
        return _first(module, folders)
    path = module.replace(".", "/")
    return _first(f"{path}.py", folders) or _first(f"{path}/__init__.py", folders)


def _defines(source: Path, name: str) -> bool:
    """Whether a file defines a function or class of a name at its top level, undecorated."""
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    makers = (ast.FunctionDef, ast.ClassDef)
    return any(
        isinstance(node, makers) and node.name == name and not node.decorator_list
        for node in tree.body
    )
