"""From what the user asked for to everything an audit needs, loaded and checked."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from purify_audit.card import DiffusionCard, ImageSpec, PurifierCard
from purify_audit.checkpoint import Checkpoint
from purify_audit.choices import Sampler
from purify_audit.errors import PlanError
from purify_audit.images import ImageSet, choose, load_images, restrict
from purify_audit.loading import load_classifier, load_purifier, purifier_card
from purify_audit.microbatches import attack_microbatch, default_microbatch
from purify_audit.opening import open_checkpoint, open_classifier
from purify_audit.plan import AuditPlan, FileProbe
from purify_audit.purifier import Classifier, Purifier, is_differentiable
from purify_audit.record import first_fault
from purify_audit.shipped import shipped_classifier

BUNDLED = {(1, 8, 8): "digits"}
"""Images that come with the package, by shape."""

_DEFAULT_EPS = {"linf": (8 / 255,), "l2": (0.5,)}  # the usual CIFAR-10 threat models
_DIGITS_EPS = {"linf": (0.15,), "l2": (1.0,)}  # 8x8 pixels: fewer, and each of them larger
_DEFAULT_PROBES = {"linf": "sign", "l2": "sphere"}
_DEFAULT_IMAGES = 64


@dataclass(frozen=True, slots=True)
class Subject:
    """What is audited, loaded and ready.

    Attributes:
        plan: everything that decides the numbers.
        checkpoint: the purifier's.
        card: the checkpoint's card with the plan's overrides.
        purifier: on `device`.
        images: those chosen, in the order of the looks.
        available: how many there were to choose from.
        brought: the perturbed images of a `file` probe, in the order of `images`.
        judge: the classifier's checkpoint and the classifier, or none.
        device: where purifications run.
    """

    plan: AuditPlan
    checkpoint: Checkpoint
    card: PurifierCard
    purifier: Purifier
    images: ImageSet
    available: int
    brought: ImageSet | None
    judge: tuple[Checkpoint, Classifier] | None
    device: torch.device


def prepare(asked: dict[str, object], device: torch.device) -> Subject:
    """Plan what was asked, with defaults that suit the checkpoint for what was not, and load it.

    Args:
        asked: fields of `AuditPlan`; those absent or none get a default.
        device: where it will run.

    Raises:
        InputError: settings that contradict each other, a file that cannot be used, or parts
            that do not fit together; the subclass tells.
    """
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    source, norm = str(given["checkpoint"]), str(given.get("norm", "linf"))
    if "data" not in given:
        given["data"] = _bundled_data(source, given)
    images = _available(given)
    checkpoint = open_checkpoint(source, _spec(images), given.get("reading"), _overrides(given))
    defaults = {
        "norm": norm,
        "images": min(given.pop("preset_images", _DEFAULT_IMAGES), len(images)),
        "eps": (_DIGITS_EPS if _is_digits(given) else _DEFAULT_EPS).get(norm, ()),
        "probes": [{"kind": kind} for kind in _default_probes(norm, given)],
        "draws": 4 if purifier_card(checkpoint).randomised else 1,
        "directions": 8,
        "seed": 0,
        "microbatch": 1,
    }
    if "attack" in given:
        defaults["classifier"] = shipped_classifier(images.image_shape)
        ball = {name: given.get(name, defaults[name]) for name in ("norm", "eps")}
        randomised = purifier_card(checkpoint).randomised
        sizes = given.get("images", defaults["images"]), images.image_shape
        given["attack"] = _attack_settings(given["attack"] | ball, randomised, device, sizes)
    try:
        plan = AuditPlan.model_validate(defaults | given)
    except ValidationError as error:
        raise PlanError(f"the plan cannot be carried out: {first_fault(error)}") from None
    if "microbatch" not in given:
        size = default_microbatch(plan, images.image_shape, device)
        plan = plan.model_copy(update={"microbatch": size})
    return _assemble(plan, images, checkpoint, device)


def _default_probes(norm: str, given: dict[str, Any]) -> tuple[str, ...]:
    """Power iteration follows what it measures: in a low precision it may end anywhere."""
    precision = dict(given.get("engine", {})).get("precision", "float32")
    exact = precision in ("float32", "tf32")
    return (_DEFAULT_PROBES.get(norm, ""), "lowfreq", *(("power",) if exact else ()))


def attack_plan(
    plan: AuditPlan, asked: dict[str, Any], shape: tuple[int, int, int], device: torch.device
) -> AuditPlan:
    """The plan of a finished audit with an attack added.

    Args:
        plan: the finished audit's.
        asked: `attack`, and where they differ from the plan's: classifier, norm, eps, level.
        shape: of the images.
        device: where it will run.

    Raises:
        PlanError: the settings contradict each other, or there is no classifier.
    """
    classifier = asked.get("classifier") or plan.classifier or shipped_classifier(shape)
    ball = {name: asked.get(name, getattr(plan, name)) for name in ("norm", "eps")}
    if ball["norm"] != plan.norm and "eps" not in asked:
        raise PlanError(f"--norm {ball['norm']} is not the report's: give --eps with it")
    sizes = plan.images, shape
    settings = _attack_settings(asked["attack"] | ball, plan.draws > 1, device, sizes)
    changes = {
        "classifier": classifier,
        "attack": settings,
        "level": asked.get("level", plan.level),
    }
    reading = asked.get("classifier_reading")
    if asked.get("classifier") or (reading and (reading.preset or reading.arguments)):
        changes["classifier_reading"] = reading
    try:
        return AuditPlan.model_validate(plan.model_dump() | changes)
    except ValidationError as error:
        raise PlanError(f"the attack cannot be carried out: {first_fault(error)}") from None


def _attack_settings(
    asked: dict[str, Any],
    randomised: bool,
    device: torch.device,
    images: tuple[int, tuple[int, int, int]],
) -> dict[str, Any]:
    """With defaults that depend on what is attacked, and where; images: how many, their shape."""
    settings = {name: value for name, value in asked.items() if value is not None}
    if not randomised:
        settings |= {"draws": 1, "held_out": 1}
    count, shape = images
    rows = max(1, count * settings.get("draws", 1))
    return {"microbatch": attack_microbatch(rows, shape, device)} | settings


def load_subject(plan: AuditPlan, device: torch.device) -> Subject:
    """Load what a plan names, and check that the parts fit together.

    Raises:
        InputError: see `prepare`.
    """
    images = _available(plan.model_dump(include={"data", "first_id", "last_id"}))
    overrides = _overrides({"t_star": plan.t_star, "sampler": plan.sampler})
    checkpoint = open_checkpoint(plan.checkpoint, _spec(images), plan.reading, overrides)
    return _assemble(plan, images, checkpoint, device)


def _assemble(
    plan: AuditPlan, available: ImageSet, checkpoint: Checkpoint, device: torch.device
) -> Subject:
    images = choose(available, plan.images, plan.seed)
    card = overridden(plan.checkpoint, purifier_card(checkpoint), plan.t_star, plan.sampler)
    _must_fit(checkpoint.source, card.image, images)
    purifier = load_purifier(checkpoint, device, card, plan.engine)
    judge = _judge(plan, images, device)
    if plan.attack is not None and judge is not None:
        able = is_differentiable(purifier), is_differentiable(judge[1])
        plan = plan.model_copy(update={"attack": plan.attack.forward_only(*able)})
    images.check()
    return Subject(
        plan=plan,
        checkpoint=checkpoint,
        card=card,
        purifier=purifier,
        images=images,
        available=len(available),
        brought=_brought(plan, images),
        judge=judge,
        device=device,
    )


def _overrides(given: dict[str, Any]) -> dict[str, str]:
    """What a plan may override, as text: t* and the sampler."""
    told = {name: given[name] for name in ("t_star", "sampler") if given.get(name) is not None}
    return {
        name: value.model_dump_json() if isinstance(value, BaseModel) else str(value)
        for name, value in told.items()
    }


def _bundled_data(source: str, given: dict[str, Any]) -> str:
    checkpoint = open_checkpoint(source, None, given.get("reading"), _overrides(given))
    shape = purifier_card(checkpoint).image.shape
    if shape not in BUNDLED:
        raise PlanError(
            f"{source}: takes images of shape {list(shape)} and none of that shape are bundled;"
            " name some with --data (docs/data.md lists the formats)"
        )
    return BUNDLED[shape]


def _is_digits(given: dict[str, Any]) -> bool:
    return str(given["data"]).partition(":")[0] in BUNDLED.values()


def _spec(images: ImageSet) -> ImageSpec:
    channels, height, width = images.image_shape
    try:
        return ImageSpec(channels=channels, height=height, width=width)
    except ValidationError as error:
        raise PlanError(f"{images.source}: images too large: {first_fault(error)}") from None


def _available(given: dict[str, object]) -> ImageSet:
    images = load_images(str(given["data"]))
    first, last = given.get("first_id"), given.get("last_id")
    if first is None and last is None:
        return images
    return restrict(images, int(str(first or 0)), int(str(last or 2**32)))


def overridden(
    source: str, card: PurifierCard, t_star: int | None, sampler: Sampler | None
) -> PurifierCard:
    """The card with another t* and sampler, where they are given.

    Raises:
        PlanError: the card is no diffusion card, or the new settings contradict it.
    """
    changes = {"t_star": t_star, "sampler": sampler}
    changes = {name: value for name, value in changes.items() if value is not None}
    if not changes:
        return card
    if not isinstance(card, DiffusionCard):
        raise PlanError(f"{source}: is no diffusion model; it has no t* and no sampler")
    try:
        return DiffusionCard.model_validate(card.model_dump() | changes)
    except ValidationError as error:
        raise PlanError(f"{source}: {first_fault(error)}") from None


def _judge(
    plan: AuditPlan, images: ImageSet, device: torch.device
) -> tuple[Checkpoint, Classifier] | None:
    """The classifier, checked against the labels it will be judged by."""
    if plan.classifier is None:
        return None
    if images.labels is None:
        raise PlanError(f"{plan.data}: has no labels, so a classifier cannot be judged on it")
    checkpoint = open_classifier(plan.classifier, _spec(images), plan.classifier_reading)
    classifier = load_classifier(checkpoint, device)
    _must_fit(checkpoint.source, classifier.image, images)
    highest = int(images.labels.max())
    if highest >= classifier.classes:
        raise PlanError(
            f"{plan.data}: has label {highest}, but {plan.classifier} knows only"
            f" {classifier.classes} classes"
        )
    return checkpoint, classifier


def _must_fit(source: str, image: ImageSpec, images: ImageSet) -> None:
    if image.shape != images.image_shape:
        raise PlanError(
            f"{source}: takes images of shape {list(image.shape)} (channels, height, width);"
            f" those of {images.source} are {list(images.image_shape)}"
        )


def _brought(plan: AuditPlan, images: ImageSet) -> ImageSet | None:
    """The perturbed images of a file probe, matched by id."""
    paths = [probe.path for probe in plan.probes if isinstance(probe, FileProbe)]
    if not paths:
        return None
    brought = load_images(paths[0])
    if brought.image_shape != images.image_shape:
        raise PlanError(
            f"{paths[0]}: its images are {list(brought.image_shape)}, the audited ones"
            f" {list(images.image_shape)}"
        )
    missing = np.setdiff1d(images.ids, brought.ids)
    if len(missing):
        raise PlanError(
            f"{paths[0]}: has no perturbed version of {len(missing)} audited images, among them id"
            f" {missing[0]}; audit only those it has, with --ids"
        )
    place = {int(image): row for row, image in enumerate(brought.ids)}
    chosen = brought.select([place[int(image)] for image in images.ids])
    chosen.check()
    return chosen
