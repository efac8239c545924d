"""Song et al. 2021, `score_sde`: NCSN++ and DDPM++ (DiffPure's `checkpoint_8.pth`).

The file is {optimizer, model, ema, step}: `model` has names, `ema.shadow_params` is a bare list in
the order of the trained parameters, so every shape must agree.
"""

from typing import TYPE_CHECKING, Any

from purify_audit.core.errors import CheckpointError
from purify_audit.models.formats.draft import Draft, Format, State, indices, ratio, shape, whole

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "all_modules."


def _matches(state: State) -> bool:
    return any(name.startswith(f"{_PREFIX}0.") for name in state) and any(
        name.endswith("GroupNorm_0.weight") for name in state
    )


def _kind(state: State, n: int) -> str:
    """The kind of module n, by its tensors' names."""
    for kind, mark in (
        ("fourier", "W"),
        ("attention", "NIN_0.W"),
        ("residual", "Conv_1.weight"),
        ("pyramid", "Conv2d_0.weight"),
        ("plain", "weight"),
    ):
        if f"{_PREFIX}{n}.{mark}" in state:
            return kind
    raise CheckpointError(f"module {_PREFIX}{n} is not part of NCSN++")


def _draft(state: State) -> Draft:
    kinds = [_kind(state, n) for n in indices(state, _PREFIX)]
    fourier = kinds[0] == "fourier"
    first = 3 if fourier else 2
    width, channels, _, _ = shape(state, f"{_PREFIX}{first}.weight", 4)
    levels = _encoder_levels(state, kinds, first + 1)
    network = {
        "arch": "ncsnpp",
        "width": width,
        "multipliers": [ratio(level["out"], width) for level in levels],
        "blocks": levels[0]["blocks"],
        "attention": [n for n, level in enumerate(levels) if level["attention"]],
        "embedding": "fourier" if fourier else "positional",
        "progressive_input": "residual" if "pyramid" in kinds else "none",
    }
    if "pyramid" in kinds:
        network["fir"] = True  # only these resample the image with the filter
    if "sigmas" in state:
        network["scales"] = shape(state, "sigmas", 1)[0]
    fields = {"family": "diffusion", "network": network, "channels": channels}
    return Draft(fields, whole(state))


def _encoder_levels(state: State, kinds: list[str], n: int) -> list[dict[str, Any]]:
    """Levels of the encoder, which ends at the middle: residual, attention, residual.

    A residual module that keeps its width and still has Conv_2 resamples.
    """
    downs = (_resamples(state, kinds).count(True)) // 2
    levels: list[dict[str, Any]] = [{"out": 0, "blocks": 0, "attention": False}]
    while n < len(kinds):
        level = levels[-1]
        if kinds[n] == "attention":
            level["attention"] = True
        elif kinds[n] == "residual" and _resamples(state, kinds)[n]:
            levels.append({"out": 0, "blocks": 0, "attention": False})
        elif kinds[n] == "residual":
            if len(levels) == downs + 1 and level["blocks"] == levels[0]["blocks"] and downs:
                break
            level["out"] = shape(state, f"{_PREFIX}{n}.Conv_1.weight", 4)[0]
            level["blocks"] += 1
        elif kinds[n] != "pyramid":
            break
        n += 1
    if not downs:  # one level: its blocks, two in the middle, one more in the decoder
        levels[0]["blocks"] = (kinds.count("residual") - 3) // 2
        levels[0]["attention"] = kinds.count("attention") > 1
    return levels


def _resamples(state: State, kinds: list[str]) -> list[bool]:
    resamples = []
    for n, kind in enumerate(kinds):
        name = f"{_PREFIX}{n}.Conv_2.weight"
        projects = kind == "residual" and name in state
        resamples.append(projects and len(set(shape(state, name, 4)[:2])) == 1)
    return resamples


def averaged(
    names: list[tuple[str, tuple[int, ...]]], shadow: list["Tensor"], raw: State
) -> dict[str, "Tensor"]:
    """The moving average by name, together with the tensors that are not trained.

    Args:
        names: name and shape of each trained parameter, in the network's order.
        shadow: the moving average of each, in this order.
        raw: the trained weights by name, and tensors that are not trained.

    Raises:
        CheckpointError: the number of tensors or a shape differs.
    """
    if len(names) != len(shadow):
        raise CheckpointError(
            f"the moving average holds {len(shadow)} tensors and the network trains {len(names)}"
        )
    for n, ((name, expected), tensor) in enumerate(zip(names, shadow, strict=True)):
        if tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"tensor {n} of the moving average has shape {list(tensor.shape)};"
                f" '{name}' needs {list(expected)}"
            )
        if name not in raw or tuple(raw[name].shape) != expected:
            shape_text = list(expected)
            raise CheckpointError(f"the trained weights have no tensor '{name}' of {shape_text}")
    return {**raw, **{name: tensor for (name, _), tensor in zip(names, shadow, strict=True)}}


FORMAT = Format("score_sde", "a score_sde network (NCSN++ or DDPM++)", _matches, _draft)
