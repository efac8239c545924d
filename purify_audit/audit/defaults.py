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

_DEFAULT_EPS = {"linf": (8 / 255,), "l2": (0.5,), "l1": (12.0,)}  # the usual CIFAR-10 threat models
# 8x8 pixels: fewer, and each of them larger. In l1, 2 fools the bare classifier as 0.15 in linf.
_DIGITS_EPS = {"linf": (0.15,), "l2": (1.0,), "l1": (2.0,)}
_DEFAULT_PROBES = {"linf": "sign", "l2": "sphere", "l1": "sphere"}
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


def default_fields(
    given: Mapping[str, Any], available: int, *, randomised: bool, digits: bool
) -> dict[str, Any]:
    """Defaults of the fields of an audit plan.

    Args:
        given: the fields that are given; `preset_images` among them is a preset's number of images.
        available: number of images to choose from.
        randomised: whether the purifier is.
        digits: whether the images are the bundled digits.
    """
    norm = str(given.get("norm", "linf"))
    precision = dict(given.get("engine", {})).get("precision", "float32")
    # Power iteration amplifies rounding: in a low precision it may converge to anything.
    power = ("power",) if precision in ("float32", "tf32") else ()
    return {
        "norm": norm,
        "images": min(given.get("preset_images", _DEFAULT_IMAGES), available),
        "eps": (_DIGITS_EPS if digits else _DEFAULT_EPS).get(norm, ()),
        "probes": [{"kind": k} for k in (_DEFAULT_PROBES.get(norm, ""), "lowfreq", *power)],
        "draws": 4 if randomised else 1,
        "directions": 8,
        "seed": 0,
        "microbatch": 1,
    }


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
    settings = attack_settings(
        options["attack"] | ball, plan.images, shape, device, randomised=plan.draws > 1
    )
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


def attack_settings(
    given: Mapping[str, Any],
    images: int,
    shape: tuple[int, int, int],
    device: torch.device,
    *,
    randomised: bool,
) -> dict[str, Any]:
    """Fields of an attack plan, with defaults for what is not given.

    Args:
        given: the fields that are given; those that are none are absent.
        images: how many are attacked.
        shape: of the images.
        device: where the attack will run.
        randomised: whether the purifier is; if not, one draw is all there are.
    """
    settings = {name: value for name, value in given.items() if value is not None}
    if not randomised:
        settings |= {"draws": 1, "held_out": 1}
    rows = max(1, images * settings.get("draws", 1))
    return {"microbatch": attack_microbatch(rows, shape, device)} | settings
