"""A diffusers folder: `config.json` and weights at the root or under `unet/`, and a scheduler.

The scheduler supplies the card's prediction, schedule, variance, clipping and spacing; settings
that the samplers do not support are rejected by name. Only t* must be given by the user.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from purify_audit.core.errors import CheckpointError
from purify_audit.core.files import leaves_folder, read_errors
from purify_audit.core.records import printable

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_PLACES = ("unet", ".")

MODEL = ("config.json", *_WEIGHTS)
"""Files of a model, in `unet/` or at the root."""

SCHEDULER = ("scheduler/scheduler_config.json", "scheduler_config.json")
"""Locations of a scheduler's settings."""

_LONGEST = 1_000_000  # bytes of a JSON file
_PREDICTION = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_VARIANCE = {
    "fixed_small": "fixed-small",
    "fixed_small_log": "fixed-small",
    "fixed_large": "fixed-large",
    "learned_range": "learned-range",
}  # in diffusers, fixed_large_log takes the root of a negative number
_SAMPLERS = ("DDPMScheduler", "DDIMScheduler")
_SETTINGS = ("beta_schedule", "beta_start", "trained_betas")  # of supported schedules


def weights_in(folder: Path) -> Path:
    """The file of weights of a diffusers folder.

    Raises:
        CheckpointError: there is none, or it is a link out of the folder.
    """
    _, model = _model_config(folder)
    for name in _WEIGHTS:
        if (model / name).exists():
            return _inside(folder, model / name)
    raise CheckpointError(f"{folder}: has a config.json, but neither {' nor '.join(_WEIGHTS)}")


def draft_fields(folder: Path) -> dict[str, Any]:
    """The fields of a card that the two configurations determine.

    Raises:
        CheckpointError: a configuration is missing, damaged or not supported.
    """
    config, _ = _model_config(folder)
    name = str(config.get("_class_name"))
    if name != "UNet2DModel":
        raise CheckpointError(
            f"{folder}: its network is a {printable(name)}; only UNet2DModel is supported"
        )
    for field in ("num_class_embeds", "class_embed_type"):
        if config.get(field) is not None:
            raise CheckpointError(f"{folder}: its network is class-conditional ('{field}' is set)")
    centred = config.get("center_input_sample") is True  # then the network rescales pixels itself
    size = config.get("sample_size")
    sides = size if isinstance(size, list) else [size, size]
    if not (len(sides) == 2 and all(type(side) is int for side in sides)):
        raise CheckpointError(f"{folder}: config.json does not give sample_size")
    channels, out = config.get("in_channels", 3), config.get("out_channels", 3)
    if not (type(channels) is type(out) is int and out in (channels, 2 * channels)):
        counts = printable(f"{channels} input channels do not fit {out} output channels")
        raise CheckpointError(f"{folder}: {counts}")
    public = {n: v for n, v in config.items() if n == "_class_name" or not n.startswith("_")}
    return {
        "family": "diffusion",
        "network": {"arch": "diffusers-unet2d", "config": json.dumps(public, sort_keys=True)},
        "image": {"channels": channels, "height": sides[0], "width": sides[1]},
        "learned_variance": out == 2 * channels,
        "time_conditioning": "index",
        **({} if centred else {"data_range": [-1.0, 1.0]}),
        **_scheduler_fields(folder),
    }


