"""What a checkpoint says of itself: everything needed to build and run it, as data.

A card is stored as JSON in a safetensors header under the key `purify_audit`. There are four
families: diffusion purifiers, feed-forward purifiers, input transformations, and classifiers.
"""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PositiveFloat,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from purify_audit.errors import CardError
from purify_audit.record import Record, first_fault

CARD_SPEC = 1

_LONGEST = 300  # characters of foreign text in a message
_SMALLEST_TIME = 1e-5  # that the vp samplers leave out at the end (Nie et al. 2022)

Positive = Annotated[int, Field(ge=1)]
Channels = Annotated[int, Field(ge=1, le=4096)]
"""Bounded, so that a hostile card cannot ask for a network that never finishes building."""


class ImageSpec(Record):
    """The images a model takes: float32 [n, channels, height, width], pixels in [0, 1]."""

    channels: Annotated[int, Field(ge=1, le=64)]
    height: Annotated[int, Field(ge=1, le=8192)]
    width: Annotated[int, Field(ge=1, le=8192)]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width


class Provenance(Record):
    """Where the weights come from."""

    data: str
    command: str
    licence: str
    source: str | None = None


# --- networks -----------------------------------------------------------------------------------


class UNetArgs(Record):
    """`purify_audit.networks.unet.UNet`."""

    arch: Literal["unet"] = "unet"
    width: Channels
    multipliers: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(max_length=8)]
    blocks: Annotated[int, Field(ge=1, le=16)]
    attention: Annotated[tuple[Annotated[int, Field(ge=0, le=7)], ...], Field(max_length=8)] = ()
    groups: Channels = 8

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if not self.multipliers:
            raise ValueError("multipliers must name at least one level")
        if self.width % self.groups:
            raise ValueError(f"width {self.width} is not a multiple of groups {self.groups}")
        if any(level >= len(self.multipliers) for level in self.attention):
            raise ValueError(f"attention {self.attention} names a level that is not there")
        if self.width % 2:
            raise ValueError(f"width {self.width} must be even (sines and cosines of the time)")
        return self


class AutoencoderArgs(Record):
    """`purify_audit.networks.autoencoder.Autoencoder`."""

    arch: Literal["autoencoder"] = "autoencoder"
    widths: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8)]


class CnnArgs(Record):
    """`purify_audit.networks.classifiers.Cnn`."""

    arch: Literal["cnn"] = "cnn"
    widths: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8)]
    hidden: Channels


class CifarResNetArgs(Record):
    """`purify_audit.networks.classifiers.CifarResNet` (He et al. 2016, section 4.2)."""

    arch: Literal["cifar-resnet"] = "cifar-resnet"
    depth: Annotated[int, Field(ge=8, le=1202)]

    @model_validator(mode="after")
    def _six_n_plus_two(self) -> Self:
        if (self.depth - 2) % 6:
            raise ValueError(f"depth {self.depth} is not 6n + 2")
        return self


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


Schedule = Annotated[LinearSchedule | CosineSchedule | VPSchedule, Field(discriminator="kind")]


# --- samplers -----------------------------------------------------------------------------------


class _Sampler(Record):
    rounds: Annotated[int, Field(ge=1, le=1000)] = 1
    clamp: bool = True  # limit the final image to [0, 1]


class _Strided(_Sampler):
    steps: Positive | None = None  # this many jumps, as even as integers allow; none: every index
    stride: Positive | None = None  # or one jump every so many indices

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


class VPSDESampler(_Sampler):
    """Reverse VP-SDE by Euler and Maruyama (Nie et al. 2022, eq. 8, as their code steps it)."""

    kind: Literal["vp-sde"] = "vp-sde"
    steps: Positive | None = None  # none: one step per thousandth of time


class VPODESampler(_Sampler):
    """Probability-flow ODE by Euler (Song et al. 2021, eq. 13); noised forward at random."""

    kind: Literal["vp-ode"] = "vp-ode"
    steps: Positive | None = None


class OneStepSampler(_Sampler):
    """Noise to t*, then one estimate of the clean image (Carlini et al. 2023)."""

    kind: Literal["one-step"] = "one-step"
    clip: bool = True


Sampler = Annotated[
    DDPMSampler | DDIMSampler | VPSDESampler | VPODESampler | OneStepSampler,
    Field(discriminator="kind"),
]

# --- input transformations ----------------------------------------------------------------------


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

# --- cards --------------------------------------------------------------------------------------


def _increasing(data_range: tuple[float, float]) -> tuple[float, float]:
    if data_range[0] >= data_range[1]:
        raise ValueError(f"data_range {data_range} is not increasing")
    return data_range


DataRange = Annotated[tuple[float, float], AfterValidator(_increasing)]
"""What pixels 0 and 1 are mapped to before the network sees them."""


def _halves(image: ImageSpec, levels: int) -> None:
    """Raise ValueError unless height and width can be halved between all levels of a network."""
    if image.height % 2 ** (levels - 1) or image.width % 2 ** (levels - 1):
        raise ValueError(
            f"{image.height} x {image.width} pixels cannot be halved {levels - 1} times, as a"
            f" network of {levels} levels does"
        )


