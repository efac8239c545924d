"""Default settings of a plan, by norm, data and preset."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError

from purify_audit.compression.microbatches import attack_microbatch
from purify_audit.core.errors import PlanError
from purify_audit.core.records import first_fault
from purify_audit.models.shipped import shipped_classifier
from purify_audit.spec import from_text
from purify_audit.spec.attack_plan import PRESETS
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.project_file import ATTACK, AUDIT, ENGINE

_DEFAULT_EPS = {"linf": (8 / 255,), "l2": (0.5,)}  # the usual CIFAR-10 threat models
_DIGITS_EPS = {"linf": (0.15,), "l2": (1.0,)}  # 8x8 pixels: fewer, and each of them larger
_DEFAULT_PROBES = {"linf": "sign", "l2": "sphere"}
_DEFAULT_IMAGES = 64
_PARSED = ("eps", "ids", "sampler", "probes", *ENGINE)


def plan_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an audit plan, from settings by their option names; those that are none are absent.

    Radii, ids, samplers and probes may be text, as on the command line.

    Raises:
        PlanError: a setting cannot be parsed.
    """
    given = {name: value for name, value in options.items() if value is not None}
    fields = {name: value for name, value in given.items() if name not in _PARSED}
    if "eps" in given:
        eps = given["eps"]
        fields["eps"] = from_text.radii(eps) if isinstance(eps, str) else _listed(eps)
    if "probes" in given:
        fields["probes"] = from_text.probes([str(probe) for probe in given["probes"]])
    engine = {name: given[name] for name in ENGINE if name in given}
    return (
        fields
        | ({"engine": engine} if engine else {})
        | from_text.id_range(given.get("ids"))
        | from_text.sampler_setting(given.get("sampler"))
    )


def plan_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an audit plan with an attack, from a preset and settings by their option names.

    Raises:
        PlanError: there is no such preset, or a setting cannot be parsed.
    """
    preset = str(options.get("preset", "smoke"))
    if preset not in PRESETS:
        raise PlanError(f"no preset '{preset}'; there are {', '.join(PRESETS)}")
    names = (*ATTACK, "predict_only")
    attack = PRESETS[preset]["attack"] | {n: options[n] for n in names if n in options}
    audit = dict(PRESETS[preset]["audit"])
    audit |= {"preset_images": audit.pop("images"), "attack": attack}
    kept = (*AUDIT, *ENGINE, "load_options", "classifier_load_options")
    return audit | plan_fields({n: options[n] for n in kept if n in options})


def _listed(eps: object) -> list[object]:
    return list(eps) if isinstance(eps, list | tuple) else [eps]


def _default_probes(norm: str, given: dict[str, Any]) -> tuple[str, ...]:
    """Power iteration follows what it measures: in a low precision it may end anywhere."""
    precision = dict(given.get("engine", {})).get("precision", "float32")
    exact = precision in ("float32", "tf32")
    return (_DEFAULT_PROBES.get(norm, ""), "lowfreq", *(("power",) if exact else ()))


def attack_plan(
    plan: AuditPlan, options: dict[str, Any], shape: tuple[int, int, int], device: torch.device
) -> AuditPlan:
    """The plan of a finished audit with an attack added.

    Args:
        plan: the finished audit's.
        options: `attack`, and where they differ from the plan's: classifier, norm, eps, level.
        shape: of the images.
        device: where it will run.

    Raises:
        PlanError: the settings contradict each other, or there is no classifier.
    """
    classifier = options.get("classifier") or plan.classifier or shipped_classifier(shape)
    ball = {name: options.get(name, getattr(plan, name)) for name in ("norm", "eps")}
    if ball["norm"] != plan.norm and "eps" not in options:
        raise PlanError(f"--norm {ball['norm']} is not the report's: give --eps with it")
    sizes = plan.images, shape
    settings = _attack_settings(options["attack"] | ball, plan.draws > 1, device, sizes)
    changes = {
        "classifier": classifier,
        "attack": settings,
        "level": options.get("level", plan.level),
    }
    loading = options.get("classifier_load_options")
    if options.get("classifier") or (loading and (loading.preset or loading.arguments)):
        changes["classifier_load_options"] = loading
    try:
        return AuditPlan.model_validate(plan.model_dump() | changes)
    except ValidationError as error:
        raise PlanError(f"the attack cannot be carried out: {first_fault(error)}") from None


def _attack_settings(
    options: dict[str, Any],
    randomised: bool,
    device: torch.device,
    images: tuple[int, tuple[int, int, int]],
) -> dict[str, Any]:
    """Attack settings with defaults for the purifier, the device, and (number, shape) of images."""
    settings = {name: value for name, value in options.items() if value is not None}
    if not randomised:
        settings |= {"draws": 1, "held_out": 1}
    count, shape = images
    rows = max(1, count * settings.get("draws", 1))
    return {"microbatch": attack_microbatch(rows, shape, device)} | settings
