"""Noise schedules and samplers, as tagged unions of settings records."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, TypeAdapter, ValidationError, model_validator

from purify_audit.core.errors import PlanError
from purify_audit.core.records import Record, first_fault
from purify_audit.spec.norms import Positive

SMALLEST_TIME = 1e-5  # the vp samplers end here, not at 0 (Nie et al. 2022, as their code does)


# --- noise schedules ----------------------------------------------------------------------------


class LinearSchedule(Record):
    """beta_i equally spaced (Ho et al. 2020, section 4)."""

    kind: Literal["linear"] = "linear"
    steps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 2e-2


class CosineSchedule(Record):
    """abar(t) = cos²((t + s)/(1 + s) · π/2), normalised (Nichol and Dhariwal 2021, eq. 17)."""

    kind: Literal["cosine"] = "cosine"
    steps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    offset: PositiveFloat = 0.008
    beta_max: Annotated[float, Field(gt=0, lt=1)] = 0.999


class VPSchedule(Record):
    """beta(t) = beta_min + t (beta_max − beta_min), t in (0, 1] (Song et al. 2021, eq. 32)."""

    kind: Literal["vp"] = "vp"
    steps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    beta_min: PositiveFloat = 0.1
    beta_max: PositiveFloat = 20.0


class TableSchedule(Record):
    """beta_i as stored beside the weights."""

    kind: Literal["table"] = "table"
    betas: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1, max_length=10_000)
    ]

    @property
    def steps(self) -> int:
        """The number of indices."""
        return len(self.betas)


Schedule = Annotated[
    LinearSchedule | CosineSchedule | VPSchedule | TableSchedule, Field(discriminator="kind")
]


# --- samplers -----------------------------------------------------------------------------------


class _Sampler(Record):
    rounds: Annotated[int, Field(ge=1, le=1000)] = 1
    clamp: bool = True  # limit the final image to [0, 1]


Spacing = Literal["trailing", "leading", "linspace"]
"""Of the indices visited: `purify_audit.models.purifiers.schedule.reverse_indices`."""


class _Strided(_Sampler):
    steps: Positive | None = None  # number of steps; none: every index
    stride: Positive | None = None  # or one step every `stride` indices
    spacing: Spacing = "trailing"  # of `steps` steps
    offset: Annotated[int, Field(ge=0, le=1000)] = 0  # added to the indices of leading spacing

    @model_validator(mode="after")
    def _one_grid(self) -> Self:
        if self.steps is not None and self.stride is not None:
            raise ValueError("give steps or stride, not both")
        return self


class DDPMSampler(_Strided):
    """Ancestral sampling (Ho et al. 2020, algorithm 2; strided as in Nichol and Dhariwal 2021)."""

    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["fixed-small", "fixed-large", "learned-range"] = "fixed-small"
    clip: bool = True  # limit the predicted clean image to the data range in every step


class DDIMSampler(_Strided):
    """DDIM (Song, Meng and Ermon 2021, eq. 12)."""

    kind: Literal["ddim"] = "ddim"
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip: bool = True
    clipped_eps: bool = True  # recompute eps from the clipped x0; diffusers does not


class ContinuousSampler(_Sampler):
    """A sampler in continuous time, for schedules that have one (linear and vp)."""

    steps: Positive | None = None  # none: one step per index of the schedule


class VPSDESampler(ContinuousSampler):
    """Reverse VP-SDE by Euler and Maruyama (Nie et al. 2022, eq. 8, as their code steps it)."""

    kind: Literal["vp-sde"] = "vp-sde"


class VPODESampler(ContinuousSampler):
    """Probability-flow ODE by Euler (Song et al. 2021, eq. 13); noised forward at random."""

    kind: Literal["vp-ode"] = "vp-ode"


class OneStepSampler(_Sampler):
    """Noise to t*, then one estimate of the clean image (Carlini et al. 2023)."""

    kind: Literal["one-step"] = "one-step"
    clip: bool = True


Sampler = Annotated[
    DDPMSampler | DDIMSampler | VPSDESampler | VPODESampler | OneStepSampler,
    Field(discriminator="kind"),
]

_SAMPLER: TypeAdapter[Sampler] = TypeAdapter(Sampler)


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
"""Samplers that have a name in the literature; `docs/method.md`, section 4."""


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
