"""Complete a partial card with a preset and the user's answers; missing settings are an error."""

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

from purify_audit.core.errors import CardError, PlanError
from purify_audit.core.records import printable
from purify_audit.models.formats.presets import PRESETS, Preset
from purify_audit.spec.card import ClassifierCard, ImageSpec, PurifierCard, parse_card
from purify_audit.spec.load_options import Assumption, LoadOptions
from purify_audit.spec.notation import parse_settings
from purify_audit.spec.samplers import parse_sampler

NEEDED = {
    "diffusion": (
        "image",
        "prediction",
        "time_conditioning",
        "schedule",
        "data_range",
        "t_star",
        "sampler",
    ),
    "feedforward": ("image", "data_range"),
    "classifier": ("image", "classes", "mean", "std"),
    "graph": ("image", "data_range"),
    "code": ("image",),
}
"""Required fields of a card, by family."""

ASKED = {
    "adm": ("network.heads or network.head_channels", "network.new_attention_order"),
    "ncsnpp": ("network.fir", "network.scale_by_sigma"),
    "edm": ("network.preconditioning",),
    "ffdnet": ("level",),
    "drunet": ("level",),
    "dncnn": ("sigma",),
}
"""Settings that tensors do not determine and that have no safe default, by network."""

_USUAL = "no tensor tells; every published file of this layout has it"


def preset_of(options: LoadOptions, format_name: str, where: str) -> Preset | None:
    """The preset that the user named, if any.

    Raises:
        PlanError: it does not exist, or is for another format.
    """
    if options.preset is None:
        return None
    if options.preset not in PRESETS:
        raise PlanError(f"no preset '{options.preset}'; there are {', '.join(PRESETS)}")
    preset = PRESETS[options.preset]
    if format_name not in preset.formats:
        fitting = presets_for(format_name)
        hint = f"; for it there are {', '.join(fitting)}" if fitting else ""
        raise PlanError(
            f"{where}: preset '{options.preset}' is for {' and '.join(preset.formats)} weights and"
            f" this is {format_name}{hint}"
        )
    return preset


def presets_for(format_name: str) -> list[str]:
    """Names of the presets for a format."""
    return [name for name, preset in PRESETS.items() if format_name in preset.formats]


def complete_card(
    path: Path,
    format_name: str,
    drafted: dict[str, Any],
    options: LoadOptions,
    image: ImageSpec | None,
    conventions: tuple[str, ...] = (),
) -> tuple[PurifierCard | ClassifierCard, tuple[Assumption, ...]]:
    """A complete card, and the settings in it that are not from the file.

    Args:
        path: the file, for messages and the card's name.
        format_name: of the layout.
        drafted: fields from the file; `channels` if the image size is unknown.
        options: the user's answers.
        image: the images to purify, if known.
        conventions: drafted fields that are conventions of the layout.

    Raises:
        PlanError: settings are missing; the message lists them, and presets that supply them.
        CardError: answers contradict the file or each other.
    """
    channels = drafted.get("channels")
    known = deepcopy({name: value for name, value in drafted.items() if name != "channels"})
    fields = {"spec": 1, "name": (path.absolute().name or "/")[:200]} | deepcopy(known)
    usual = [(name, _take(known, name), _USUAL) for name in conventions]
    known.pop("sampler", None)  # a scheduler's file only proposes one
    preset = preset_of(options, format_name, str(path))
    fields["provenance"] = _provenance(preset)
    answered: list[tuple[str, Any, str]] = []
    if preset is not None:
        answered += [(name, value, preset.source) for name, value in preset.fields.items()]
    answers = {name: _value(name, text) for name, text in options.assume.items()}
    answered += [(name, value, "given by the user") for name, value in answers.items()]
    last: dict[str, Assumption] = {}
    for name, value, source in (*usual, *answered):
        _put(fields, known, name, value, f"{path}: {source}")
        last[name] = Assumption(what=name, value=printable(json.dumps(value)), source=source)
    notes = list(last.values())
    if "image" not in fields and image is not None:
        fields["image"] = image.model_dump()
        notes.append(
            Assumption(what="image", value="x".join(map(str, image.shape)), source="the images")
        )
    fitting = [] if preset else presets_for(format_name)
    _require_settings(
        f"{path}: is {format_name}", fields, {name for name, _, _ in answered}, fitting
    )
    _require_channels(path, fields, channels)
    card = parse_card(json.dumps(fields), str(path))
    return card, tuple(notes)


