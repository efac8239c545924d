"""Open a source (a file, folder, factory or input transformation) as a checkpoint."""

import os
from dataclasses import replace
from pathlib import Path

from purify_audit.core.errors import CheckpointError, PlanError
from purify_audit.core.records import printable
from purify_audit.models.checkpoint import (
    METADATA_KEY,
    Checkpoint,
    read_checkpoint,
    read_header,
    transform_checkpoint,
)
from purify_audit.models.containers.file_kinds import container_of
from purify_audit.models.exported.read import graph_container, read_graph
from purify_audit.models.formats.hub import HUB, download
from purify_audit.models.formats.recognise import read_published
from purify_audit.models.purifiers.transforms import TRANSFORM_NAMES, parse_transform
from purify_audit.models.user_code.arguments import is_factory
from purify_audit.models.user_code.factory import code_checkpoint
from purify_audit.spec.card import ClassifierCard, ImageSpec
from purify_audit.spec.load_options import Assumption, LoadOptions

_ANY_IMAGE = ImageSpec(channels=1, height=8, width=8)


_OPTIONS = {"preset": "--as", "weights": "--weights", "assume": "--assume", "arguments": "--arg"}


def open_checkpoint(
    text: str,
    spec: ImageSpec | None,
    options: LoadOptions | None = None,
    overrides: dict[str, str] | None = None,
) -> Checkpoint:
    """The purifier of a path, a factory, or an input transformation such as `jpeg:quality=75`.

    Args:
        text: the source; an existing file takes precedence over a transformation, and a
            transformation over a factory (`package.module:function`).
        spec: shape of the images it will receive, if known.
        options: settings that the source does not contain.
        overrides: `t_star` and `sampler` of the plan, as text; used for a diffusion model that
            does not define them.

    Raises:
        InputError: it cannot be used.
    """
    options = options or LoadOptions()
    exists = os.path.exists(text)
    if not exists and text.partition(":")[0] in TRANSFORM_NAMES:
        _refuse_unused(f"{text}: is a transformation", options, ())
        return transform_checkpoint(text, parse_transform(text, spec or _ANY_IMAGE))
    if not exists and _is_code(text):
        _refuse_unused(f"{text}: is code", options, ("arguments",))
        return code_checkpoint(text, options.arguments, spec)
    if not exists and not text.startswith(HUB) and "/" not in text and "." not in text:
        parse_transform(text, _ANY_IMAGE)  # raises an error with the nearest name
    return _open_file(text, spec, options, overrides or {})


def open_classifier(text: str, spec: ImageSpec, options: LoadOptions | None = None) -> Checkpoint:
    """The classifier of a path or of code.

    Raises:
        InputError: it cannot be used.
    """
    options = options or LoadOptions()
    if not os.path.exists(text) and _is_code(text):
        _refuse_unused(f"{text}: is code", options, ("arguments",))
        return code_checkpoint(text, options.arguments, spec, classifier=True)
    checkpoint = _open_file(text, spec, options, {})
    if not isinstance(checkpoint.card, ClassifierCard):
        raise CheckpointError(f"{text}: is a purifier, not a classifier")
    return checkpoint


def _is_code(text: str) -> bool:
    return is_factory(text) and not text.startswith(HUB)


def _open_file(
    text: str, spec: ImageSpec | None, options: LoadOptions, overrides: dict[str, str]
) -> Checkpoint:
    path = download(text) if text.startswith(HUB) else Path(text)
    try:
        path.stat()
    except FileNotFoundError:
        raise CheckpointError(f"{text}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or "not a file name"
        raise CheckpointError(f"{printable(text)}: cannot be read: {reason}") from None
    if path.is_dir():
        _refuse_unused(f"{text}: is a folder of weights", options, ("assume",))
        checkpoint = read_published(path, options, spec, overrides)
        return _at_revision(text, checkpoint) if text.startswith(HUB) else checkpoint
    if is_native(path):
        _refuse_unused(f"{text}: has a card, which defines how to run it", options, ())
        return read_checkpoint(path)
    if graph_container(path) is not None:
        _refuse_unused(f"{text}: is a graph", options, ("assume",))
        return read_graph(path, None, options)
    _refuse_unused(f"{text}: is a file of weights", options, ("preset", "weights", "assume"))
    return read_published(path, options, spec, overrides)


def _at_revision(text: str, checkpoint: Checkpoint) -> Checkpoint:
    """A model of the hub under its requested name, with its revision recorded."""
    assert checkpoint.path is not None, "a folder was read"
    assert checkpoint.recognised is not None, "no folder is a native checkpoint"
    revision = Assumption(what="revision", value=checkpoint.path.name, source="the hub's folder")
    recognised = checkpoint.recognised.model_copy(
        update={"assumptions": (revision, *checkpoint.recognised.assumptions)}
    )
    return replace(checkpoint, source=text, recognised=recognised)


def _refuse_unused(what: str, options: LoadOptions, used: tuple[str, ...]) -> None:
    """Raise PlanError for options without effect, except the permission to unpickle."""
    given = {name for name in _OPTIONS if getattr(options, name)}
    if unused := [_OPTIONS[name] for name in _OPTIONS if name in given - set(used)]:
        raise PlanError(f"{what}; leave out {' and '.join(unused)}")


def is_native(path: Path) -> bool:
    """Whether a file is safetensors with a card.

    Raises:
        CheckpointError: it is safetensors, but damaged; or cannot be read.
    """
    if graph_container(path) is not None or container_of(path) != "safetensors":
        return False
    return METADATA_KEY in read_header(path).get("__metadata__", {})
