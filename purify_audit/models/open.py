"""From what the user names (a file, a folder, code, a transformation) to a checkpoint."""

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
    """The purifier of a path, of code, or of an input transformation such as `jpeg:quality=75`.

    Args:
        text: what the user gave; a file of that name wins over a transformation, and a
            transformation over a factory (`package.module:function`).
        spec: the images that it will get, if they are known.
        options: the user's answers to what it does not say of itself.
        overrides: `t_star` and `sampler` of the plan, as text: of a diffusion model that does not
            say them they are answers too.

    Raises:
        InputError: it cannot be used.
    """
    options = options or LoadOptions()
    here = os.path.exists(text)
    if not here and text.partition(":")[0] in TRANSFORM_NAMES:
        _refuse_unused(f"{text}: is a transformation", options, ())
        return transform_checkpoint(text, parse_transform(text, spec or _ANY_IMAGE))
    if not here and _is_code(text):
        _refuse_unused(f"{text}: is code", options, ("arguments",))
        return code_checkpoint(text, options.arguments, spec)
    if not here and not text.startswith(HUB) and "/" not in text and "." not in text:
        parse_transform(text, _ANY_IMAGE)  # names the nearest
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
        told = getattr(error, "strerror", None) or "not a file's name"
        raise CheckpointError(f"{printable(text)}: cannot be read: {told}") from None
    if path.is_dir():
        _refuse_unused(f"{text}: is a folder of weights", options, ("assume",))
        found = read_published(path, options, spec, overrides)
        return _at_revision(text, found) if text.startswith(HUB) else found
    if is_native(path):
        _refuse_unused(f"{text}: has a card, which says how to run it", options, ())
        return read_checkpoint(path)
    if graph_container(path) is not None:
        _refuse_unused(f"{text}: is a graph", options, ("assume",))
        return read_graph(path, None, options)
    _refuse_unused(f"{text}: is a file of weights", options, ("preset", "weights", "assume"))
    return read_published(path, options, spec, overrides)


def _at_revision(text: str, found: Checkpoint) -> Checkpoint:
    """A model of the hub under the name it was asked for, its revision recorded."""
    assert found.path is not None, "a folder was read"
    assert found.recognised is not None, "nothing of the hub is read as ours"
    revision = Assumption(what="revision", value=found.path.name, source="the hub's folder")
    recognised = found.recognised.model_copy(
        update={"assumptions": (revision, *found.recognised.assumptions)}
    )
    return replace(found, source=text, recognised=recognised)


def _refuse_unused(what: str, options: LoadOptions, used: tuple[str, ...]) -> None:
    """Raise PlanError for answers that nothing would read; to allow unpickling answers nothing."""
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
