"""What an audit will do, as data, before it does anything."""

import hashlib
import math
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from purify_audit.attack_plan import AttackPlan
from purify_audit.choices import Norm, Radius, Sampler
from purify_audit.engine import PLAIN, Engine
from purify_audit.errors import PlanError
from purify_audit.reading import Reading
from purify_audit.record import Record, first_fault


class SignProbe(Record):
    """Vertices of the l-inf ball: eps times Rademacher signs."""

    kind: Literal["sign"] = "sign"


class UniformProbe(Record):
    """Uniform in the l-inf ball; scaled onto the sphere when the ball is l2."""

    kind: Literal["uniform"] = "uniform"


class SphereProbe(Record):
    """Uniform on the l2 sphere; scaled to touch the ball when it is l-inf."""

    kind: Literal["sphere"] = "sphere"


class LowFrequencyProbe(Record):
    """Gaussian coefficients of the lowest `band` x `band` DCT frequencies.

    After Guo, Frank and Weinberger 2019; scaled to touch the ball.

    Attributes:
        band: how many frequencies each way; none: a quarter of the side, at least 2.
    """

    kind: Literal["lowfreq"] = "lowfreq"
    band: Annotated[int, Field(ge=1)] | None = None


class PowerProbe(Record):
    """Power iteration on finite differences: v <- P(x + r v) − P(x), orthonormalised.

    Finds the `block` directions that a symmetric Jacobian stretches most, image by image and draw
    by draw. `power` in a report is the first of them, `power:2` the second, and so on.

    Attributes:
        block: how many directions.
        iterations: how often they are put through the purifier.
    """

    kind: Literal["power"] = "power"
    block: Annotated[int, Field(ge=1, le=64)] = 2
    iterations: Annotated[int, Field(ge=1, le=1000)] = 6


class FileProbe(Record):
    """Perturbed images that the user brings, matched to the audited ones by id.

    Attributes:
        path: a source of images, as `--data` takes it.
    """

    kind: Literal["file"] = "file"
    path: str


Probe = Annotated[
    SignProbe | UniformProbe | SphereProbe | LowFrequencyProbe | PowerProbe | FileProbe,
    Field(discriminator="kind"),
]
ISOTROPIC_PROBES = ("sign", "uniform", "sphere")  # E[v vᵀ] is a multiple of the identity
_PROBE: TypeAdapter[Probe] = TypeAdapter(Probe)
_SAMPLER: TypeAdapter[Sampler] = TypeAdapter(Sampler)