class _Card(Record):
    spec: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=200)]
    image: ImageSpec
    provenance: Provenance


class DiffusionCard(_Card):
    """A diffusion model used as a purifier: noise to t*, then denoise."""

    family: Literal["diffusion"] = "diffusion"
    network: UNetArgs
    prediction: Literal["eps", "x0", "v", "score"]
    clock: Literal["index", "continuous"]  # the time fed to the network: i, or 999 t
    schedule: Schedule
    data_range: DataRange
    learned_variance: bool = False  # the network has a second half of channels: variance logits
    t_star: Positive  # purification noises to index t* − 1 of the schedule (Nie et al. 2022)
    sampler: Sampler

    @property
    def randomised(self) -> bool:
        """Always: the forward noise."""
        return True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _halves(self.image, len(self.network.multipliers))
        if self.t_star > self.schedule.steps:
            raise ValueError(f"t_star {self.t_star} is beyond the {self.schedule.steps} steps")
        length = max(self.t_star, getattr(self.sampler, "steps", None) or 0) + 1
        if self.sampler.rounds * length > 2**24:
            raise ValueError(f"{self.sampler.rounds} rounds of {length} steps outrun the noise")
        steps = getattr(self.sampler, "steps", None) or getattr(self.sampler, "stride", None)
        strided = isinstance(self.sampler, DDPMSampler | DDIMSampler)
        if strided and steps is not None and steps > self.t_star:
            raise ValueError(f"{steps} is more steps or stride than t_star {self.t_star}")
        if getattr(self.sampler, "variance", "") == "learned-range" and not self.learned_variance:
            raise ValueError("variance learned-range needs a network with learned_variance")
        if self.sampler.kind in ("vp-sde", "vp-ode") and self.schedule.kind == "cosine":
            raise ValueError(f"the {self.sampler.kind} sampler needs a linear or vp schedule")
        return self

    @model_validator(mode="after")
    def _steps_of_time(self) -> Self:
        if isinstance(self.sampler, VPSDESampler | VPODESampler):
            steps = self.sampler.steps or self.t_star
            if self.t_star / (steps * self.schedule.steps) <= _SMALLEST_TIME:
                raise ValueError(f"{steps} steps are shorter than the {_SMALLEST_TIME} left out")
        return self


class FeedforwardCard(_Card):
    """One pass of a network: a denoising autoencoder, or noise-then-denoise when sigma > 0."""

    family: Literal["feedforward"] = "feedforward"
    network: AutoencoderArgs
    sigma: Annotated[float, Field(ge=0, le=10)] = 0.0  # Gaussian noise added first, pixel units
    data_range: DataRange = (0.0, 1.0)
    clamp: bool = True

    @property
    def randomised(self) -> bool:
        """Whether noise is added before the network."""
        return self.sigma > 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _halves(self.image, len(self.network.widths))
        return self


class TransformCard(_Card):
    """An input transformation: no weights."""

    family: Literal["transform"] = "transform"
    transform: Transform

    @property
    def randomised(self) -> bool:
        """Only Gaussian noise is."""
        return isinstance(self.transform, GaussianNoise)


class ClassifierCard(_Card):
    """A classifier: logits of (x − mean) / std for pixels x in [0, 1]."""

    family: Literal["classifier"] = "classifier"
    network: Annotated[CnnArgs | CifarResNetArgs, Field(discriminator="arch")]
    classes: Annotated[int, Field(ge=2, le=100_000)]
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]

    @model_validator(mode="after")
    def _per_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.image.channels:
            raise ValueError(f"mean and std need one number for each of {self.image.channels}")
        return self


PurifierCard = DiffusionCard | FeedforwardCard | TransformCard
Card = Annotated[PurifierCard | ClassifierCard, Field(discriminator="family")]
_CARD: TypeAdapter[PurifierCard | ClassifierCard] = TypeAdapter(Card)


class _Version(BaseModel):
    """The one field that every version of a card has."""

    spec: int = CARD_SPEC


def parse_card(text: str | bytes, where: str) -> PurifierCard | ClassifierCard:
    """The card in a JSON text.

    Raises:
        CardError: not JSON, a field is missing, unknown, of a wrong type or out of range, or the
            card is newer than this program. The message begins with `where` and names the field.
    """
    try:
        return _CARD.validate_json(text, strict=True)
    except ValidationError as error:
        if (spec := _spec(text)) > CARD_SPEC:
            raise CardError(
                f"{where}: the card is of version {printable(str(spec))}, but this purify-audit"
                f" reads version {CARD_SPEC}: install a newer one"
            ) from None
        fault = printable(first_fault(error))
        raise CardError(f"{where}: the card cannot be used: {fault}") from None


def printable(text: str) -> str:
    """Text from a file, fit for a one-line message: escaped where it must be, cut where long."""
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _spec(text: str | bytes) -> int:
    try:
        return _Version.model_validate_json(text).spec
    except ValidationError:
        return CARD_SPEC
