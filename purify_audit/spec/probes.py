"""Probes: the perturbations with which the compression rate is measured."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from purify_audit.core.errors import PlanError
from purify_audit.core.records import Record, first_fault


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
        iterations: number of power iterations.
    """

    kind: Literal["power"] = "power"
    block: Annotated[int, Field(ge=1, le=64)] = 2
    iterations: Annotated[int, Field(ge=1, le=1000)] = 6


class FileProbe(Record):
    """Perturbed images supplied by the user, matched to the audited ones by id.

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
