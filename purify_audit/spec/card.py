"""Model cards: everything needed to build and run a checkpoint, as validated records.

A card is stored as JSON in a safetensors header under the key `purify_audit`. There are six
families: diffusion purifiers, feed-forward purifiers, input transformations, user code, exported
graphs, and classifiers.
"""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    Field,
    PositiveFloat,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from purify_audit.core.errors import CardError
from purify_audit.core.records import Record, first_fault, printable
from purify_audit.spec.architectures import (
    AutoencoderArgs,
    ClassifierNetwork,
    CodeArgs,
    DiffusersArgs,
    DiffusionNetwork,
    EDMArgs,
    GraphArgs,
    NCSNppArgs,
    RestorationNetwork,
)
from purify_audit.spec.norms import Positive
from purify_audit.spec.samplers import (
    SMALLEST_TIME,
    ContinuousSampler,
    DDIMSampler,
    DDPMSampler,
    Sampler,
    Schedule,
)
from purify_audit.spec.transforms import GaussianNoise, Transform

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


def _halves(image: ImageSpec, levels: int, patch: int = 1) -> None:
    """Raise ValueError unless height and width can be halved between all levels of a network."""
    unit = patch * 2 ** (levels - 1)
    if image.height % unit or image.width % unit:
        patches = f" once cut into patches of {patch}" if patch > 1 else ""
        raise ValueError(
            f"{image.height} x {image.width} pixels cannot be halved {levels - 1} times{patches},"
            f" as a network of {levels} levels does"
        )


class _Card(Record):
    spec: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=200)]
    image: ImageSpec
    provenance: Provenance


class DiffusionCard(_Card):
    """A diffusion model used as a purifier: noise to t*, then denoise."""

    family: Literal["diffusion"] = "diffusion"
    network: DiffusionNetwork
    prediction: Literal["eps", "x0", "v", "score"]
    # Second input of the network: i, 999 t, or sigma = sqrt(1/abar − 1), with x / sqrt(abar).
    # (Cards written before version 2.0 call it `clock`.)
    time_conditioning: Annotated[
        Literal["index", "continuous", "sigma"],
        Field(validation_alias=AliasChoices("time_conditioning", "clock")),
    ]
    schedule: Schedule
    data_range: DataRange
    learned_variance: bool = False  # the network has a second half of channels: variance logits
    # Purification noises to index t* − 1 of the schedule (Nie et al. 2022); with leading spacing,
    # to the highest index of the grid.
    t_star: Positive
    sampler: Sampler

    @property
    def randomised(self) -> bool:
        """Always: the forward noise."""
        return True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        multipliers = getattr(self.network, "multipliers", (1,))
        _halves(self.image, len(multipliers), getattr(self.network, "patch", 1))
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
        if self.time_conditioning == "sigma" and (self.prediction == "v" or self.learned_variance):
            raise ValueError(
                "a network conditioned on sigma predicts eps, x0 or score, and no variance"
            )
        if self.sampler.kind in ("vp-sde", "vp-ode") and self.schedule.kind in ("cosine", "table"):
            raise ValueError(f"the {self.sampler.kind} sampler needs a linear or vp schedule")
        return self

    @model_validator(mode="after")
    def _fits_the_network(self) -> Self:
        network, conventions = self.network, (self.prediction, self.time_conditioning)
        if isinstance(network, NCSNppArgs | EDMArgs) and self.learned_variance:
            raise ValueError(f"network {network.arch} has no learned_variance")
        if isinstance(network, EDMArgs) and conventions != ("x0", "sigma"):
            raise ValueError("network edm predicts x0 and its time_conditioning is sigma")
        if (
            isinstance(network, NCSNppArgs)
            and network.scale_by_sigma
            and self.time_conditioning != "sigma"
        ):
            raise ValueError("a network with scale_by_sigma has time_conditioning sigma")
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        sampler = self.sampler
        if not isinstance(sampler, DDPMSampler | DDIMSampler) or sampler.steps is None:
            return self
        first = (sampler.steps - 1) * (self.t_star // sampler.steps) + sampler.offset
        if sampler.spacing == "leading" and first >= self.t_star:
            raise ValueError(
                f"{sampler.steps} steps of leading spacing and offset {sampler.offset} begin at"
                f" index {first}, but the highest below t_star is {self.t_star - 1}"
            )
        return self

    @model_validator(mode="after")
    def _diffusers_fits(self) -> Self:
        if isinstance(self.network, DiffusersArgs):
            _halves(self.image, self.network.levels)
            out = self.image.channels * (2 if self.learned_variance else 1)
            if self.network.channels != (self.image.channels, out):
                raise ValueError(
                    f"config.json has a network of {self.network.channels} channels in and out;"
                    f" the card needs {(self.image.channels, out)}"
                )
        return self

    @model_validator(mode="after")
    def _steps_of_time(self) -> Self:
        if isinstance(self.sampler, ContinuousSampler):
            steps = self.sampler.steps or self.t_star
            if self.t_star / (steps * self.schedule.steps) <= SMALLEST_TIME:
                raise ValueError(f"{steps} steps are shorter than the {SMALLEST_TIME} left out")
        return self


class FeedforwardCard(_Card):
    """One pass of a network: a denoising autoencoder, or noise-then-denoise when sigma > 0.

    Attributes:
        sigma: of Gaussian noise added first, in pixel units.
        level: of the noise that a conditioned network removes, in pixel units too; its input is
            level × (high − low) of the data range.
        per_channel: the network has one channel and is given each colour by itself.
        data_range: what pixels 0 and 1 are mapped to before the network sees them.
        clamp: limit the result to [0, 1].
    """

    family: Literal["feedforward"] = "feedforward"
    network: RestorationNetwork
    sigma: Annotated[float, Field(ge=0, le=10)] = 0.0
    level: Annotated[float, Field(ge=0, le=10)] | None = None
    per_channel: bool = False
    data_range: DataRange = (0.0, 1.0)
    clamp: bool = True

    @property
    def randomised(self) -> bool:
        """Whether noise is added before the network."""
        return self.sigma > 0.0

    @property
    def evaluations(self) -> int:
        """One network evaluation, or one for each colour."""
        return self.image.channels if self.per_channel else 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.network, AutoencoderArgs):
            _halves(self.image, len(self.network.widths))
        conditioned = self.network.arch in ("ffdnet", "drunet")
        if conditioned != (self.level is not None):
            need = "needs" if conditioned else "does not take"
            raise ValueError(f"network {self.network.arch} {need} a noise level (`level`)")
        return self


