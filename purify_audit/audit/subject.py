"""Load and check everything an audit needs: models, images, plan."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from purify_audit.audit.defaults import attack_settings, default_fields
from purify_audit.compression.microbatches import default_microbatch
from purify_audit.core.errors import PlanError
from purify_audit.core.records import first_fault
from purify_audit.images.image_set import ImageSet, choose, load_images, restrict
from purify_audit.models.checkpoint import Checkpoint
from purify_audit.models.load import load_classifier, load_purifier, purifier_card
from purify_audit.models.open import open_checkpoint, open_classifier
from purify_audit.models.protocols import Classifier, Purifier, is_differentiable
from purify_audit.models.runner import Runner, Tick, ignore_ticks
from purify_audit.models.shipped import shipped_classifier
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.card import DiffusionCard, ImageSpec, PurifierCard
from purify_audit.spec.probes import FileProbe
from purify_audit.spec.samplers import Sampler

BUNDLED = {(1, 8, 8): "digits"}
"""Images that come with the package, by shape."""


class LoadedClassifier(NamedTuple):
    """A classifier and the checkpoint that it was built from."""

    checkpoint: Checkpoint
    model: Classifier


@dataclass(frozen=True, slots=True)
class Subject:
    """What is audited, loaded and checked.

    Attributes:
        plan: everything that decides the numbers.
        checkpoint: the purifier's.
        card: the checkpoint's card with the plan's overrides.
        purifier: on `device`.
        images: those chosen, in the order of the looks.
        available: number of images to choose from.
        user_images: the perturbed images of a `file` probe, in the order of `images`.
        classifier: judges the purified images; optional.
        device: where purifications run.
    """

    plan: AuditPlan
    checkpoint: Checkpoint
    card: PurifierCard
    purifier: Purifier
    images: ImageSet
    available: int
    user_images: ImageSet | None
    classifier: LoadedClassifier | None
    device: torch.device

    def runner(
        self, tick: Tick = ignore_ticks, *, microbatch: int | None = None, seed: int | None = None
    ) -> Runner:
        """Runs the purifier; `tick` is called with network evaluations.

        Args:
            tick: called after every micro-batch.
            microbatch: rows of a call; default: the plan's.
            seed: key of the randomness; default: the plan's.
        """
        each = self.purifier.evaluations
        return Runner(
            self.purifier,
            self.device,
            self.plan.seed if seed is None else seed,
            self.plan.microbatch if microbatch is None else microbatch,
            lambda rows: tick(rows * each),
        )

    def first(self, count: int) -> "Subject":
        """The same with the first images only."""
        rows = list(range(min(count, len(self.images))))
        user_images = None if self.user_images is None else self.user_images.select(rows)
        return replace(self, images=self.images.select(rows), user_images=user_images)


def prepare(fields: dict[str, object], device: torch.device) -> Subject:
    """Complete a plan with defaults that suit the checkpoint, and load everything it names.

    Args:
        fields: fields of `AuditPlan`; those absent or none get a default.
        device: where it will run.

    Raises:
        InputError: settings that contradict each other, a file that cannot be used, or parts
            that do not fit together; see the subclass.
    """
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    source, checkpoint = str(given["checkpoint"]), None
    reading = given.get("load_options"), _overrides(given)
    if "data" not in given:  # the checkpoint says which of the bundled images it takes
        checkpoint = open_checkpoint(source, None, *reading)
        given["data"] = _bundled_data(checkpoint)
    images = _available(given)
    checkpoint = checkpoint or open_checkpoint(source, _spec(images), *reading)
    randomised, shape = purifier_card(checkpoint).randomised, images.image_shape
    digits = str(given["data"]).partition(":")[0] in BUNDLED.values()
    defaults = default_fields(given, len(images), randomised=randomised, digits=digits)
    given.pop("preset_images", None)
    if "attack" in given:
        defaults["classifier"] = shipped_classifier(shape)
        ball = {name: given.get(name, defaults[name]) for name in ("norm", "eps")}
        count = given.get("images", defaults["images"])
        given["attack"] = attack_settings(
            given["attack"] | ball, count, shape, device, randomised=randomised
        )
    try:
        plan = AuditPlan.model_validate(defaults | given)
    except ValidationError as error:
        raise PlanError(f"the plan cannot be carried out: {first_fault(error)}") from None
    if "microbatch" not in given:
        size = default_microbatch(plan, shape, device)
        plan = plan.model_copy(update={"microbatch": size})
    return _assemble(plan, images, checkpoint, device)


def load_subject(plan: AuditPlan, device: torch.device) -> Subject:
    """Load what a plan names, and check that the parts fit together.

    Raises:
        InputError: see `prepare`.
    """
    images = _available(plan.model_dump(include={"data", "first_id", "last_id"}))
    overrides = _overrides({"t_star": plan.t_star, "sampler": plan.sampler})
    checkpoint = open_checkpoint(plan.checkpoint, _spec(images), plan.load_options, overrides)
    return _assemble(plan, images, checkpoint, device)


def _assemble(
    plan: AuditPlan, available: ImageSet, checkpoint: Checkpoint, device: torch.device
) -> Subject:
    images = choose(available, plan.images, plan.seed)
    card = overridden(plan.checkpoint, purifier_card(checkpoint), plan.t_star, plan.sampler)
    _must_fit(checkpoint.source, card.image, images)
    purifier = load_purifier(checkpoint, device, card, plan.engine)
    classifier = _classifier(plan, images, device)
    if plan.attack is not None and classifier is not None:
        able = is_differentiable(purifier), is_differentiable(classifier.model)
        plan = plan.model_copy(update={"attack": plan.attack.forward_only(*able)})
    images.check()
    return Subject(
        plan=plan,
        checkpoint=checkpoint,
        card=card,
        purifier=purifier,
        images=images,
        available=len(available),
        user_images=_user_images(plan, images),
        classifier=classifier,
        device=device,
    )


def _overrides(given: dict[str, Any]) -> dict[str, str]:
    """The card's settings that a plan may override, as text: t* and the sampler."""
    texts = {name: given[name] for name in ("t_star", "sampler") if given.get(name) is not None}
    return {
        name: value.model_dump_json() if isinstance(value, BaseModel) else str(value)
        for name, value in texts.items()
    }