class AuditPlan(Record):
    """Everything that decides the numbers of an audit; pixel units are [0, 1].

    Attributes:
        checkpoint: a file, a folder, `module:factory`, or an input transformation such as
            `jpeg:quality=75`.
        reading: how to read a checkpoint that is not ours, if it is not.
        classifier: a classifier's checkpoint or code, or none.
        classifier_reading: how to read it, if it is not ours.
        data: source of images (`purify_audit.images`).
        first_id: with `last_id`, only images with first_id <= id < last_id.
        last_id: see `first_id`.
        images: how many images at most.
        norm: the ball of the probes.
        eps: its radii.
        probes: kinds of perturbation, each measured at every radius.
        draws: draws of the purifier's randomness for each image.
        directions: perturbations of each random probe for each image, in pairs v and −v.
        t_star: overrides the card's.
        sampler: overrides the card's.
        engine: how the purifier's network is run.
        seed: the key of all randomness.
        microbatch: purifications computed together, always exactly this many.
        level: of the intervals.
        tolerance: stop at the first look where the first probe's rates (l2) are known within it.
        first_look: look at the intervals on the way, from so many images on, so that whoever asks
            may stop at a look: a gate whose rules are decided.
        attack: how to attack, if at all.
    """

    checkpoint: str
    reading: Reading | None = None
    classifier: str | None = None
    classifier_reading: Reading | None = None
    data: str
    first_id: Annotated[int, Field(ge=0)] | None = None
    last_id: Annotated[int, Field(ge=1)] | None = None
    images: Annotated[int, Field(ge=1)]
    norm: Norm
    eps: Annotated[tuple[Radius, ...], Field(min_length=1)]
    probes: Annotated[tuple[Probe, ...], Field(min_length=1)]
    draws: Annotated[int, Field(ge=1, lt=2**32)]
    directions: Annotated[int, Field(ge=1, lt=2**32)]
    t_star: Annotated[int, Field(ge=1)] | None = None
    sampler: Sampler | None = None
    engine: Engine = PLAIN
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    microbatch: Annotated[int, Field(ge=1, le=65536)]
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    tolerance: Annotated[float, Field(gt=0)] | None = None
    first_look: Annotated[int, Field(ge=2)] | None = None
    attack: AttackPlan | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.eps)) != len(self.eps):
            raise ValueError("a radius is given twice")
        if self.norm == "linf" and max(self.eps) > 1:
            raise ValueError(f"an l-inf radius of {max(self.eps)} is more than the pixel range")
        kinds = [probe.kind for probe in self.probes]
        if len(set(kinds)) != len(kinds):
            raise ValueError("a kind of probe is given twice")
        if self.attack is not None and self.classifier is None:
            raise ValueError("an attack needs a classifier; name one with --classifier")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's JSON, in hexadecimal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of images after which the interval is looked at, declared beforehand.

        Without a tolerance or a first look there is one, at the end; else at an eighth, a quarter,
        half and all of the images, leaving out looks at fewer than `first_look` or 8.
        """
        if self.tolerance is None and self.first_look is None:
            return (self.images,)
        fewest = 8 if self.first_look is None else self.first_look
        parts = {math.ceil(self.images / share) for share in (8, 4, 2, 1)}
        return tuple(sorted(n for n in parts if n >= fewest or n == self.images))

    @property
    def attack_looks(self) -> tuple[int, ...]:
        """The looks of the attack, which has no tolerance to stop at."""
        return (self.images,) if self.first_look is None else self.looks

    @property
    def look_level(self) -> float:
        """The level of each look, so that all looks together keep `level` (Bonferroni)."""
        return 1.0 - (1.0 - self.level) / len(self.looks)


def parse_probe(kind: str, settings: dict[str, str]) -> Probe:
    """A probe from its name and settings.

    Raises:
        PlanError: no such probe, or a setting it does not have.
    """
    if kind == "file" and len(settings) != 1:
        raise PlanError("probe 'file' needs a path: file:path=attacked.npz")
    try:
        return _PROBE.validate_python({"kind": kind, **settings})
    except ValidationError as error:
        raise PlanError(f"probe '{kind}': {first_fault(error)}") from None


SAMPLER_PRESETS: dict[str, dict[str, object]] = {
    "ddpm": {"kind": "ddpm", "variance": "fixed-small", "clip": True},
    "ddpm-large": {"kind": "ddpm", "variance": "fixed-large", "clip": True},
    "ddpm-unclipped": {"kind": "ddpm", "variance": "fixed-small", "clip": False},
    "ddpm-learned": {"kind": "ddpm", "variance": "learned-range", "clip": True},
    "ddim": {"kind": "ddim", "eta": 0.0, "clip": True},
    "ddim-stochastic": {"kind": "ddim", "eta": 1.0, "clip": False},
    "diffpure-sde": {"kind": "vp-sde", "steps": None, "clamp": False},
    "diffpure-ode": {"kind": "vp-ode", "steps": None, "clamp": False},
    "one-step": {"kind": "one-step", "clip": True},
}
"""Every choice of a sampler that the literature circulates under a name; `docs/method.md` 4."""


def parse_sampler(preset: str, settings: dict[str, str]) -> Sampler:
    """A sampler from the name of a preset and settings that change it.

    Raises:
        PlanError: no such preset, or a setting it does not have.
    """
    if preset not in SAMPLER_PRESETS:
        raise PlanError(f"no sampler '{preset}'; there are {', '.join(SAMPLER_PRESETS)}")
    try:
        return _SAMPLER.validate_python({**SAMPLER_PRESETS[preset], **settings})
    except ValidationError as error:
        raise PlanError(f"sampler '{preset}': {first_fault(error)}") from None
