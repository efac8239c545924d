"""Recognise and read published checkpoints; no code in them is executed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from purify_audit.core.errors import CheckpointError, PlanError
from purify_audit.core.records import printable
from purify_audit.models.checkpoint import Checkpoint, TensorInfo
from purify_audit.models.containers.read import Contents, read_weights
from purify_audit.models.containers.trees import state_dicts, strip_prefix
from purify_audit.models.formats import (
    adm,
    classifiers,
    ddpm,
    diffusers_folder,
    edm,
    lucidrains,
    restoration,
    score_sde,
)
from purify_audit.models.formats.complete_card import complete_card, preset_of
from purify_audit.models.formats.diffusers_keys import modern_keys
from purify_audit.models.formats.draft import Format, State
from purify_audit.models.networks import build_network
from purify_audit.spec.card import Card, DiffusionCard, ImageSpec
from purify_audit.spec.load_options import Assumption, LoadOptions, Recognised

if TYPE_CHECKING:
    from torch import Tensor

FORMATS: tuple[Format, ...] = (
    score_sde.FORMAT,
    adm.FORMAT,
    ddpm.FORMAT,
    edm.FORMAT,
    lucidrains.FORMAT,
    *classifiers.FORMATS,
    *restoration.FORMATS,
)
_INNER = ("ema_model.", "online_model.", "model.", "net.", "unet.", "denoise_fn.", "network.")
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16"}
_DTYPES |= {torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8"}
_AVERAGED = (
    "score_sde",
    "adm",
    "ddpm",
    "edm",
    "lucidrains",
)  # publications sample from the average
_DDIM_LIST = {"0": "raw", "4": "ema"}  # [model, optimiser, epoch, step, moving average]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A set of weights in a file, of a known format.

    Attributes:
        path: its location in the file, names joined by dots.
        format: its layout.
        state: its tensors.
    """

    path: str
    format: Format
    state: State

    @property
    def kind(self) -> str:
        """`ema` if its path names a moving average, else `raw`."""
        parts = self.path.lower().split(".")
        words = [word for part in parts for word in part.split("_")]
        if "online" in words:  # ema-pytorch stores both the trained weights and the average
            return "raw"
        averaged = any(word.startswith("ema") or word.endswith("ema") for word in words)
        return "ema" if averaged else _DDIM_LIST.get(parts[0], "raw")


def read_published(
    path: Path,
    options: LoadOptions,
    image: ImageSpec | None,
    overrides: dict[str, str] | None = None,
) -> Checkpoint:
    """Read a checkpoint of a published format.

    Args:
        path: a file of weights, or a diffusers folder.
        options: the user's answers to what it does not contain.
        image: the images to purify, if known.
        overrides: for diffusion models: `t_star` and `sampler` of the plan, as further answers.

    Raises:
        CheckpointError: it cannot be read, or is of no known format.
        PlanError: a setting is missing; the message lists all.
        CardError: an answer contradicts the file.
    """
    if path.is_dir():
        return _read_folder(path, _with_answers(options, overrides), image)
    contents = read_weights(path, options.allow_pickle)
    with _prefixed(f"{path}: "):
        candidates = _candidates(contents.tree, options.preset == restoration.SPANDREL.name)
    chosen, note = _choose(path, candidates, options)
    with _prefixed(f"{path}: looks like {chosen.format.title}, but "):
        draft = chosen.format.draft(chosen.state)
    notes = (*note, *_unknown_average(chosen, note))
    if draft.fields["family"] == "diffusion":
        options = _with_answers(options, overrides)
    card, assumed = complete_card(
        path, chosen.format.name, draft.fields, options, image, draft.conventions
    )
    recognised = Recognised(
        format=chosen.format.name,
        container=contents.container,
        unpickled=contents.unpickled,
        assumptions=(*notes, *assumed),
    )
    if chosen.path.startswith("ema.shadow_params"):
        tensors = _named_average(path, card, contents, chosen)
    else:
        tensors = {name: chosen.state[stored] for name, stored in draft.tensors.items()}
    return _checkpoint(path, contents.sha256, card, recognised, tensors)