def _require_settings(
    what: str, fields: dict[str, Any], answered: set[str], presets: list[str]
) -> None:
    """Raise PlanError, with presets that would help, if a setting is missing."""
    missing = [name for name in NEEDED[fields["family"]] if name not in fields]
    for choice in _choices(fields):
        known = choice.partition(".")[2] in fields["network"]
        if not known and not answered.intersection(choice.split(" or ")):
            missing.append(choice)
    if not missing:
        return
    names = {name for choice in missing for name in choice.split(" or ")}
    helpful = [name for name in presets if names & PRESETS[name].fields.keys()]
    advice = f"--as {' or '.join(helpful)}, or " if helpful else ""
    raise PlanError(
        f"{what}, but does not specify {', '.join(missing)}; use {advice}"
        f"--assume {missing[0].split(' or ')[0]}=…"
        + (" (or --t-star)" if "t_star" in missing else "")
    )


def _choices(fields: dict[str, Any]) -> tuple[str, ...]:
    """Settings of a network that its tensors do not determine, and that have no safe default."""
    network, schedule = fields.get("network", {}), fields.get("schedule")
    choices = ASKED.get(network.get("arch", ""), ())
    if network.get("embedding") == "fourier":
        choices = (*choices, "network.centered")  # published VE networks take [0, 1], and double it
    steps = schedule.get("steps", 1000) if isinstance(schedule, dict) else 1000
    if network.get("arch") == "adm" and steps != 1000:  # times may be rescaled to [0, 1000]
        choices = (*choices, "network.time_scale")
    return choices


def _require_channels(path: Path, fields: dict[str, Any], channels: int | None) -> None:
    """Raise CardError unless images have as many channels as the network takes."""
    given = fields["image"].get("channels") if isinstance(fields["image"], dict) else None
    taken = 1 if fields.get("per_channel") else given
    if channels is not None and taken != channels:
        advice = (
            "; use --assume per_channel=true to restore each channel separately"
            if channels == 1 and fields["family"] == "feedforward"
            else ""
        )
        raise CardError(
            f"{path}: the network takes {channels} channels and the images have {given}{advice}"
        )


def _put(fields: dict[str, Any], known: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Set a field by its dotted name.

    Raises:
        CardError: the file contradicts it.
    """
    *parents, last = name.split(".")
    group = fields
    for parent in parents:
        group, known = group.setdefault(parent, {}), known.get(parent, {})
        if not isinstance(group, dict) or not isinstance(known, dict):
            raise CardError(f"{where}: '{printable(name)}' is not inside a group of fields")
    if last not in known:
        group[last] = deepcopy(value)
    elif not _agree(known[last], value):
        raise CardError(
            f"{where}: '{name}' is {printable(json.dumps(value))}, but the file contains"
            f" {printable(json.dumps(known[last]))}"
        )


def _take(known: dict[str, Any], name: str) -> Any:
    """Remove a field by its dotted name."""
    *parents, last = name.split(".")
    for parent in parents:
        known = known[parent]
    return known.pop(last)


def _agree(known: Any, value: Any) -> bool:
    """Whether two values are equal, numbers to float32 precision."""
    if isinstance(known, list) and isinstance(value, list) and len(known) == len(value):
        return all(map(_agree, known, value))
    if isinstance(known, float) and isinstance(value, float):
        return math.isclose(known, value, rel_tol=1e-6)
    return bool(known == value)


def _value(name: str, text: str) -> Any:
    """Parse an answer: a sampler, an image size, JSON, a list of numbers, or text."""
    if name == "sampler" and not text.startswith("{"):
        return parse_sampler(*parse_settings(text)).model_dump()
    if name == "image":
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdecimal() and len(part) < 6 for part in parts):
            raise PlanError(
                f"image '{printable(text)}' is not CHANNELSxHEIGHTxWIDTH, such as 3x32x32"
            )
        return dict(zip(("channels", "height", "width"), map(int, parts), strict=True))
    for attempt in (text, f"[{text}]"):
        try:
            value = json.loads(attempt)
        except (ValueError, RecursionError):
            continue
        lone = name in ("mean", "std") and isinstance(value, int | float)
        return [value] if lone else value
    return text


def _provenance(preset: Preset | None) -> dict[str, str]:
    source = {} if preset is None else {"source": preset.source}
    return {"data": "not known", "command": "not known", "licence": "not known", **source}
