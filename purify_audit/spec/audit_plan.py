"""Audit plan: all settings of an audit, as a validated record."""

import hashlib
import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from purify_audit.core.records import Record
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.spec.engine import PLAIN, Engine
from purify_audit.spec.load_options import LoadOptions
from purify_audit.spec.norms import Norm, Radius, check_radii
from purify_audit.spec.probes import Probe
from purify_audit.spec.samplers import Sampler


class AuditPlan(Record):
    """Everything that decides the numbers of an audit; pixel units are [0, 1].

    Attributes:
        checkpoint: a file, a folder, `module:factory`, or an input transformation such as
            `jpeg:quality=75`.
        load_options: how to read a checkpoint without a card.
        classifier: a classifier's checkpoint or code, or none.
        classifier_load_options: how to read it, if it has no card.
        data: source of images (`purify_audit.images.image_set`).
        first_id: with `last_id`, only images with first_id <= id < last_id.
        last_id: see `first_id`.
        images: maximum number of images.
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
        first_look: number of images of the first interim look at the intervals, at which the caller
            may stop: a gate whose rules are decided.
        attack: the attack, or none.
    """

    checkpoint: str
    load_options: LoadOptions | None = None
    classifier: str | None = None
    classifier_load_options: LoadOptions | None = None
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
        check_radii(self.norm, self.eps)
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
        """Numbers of images of the interim and final looks, fixed beforehand.

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
