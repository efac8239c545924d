"""A checkpoint of any format that is known, read without running what is in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from purify_audit.core.errors import CheckpointError, PlanError
from purify_audit.core.records import printable
from purify_audit.models.checkpoint import Checkpoint, TensorInfo
from purify_audit.models.containers.read import Contents, read_weights, state_dicts, strip_prefix
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
from purify_audit.models.formats.draft import Draft, Format, State
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
_AVERAGED = ("score_sde", "adm", "ddpm", "edm", "lucidrains")  # as publications sample from them
_DDIM_LIST = {"0": "raw", "4": "ema"}  # [model, optimiser, epoch, step, moving average]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A set of weights in a file that a format recognises.

    Attributes:
        path: where in the file, names joined by dots.
        format: whose layout.
        state: its tensors.
    """

    path: str
    format: Format
    state: State

    @property
    def kind(self) -> str:
        """`ema` if its place in the file says that it is the moving average, else `raw`."""
        parts = self.path.lower().split(".")
        words = [word for part in parts for word in part.split("_")]
        if "online" in words:  # ema-pytorch keeps the trained weights beside their average
            return "raw"
        averaged = any(word.startswith("ema") or word.endswith("ema") for word in words)
        return "ema" if averaged else _DDIM_LIST.get(parts[0], "raw")


