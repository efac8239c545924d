"""Input transformations, as settings."""

from typing import Annotated, Literal

from pydantic import Field

from purify_audit.core.records import Record


class Identity(Record):
    """The image unchanged."""

    kind: Literal["identity"] = "identity"


class BitDepth(Record):
    """Bit-depth reduction (Xu, Evans and Qi 2018, section III.A)."""

    kind: Literal["bit-depth"] = "bit-depth"
    bits: Annotated[int, Field(ge=1, le=8)] = 5


class Jpeg(Record):
    """JPEG compression and decompression (Dziugaite, Ghahramani and Roy 2016)."""

    kind: Literal["jpeg"] = "jpeg"
    quality: Annotated[int, Field(ge=1, le=100)] = 75


class Median(Record):
    """Median smoothing (Xu, Evans and Qi 2018, section III.B)."""

    kind: Literal["median"] = "median"
    size: Annotated[int, Field(ge=1, le=15)] = 2


class GaussianSmoothing(Record):
    """Convolution with a Gaussian of standard deviation `sigma` pixels."""

    kind: Literal["gaussian-smoothing"] = "gaussian-smoothing"
    sigma: Annotated[float, Field(gt=0, le=16)] = 1.0


class GaussianNoise(Record):
    """x + N(0, sigma²), pixel units, not clipped (Cohen, Rosenfeld and Kolter 2019, eq. 1)."""

    kind: Literal["gaussian-noise"] = "gaussian-noise"
    sigma: Annotated[float, Field(gt=0, le=10)] = 0.25


Transform = Annotated[
    Identity | BitDepth | Jpeg | Median | GaussianSmoothing | GaussianNoise,
    Field(discriminator="kind"),
]
