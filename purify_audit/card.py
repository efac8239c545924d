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

from purify_audit.choices import (
    SMALLEST_TIME,
    AutoencoderArgs,
    CifarResNetArgs,
    CnnArgs,
    DDIMSampler,
    DDPMSampler,
    GaussianNoise,
    Positive,
    Sampler,
    Schedule,
    Transform,
    UNetArgs,
    VPODESampler,
    VPSDESampler,
)
from purify_audit.errors import CardError
from purify_audit.record import Record, first_fault, printable

CARD_SPEC = 1


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
            if self.t_star / (steps * self.schedule.steps) <= SMALLEST_TIME:
                raise ValueError(f"{steps} steps are shorter than the {SMALLEST_TIME} left out")
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


def _spec(text: str | bytes) -> int:
    try:
        return _Version.model_validate_json(text).spec
    except ValidationError:
        return CARD_SPEC