def read_published(
    path: Path,
    options: LoadOptions,
    image: ImageSpec | None,
    overrides: dict[str, str] | None = None,
) -> Checkpoint:
    """A checkpoint of another format than ours.

    Args:
        path: a file of weights, or a diffusers folder.
        options: the user's answers to what it does not say.
        image: the images that will be purified, if they are known.
        overrides: more answers, for diffusion models: the plan's `t_star` and `sampler`.

    Raises:
        CheckpointError: it cannot be read, or is of no known format.
        PlanError: something is left to be said; the message lists it.
        CardError: what was said contradicts the file.
    """
    if path.is_dir():
        return _read_folder(path, _also(options, overrides), image)
    contents = read_weights(path, options.allow_pickle)
    try:
        found = _candidates(contents.tree, options.preset == restoration.SPANDREL.name)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    chosen, note = _choose(path, found, options)
    try:
        draft = chosen.format.draft(chosen.state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: looks like {chosen.format.title}, but {error}") from None
    notes = (*note, *_silent_average(chosen, note))
    if draft.fields["family"] == "diffusion":
        options = _also(options, overrides)
    card, assumed = complete_card(
        path, chosen.format.name, draft.fields, options, image, draft.conventions
    )
    recognised = Recognised(
        format=chosen.format.name,
        container=contents.container,
        unpickled=contents.unpickled,
        assumptions=(*notes, *assumed),
    )
    state = chosen.state
    if chosen.path.startswith("ema.shadow_params"):
        state = _named_average(path, card, contents, chosen)
        draft = Draft(draft.fields, {name: name for name in state})
    tensors = {name: state[stored] for name, stored in draft.tensors.items()}
    return _checkpoint(path, contents.sha256, (card, recognised), tensors)


def _also(options: LoadOptions, overrides: dict[str, str] | None) -> LoadOptions:
    return options.model_copy(update={"assume": (overrides or {}) | options.assume})


def _checkpoint(
    path: Path, sha256: str, what: tuple[Card, Recognised], tensors: dict[str, "Tensor"]
) -> Checkpoint:
    card, recognised = what
    infos = {
        n: TensorInfo(_DTYPES.get(t.dtype, "other"), tuple(t.shape)) for n, t in tensors.items()
    }
    return Checkpoint(str(path), card, infos, sha256, path, lambda: dict(tensors), recognised)


def _candidates(tree: object, for_spandrel: bool) -> list[Candidate]:
    states = state_dicts(tree)
    if for_spandrel:
        found = [Candidate(place, restoration.SPANDREL, each) for place, each in states.items()]
    else:
        found = [c for place, each in states.items() for c in _recognise(place, each)]
    if _shadow(tree) is not None:
        raw = [each for each in found if each.format is score_sde.FORMAT]
        found += [Candidate("ema.shadow_params", each.format, each.state) for each in raw]
    if not found:
        names = sorted({name for state in states.values() for name in state})
        listed = ", ".join(map(printable, names[:3]))
        raise CheckpointError(
            f"no known format has tensors of such names ({listed or 'there are none'}, …);"
            " write a card and attach it with `purify-audit attach`, or give the code that builds"
            " the purifier with --purifier module:factory"
        )
    return found


def _recognise(place: str, state: State, depth: int = 4) -> Iterator[Candidate]:
    """What is in a state dict, perhaps inside wrappers, which put a prefix before its names."""
    state = strip_prefix(dict(state))
    for form in FORMATS:
        if form.marks(state):
            yield Candidate(place, form, state)
            return
    for inner in _INNER:
        part = {n.removeprefix(inner): t for n, t in state.items() if n.startswith(inner)}
        if part and depth:
            yield from _recognise(f"{place}.{inner}".strip("."), part, depth - 1)


def _shadow(tree: object) -> list["Tensor"] | None:
    match tree:
        case {"ema": {"shadow_params": [*tensors]}} if all(
            isinstance(each, torch.Tensor) for each in tensors
        ):
            return tensors
    return None


def _choose(
    path: Path, found: list[Candidate], options: LoadOptions
) -> tuple[Candidate, tuple[Assumption, ...]]:
    """The weights to use; a moving average and its raw twin are never told apart by a guess."""
    formats = {each.format.name for each in found}
    if len(formats) > 1:
        raise CheckpointError(
            f"{path}: holds weights of several formats ({', '.join(sorted(formats))}); save the"
            " ones to audit in a file of their own"
        )
    preset = preset_of(options, found[0].format.name, str(path))
    found = _distinct(found)
    wanted = options.weights or (preset.weights if preset else None)
    kinds = {each.kind for each in found}
    if len(found) > 1 and wanted is None and len(kinds) > 1:
        raise PlanError(
            f"{path}: holds trained weights and their moving average; say which with --weights ema"
            " (what publications sample from) or --weights raw"
        )
    fitting = [each for each in found if wanted is None or each.kind == wanted]
    if len(found) == 1:
        fitting = found
        if options.weights is not None and found[0].kind != options.weights:
            raise PlanError(f"{path}: holds no {options.weights} weights, only {found[0].kind}")
    if len(fitting) != 1:
        places = ", ".join(printable(each.path or "the top") for each in fitting or found)
        raise PlanError(
            f"{path}: weights lie at {places}; save the ones to audit in a file of their own"
        )
    if len(found) == 1:
        return fitting[0], ()
    source = "given by the user" if options.weights else (preset.source if preset else "the file")
    note = Assumption(what="weights", value=fitting[0].kind, source=source)
    return fitting[0], (note,)


def _distinct(found: list[Candidate]) -> list[Candidate]:
    """Without copies of what is there already: ema-pytorch stores the trained weights again."""
    kept: list[Candidate] = []
    for each in found:
        if not any(each.kind == other.kind and _same(each.state, other.state) for other in kept):
            kept.append(each)
    return kept


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def _silent_average(chosen: Candidate, note: tuple[Assumption, ...]) -> tuple[Assumption, ...]:
    """A lone set of a diffusion model's weights does not say whether it is the moving average."""
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
    try:
        return score_sde.averaged(trained, shadow, chosen.state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read_folder(folder: Path, options: LoadOptions, image: ImageSpec | None) -> Checkpoint:
    fields = diffusers_folder.draft_fields(folder)
    contents = read_weights(diffusers_folder.weights_in(folder), options.allow_pickle)
    try:
        states = list(state_dicts(contents.tree).values())
        if len(states) != 1:
            raise CheckpointError(f"its file holds {len(states)} sets of weights, not one")
        (state,) = states
        names = modern_keys(list(state))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
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
    return _checkpoint(folder, sha256, (card, recognised), tensors)