def _bundled_data(checkpoint: Checkpoint) -> str:
    shape = purifier_card(checkpoint).image.shape
    if shape not in BUNDLED:
        raise PlanError(
            f"{checkpoint.source}: takes images of shape {list(shape)} and none of that shape are"
            " bundled; name some with --data (docs/data.md lists the formats)"
        )
    return BUNDLED[shape]


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


def _classifier(plan: AuditPlan, images: ImageSet, device: torch.device) -> LoadedClassifier | None:
    """The classifier, checked against the labels of the images."""
    if plan.classifier is None:
        return None
    if images.labels is None:
        raise PlanError(f"{plan.data}: has no labels, so accuracy cannot be measured on it")
    checkpoint = open_classifier(plan.classifier, _spec(images), plan.classifier_load_options)
    classifier = load_classifier(checkpoint, device)
    _must_fit(checkpoint.source, classifier.image, images)
    highest = int(images.labels.max())
    if highest >= classifier.classes:
        raise PlanError(
            f"{plan.data}: has label {highest}, but {plan.classifier} has only"
            f" {classifier.classes} classes"
        )
    return LoadedClassifier(checkpoint, classifier)


def _must_fit(source: str, image: ImageSpec, images: ImageSet) -> None:
    if image.shape != images.image_shape:
        raise PlanError(
            f"{source}: takes images of shape {list(image.shape)} (channels, height, width);"
            f" those of {images.source} are {list(images.image_shape)}"
        )


def _user_images(plan: AuditPlan, images: ImageSet) -> ImageSet | None:
    """The perturbed images of a file probe, matched by id."""
    paths = [probe.path for probe in plan.probes if isinstance(probe, FileProbe)]
    if not paths:
        return None
    user_images = load_images(paths[0])
    if user_images.image_shape != images.image_shape:
        raise PlanError(
            f"{paths[0]}: its images are {list(user_images.image_shape)}, the audited ones"
            f" {list(images.image_shape)}"
        )
    missing = np.setdiff1d(images.ids, user_images.ids)
    if len(missing):
        raise PlanError(
            f"{paths[0]}: has no perturbed version of {len(missing)} audited images, among them id"
            f" {missing[0]}; audit only those it has, with --ids"
        )
    place = {int(image): row for row, image in enumerate(user_images.ids)}
    chosen = user_images.select([place[int(image)] for image in images.ids])
    chosen.check()
    return chosen