def folder_sha256(folder: Path, files: list[Path]) -> str:
    """SHA-256 of names and contents of the files, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """The files that define the purifier: configurations and weights."""
    _, model = _model_config(folder)
    scheduler = [folder / name for name in SCHEDULER if (folder / name).exists()]
    weights = [model / name for name in _WEIGHTS if (model / name).exists()]
    return [model / "config.json", *scheduler[:1], *weights[:1]]


def _inside(folder: Path, path: Path) -> Path:
    """The path, unless it is a link out of the folder."""
    if leaves_folder(folder, path):
        raise CheckpointError(f"{folder}: '{path.name}' is a link that leads out of the folder")
    return path


def _model_config(folder: Path) -> tuple[dict[str, Any], Path]:
    for place in _PLACES:
        if (folder / place / "config.json").exists():
            path = _inside(folder, folder / place / "config.json")
            return _read_json(path), folder / place
    raise CheckpointError(
        f"{folder}: is a folder without a diffusers model: no config.json or unet/config.json"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with read_errors(path, CheckpointError):
            if path.stat().st_size > _LONGEST:
                raise CheckpointError(f"{path}: is too long for a configuration")
            data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not usable JSON: {printable(str(error))}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(entries := dict(pairs)) < len(pairs):
        raise ValueError("a name is repeated")
    return entries


def _scheduler_fields(folder: Path) -> dict[str, Any]:
    """Prediction, schedule and sampler."""
    paths = [folder / name for name in SCHEDULER if (folder / name).exists()]
    if not paths:
        return {}  # the user must give them
    config = _read_json(_inside(folder, paths[0]))
    where = str(paths[0])
    for field in ("thresholding", "rescale_betas_zero_snr"):
        if config.get(field):
            raise CheckpointError(f"{where}: '{field}' is not supported")
    name = str(config.get("_class_name")).replace("Gaussian", "")
    if name not in _SAMPLERS and not any(setting in config for setting in _SETTINGS):
        return {}
    fields: dict[str, Any] = {
        "prediction": _meaning(config, "prediction_type", "epsilon", _PREDICTION, where),
        "schedule": _schedule(config, where),
    }
    if name in _SAMPLERS:
        fields["sampler"] = _sampler(config, name, where)
    return fields


def _meaning(
    config: dict[str, Any], name: str, default: str, meanings: dict[str, str], where: str
) -> str:
    """The card's value for a setting."""
    value = config.get(name, default)
    if not isinstance(value, str) or value not in meanings:
        raise CheckpointError(f"{where}: {name} {printable(str(value))} is not supported")
    return meanings[value]


def _schedule(config: dict[str, Any], where: str) -> dict[str, Any]:
    steps = config.get("num_train_timesteps", config.get("timesteps", 1000))
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 2e-2)
    if not (type(steps) is int and 1 <= steps <= 100_000):
        shown = printable(str(steps))
        raise CheckpointError(f"{where}: num_train_timesteps {shown} is not a number of steps")
    if not all(isinstance(beta, float | int) and 0 < beta < 1 for beta in (start, end)):
        raise CheckpointError(f"{where}: beta_start and beta_end must be between 0 and 1")
    if config.get("trained_betas") is not None:
        return {"kind": "table", "betas": config["trained_betas"]}
    match config.get("beta_schedule", "linear"):
        case "linear":
            return {"kind": "linear", "steps": steps, "beta_start": start, "beta_end": end}
        case "scaled_linear" if 1 < steps <= 10_000:
            low, high = start**0.5, end**0.5
            roots = [low + (high - low) * k / (steps - 1) for k in range(steps)]
            return {"kind": "table", "betas": [root * root for root in roots]}
        case "squaredcos_cap_v2":
            return {"kind": "cosine", "steps": steps}
        case other:
            shown = printable(str(other))
            raise CheckpointError(f"{where}: beta_schedule {shown} is not supported")


def _sampler(config: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """The sampler of a scheduler's class."""
    clip = bool(config.get("clip_sample", True))
    if clip and config.get("clip_sample_range", 1.0) != 1.0:
        raise CheckpointError(f"{where}: a clip_sample_range other than 1 is not supported")
    common = {
        "clip": clip,
        "spacing": config.get("timestep_spacing", "leading"),
        "offset": config.get("steps_offset", 0),
    }
    if name == "DDIMScheduler":
        if config.get("set_alpha_to_one", True) is False:
            raise CheckpointError(f"{where}: set_alpha_to_one false is not supported")
        return {"kind": "ddim", "clipped_eps": False, **common}
    variance = _meaning(config, "variance_type", "fixed_small", _VARIANCE, where)
    return {"kind": "ddpm", "variance": variance, **common}