class TransformCard(_Card):
    """An input transformation: no weights."""

    family: Literal["transform"] = "transform"
    transform: Transform

    @property
    def randomised(self) -> bool:
        """Only Gaussian noise is."""
        return isinstance(self.transform, GaussianNoise)

    @property
    def evaluations(self) -> int:
        """One pass over the image."""
        return 1


class CodeCard(_Card):
    """User code: a callable that maps images in [0, 1] to images in [0, 1].

    Its randomness is captured (`purify_audit.models.user_code.capture`).
    """

    family: Literal["code"] = "code"
    network: CodeArgs
    randomised: bool
    evaluations: Annotated[int, Field(ge=1)] = 1  # network evaluations in one purification
    clamp: bool = False


class GraphCard(_Card):
    """An exported graph that maps images in its data range to images in it.

    Attributes:
        noise: source of its randomness: `none`; `inputs`, tensors of standard normals
            named in `noise_inputs`; `seed`, one integer input for each batch; `captured`, random
            operators inside the graph.
        noise_inputs: names and shapes (without the batch) of the noise inputs, in order.
    """

    family: Literal["graph"] = "graph"
    network: GraphArgs
    noise: Literal["none", "inputs", "seed", "captured"] = "none"
    noise_inputs: dict[str, tuple[Positive, ...]] = Field(default_factory=dict)
    data_range: DataRange = (0.0, 1.0)
    evaluations: Annotated[int, Field(ge=1)] = 1
    clamp: bool = True

    @property
    def randomised(self) -> bool:
        """Whether the output depends on the draw."""
        return self.noise != "none"

    @model_validator(mode="after")
    def _named_inputs(self) -> Self:
        if (self.noise == "inputs") != bool(self.noise_inputs):
            raise ValueError("noise_inputs are named exactly where noise is 'inputs'")
        return self


class ClassifierCard(_Card):
    """A classifier: logits of (x − mean) / std for pixels x in [0, 1]."""

    family: Literal["classifier"] = "classifier"
    network: ClassifierNetwork
    classes: Annotated[int, Field(ge=2, le=100_000)]
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]

    @model_validator(mode="after")
    def _per_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.image.channels:
            raise ValueError(f"mean and std need one number for each of {self.image.channels}")
        return self


PurifierCard = DiffusionCard | FeedforwardCard | TransformCard | CodeCard | GraphCard
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