@contextmanager
def _prefixed(prefix: str) -> Iterator[None]:
    """Put a prefix before the message of a CheckpointError raised within."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{prefix}{error}") from None


def _with_answers(options: LoadOptions, overrides: dict[str, str] | None) -> LoadOptions:
    return options.model_copy(update={"assume": (overrides or {}) | options.assume})


def _checkpoint(
    path: Path, sha256: str, card: Card, recognised: Recognised, tensors: dict[str, "Tensor"]
) -> Checkpoint:
    infos = {
        n: TensorInfo(_DTYPES.get(t.dtype, "other"), tuple(t.shape)) for n, t in tensors.items()
    }
    return Checkpoint(str(path), card, infos, sha256, path, lambda: dict(tensors), recognised)


def _candidates(tree: object, for_spandrel: bool) -> list[Candidate]:
    states = state_dicts(tree)
    if for_spandrel:
        candidates = [Candidate(path, restoration.SPANDREL, s) for path, s in states.items()]
    else:
        candidates = [c for path, state in states.items() for c in _recognise(path, state)]
    if _shadow(tree) is not None:
        raw = [each for each in candidates if each.format is score_sde.FORMAT]
        candidates += [Candidate("ema.shadow_params", each.format, each.state) for each in raw]
    if not candidates:
        names = sorted({name for state in states.values() for name in state})
        listed = ", ".join(map(printable, names[:3]))
        raise CheckpointError(
            f"its tensor names are of no known format ({listed or 'there are none'}, …);"
            " write a card and attach it with `purify-audit attach`, or name the code that builds"
            " the purifier with --purifier module:factory"
        )
    return candidates


def _recognise(path: str, state: State, depth: int = 4) -> Iterator[Candidate]:
    """The formats of a state dict, perhaps inside wrappers, which prefix its names."""
    state = strip_prefix(dict(state))
    for form in FORMATS:
        if form.matches(state):
            yield Candidate(path, form, state)
            return
    for inner in _INNER:
        part = {n.removeprefix(inner): t for n, t in state.items() if n.startswith(inner)}
        if part and depth:
            yield from _recognise(f"{path}.{inner}".strip("."), part, depth - 1)


def _shadow(tree: object) -> list["Tensor"] | None:
    match tree:
        case {"ema": {"shadow_params": [*tensors]}} if all(
            isinstance(each, torch.Tensor) for each in tensors
        ):
            return tensors
    return None


def _choose(
    path: Path, candidates: list[Candidate], options: LoadOptions
) -> tuple[Candidate, tuple[Assumption, ...]]:
    """The weights to use; the choice between raw and averaged weights is never a guess."""
    formats = {each.format.name for each in candidates}
    if len(formats) > 1:
        raise CheckpointError(
            f"{path}: contains weights of several formats ({', '.join(sorted(formats))}); save"
            " those to audit in a separate file"
        )
    preset = preset_of(options, candidates[0].format.name, str(path))
    candidates = _distinct(candidates)
    wanted = options.weights or (preset.weights if preset else None)
    kinds = {each.kind for each in candidates}
    if len(candidates) > 1 and wanted is None and len(kinds) > 1:
        raise PlanError(
            f"{path}: contains trained weights and their moving average; choose --weights ema"
            " (from which publications sample) or --weights raw"
        )
    fitting = [each for each in candidates if wanted is None or each.kind == wanted]
    if len(candidates) == 1:
        fitting = candidates
        kind = candidates[0].kind
        if options.weights not in (None, kind):
            raise PlanError(f"{path}: contains no {options.weights} weights, only {kind}")
    if len(fitting) != 1:
        places = ", ".join(printable(each.path or "the top") for each in fitting or candidates)
        raise PlanError(f"{path}: has weights at {places}; save those to audit in a separate file")
    if len(candidates) == 1:
        return fitting[0], ()
    source = "given by the user" if options.weights else (preset.source if preset else "the file")
    note = Assumption(what="weights", value=fitting[0].kind, source=source)
    return fitting[0], (note,)


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    """Without copies: ema-pytorch stores the trained weights twice."""
    kept: list[Candidate] = []
    for each in candidates:
        if not any(each.kind == other.kind and _same(each.state, other.state) for other in kept):
            kept.append(each)
    return kept


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def _unknown_average(chosen: Candidate, note: tuple[Assumption, ...]) -> tuple[Assumption, ...]:
    """The note that a single set of weights of a diffusion model may or may not be averaged."""
    if note or chosen.kind == "ema" or chosen.format.name not in _AVERAGED:
        return ()
    return (
        Assumption(
            what="weights",
            value="the only ones of this layout in the file",
            source="it does not say whether they are a moving average; the denoising check speaks",
        ),
    )


def _named_average(
    path: Path, card: Card, contents: Contents, chosen: Candidate
) -> dict[str, "Tensor"]:
    """Score_sde's moving average, a list, under the names of the network's trained parameters."""
    assert isinstance(card, DiffusionCard)
    with torch.device("meta"):
        network = build_network(card)
    trained = [(n, tuple(p.shape)) for n, p in network.named_parameters() if p.requires_grad]
    shadow = _shadow(contents.tree)
    assert shadow is not None
    with _prefixed(f"{path}: "):
        return score_sde.averaged(trained, shadow, chosen.state)


def _read_folder(folder: Path, options: LoadOptions, image: ImageSpec | None) -> Checkpoint:
    fields = diffusers_folder.draft_fields(folder)
    contents = read_weights(diffusers_folder.weights_in(folder), options.allow_pickle)
    with _prefixed(f"{folder}: "):
        states = list(state_dicts(contents.tree).values())
        if len(states) != 1:
            raise CheckpointError(f"its file contains {len(states)} sets of weights, not one")
        (state,) = states
        names = modern_keys(list(state))
    conventions = ("data_range",) if "data_range" in fields else ()
    card, assumed = complete_card(folder, "diffusers", fields, options, image, conventions)
    tensors = {names[name]: tensor for name, tensor in state.items()}
    recognised = Recognised(
        format="diffusers",
        container=f"folder of {contents.container}",
        unpickled=contents.unpickled,
        assumptions=assumed,
    )
    sha256 = diffusers_folder.folder_sha256(folder, diffusers_folder.files_of(folder))
    return _checkpoint(folder, sha256, card, recognised, tensors)
