"""Networks of diffusion models: noisy images and times to a prediction."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from purify_audit.core.records import Record, first_fault
from purify_audit.spec.architectures.sizes import (
    Blocks,
    Channels,
    Levels,
    Multipliers,
    levels_exist,
)


class _Levels(Record):
    """A U-Net by levels: level 0 has full resolution, each further level half of the one before.

    Attributes:
        multipliers: width factor of each level.
        blocks: residual blocks in each level.
        attention: levels whose blocks are followed by self-attention.
    """

    multipliers: Multipliers
    blocks: Blocks
    attention: Levels = ()

    @model_validator(mode="after")
    def _attends_where_it_can(self) -> Self:
        levels_exist(self.attention, self.multipliers)
        return self


class UNetArgs(_Levels):
    """`purify_audit.models.networks.unet.UNet`."""

    arch: Literal["unet"] = "unet"
    width: Channels
    groups: Channels = 8
    patch: Annotated[int, Field(ge=1, le=16)] = 1

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.width % self.groups:
            raise ValueError(f"width {self.width} is not a multiple of groups {self.groups}")
        if self.width % 2:
            raise ValueError(f"width {self.width} must be even (sines and cosines of the time)")
        return self


class NCSNppArgs(_Levels):
    """`purify_audit.models.networks.ncsnpp.NCSNpp` (Song et al. 2021, appendix H).

    The middle always has self-attention.

    Attributes:
        embedding: of the time: sines and cosines, or of the logarithm at random frequencies
            (`fourier`).
        fir: resample with the filter [1, 3, 3, 1] rather than nearest neighbour and averages.
        progressive_input: whether a downsampled image is added at every level.
        scale_by_sigma: divide the output by the noise level (VE models).
        centered: trained on pixels in [−1, 1]; if not, in [0, 1], doubled inside the network.
        scales: length of the table `sigmas`, which is stored with the weights and not read.
    """

    arch: Literal["ncsnpp"] = "ncsnpp"
    width: Annotated[int, Field(ge=4, le=4096, multiple_of=4)]
    embedding: Literal["positional", "fourier"] = "positional"
    fir: bool = False
    progressive_input: Literal["none", "residual"] = "none"
    scale_by_sigma: bool = False
    centered: bool = True
    scales: Annotated[int, Field(ge=1, le=100_000)] = 1000

    @model_validator(mode="after")
    def _published_together(self) -> Self:
        if self.progressive_input == "residual" and not self.fir:
            raise ValueError("progressive_input residual resamples by the filter: it needs fir")
        if self.scale_by_sigma and self.embedding != "fourier":
            raise ValueError(
                "scale_by_sigma needs embedding fourier: a positional network takes an index into"
                " a table of noise levels, which no time_conditioning gives"
            )
        return self


class ADMArgs(_Levels):
    """`purify_audit.models.networks.adm.ADM` (Nichol and Dhariwal 2021; Dhariwal and Nichol 2021).

    The middle always has self-attention.

    Attributes:
        heads: of each attention; or none, and then `head_channels` decides.
        head_channels: width of one head.
        resblock_updown: resample inside residual blocks.
        scale_shift: the time scales and shifts normalised features (else it is added).
        new_attention_order: split queries, keys and values before heads, not after.
        time_scale: factor of the time input: 1000 / steps for models trained on
            another number of steps with `rescale_timesteps` (0.25 for 4000).
    """

    arch: Literal["adm"] = "adm"
    width: Annotated[int, Field(ge=32, le=4096, multiple_of=32)]  # for GroupNorm of 32 groups
    heads: Annotated[int, Field(ge=1, le=256)] | None = None
    head_channels: Channels | None = None
    resblock_updown: bool = False
    scale_shift: bool = True
    new_attention_order: bool = False
    time_scale: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _one_rule_for_heads(self) -> Self:
        if (self.heads is None) == (self.head_channels is None):
            raise ValueError("give heads or head_channels, and not both")
        for level in {*self.attention, len(self.multipliers) - 1}:
            channels, unit = self.width * self.multipliers[level], self.heads or self.head_channels
            if unit is not None and channels % unit:
                what = "heads" if self.heads else "head_channels"
                raise ValueError(
                    f"{what} {unit} do not divide {channels} channels of level {level}"
                )
        return self


class DDPMUNetArgs(_Levels):
    """`purify_audit.models.networks.ddpm_unet.DDPMUNet` (Ho et al. 2020, appendix B).

    The middle always has self-attention.
    """

    arch: Literal["ddpm-unet"] = "ddpm-unet"
    width: Annotated[int, Field(ge=32, le=4096, multiple_of=32)]  # for GroupNorm of 32 groups


class EDMArgs(_Levels):
    """`purify_audit.models.networks.edm.EDM` (Karras et al. 2022, table 1).

    The middle always has self-attention.

    Attributes:
        preconditioning: `vp` or `edm`: columns of the table.
        sigma_data: standard deviation of the data; `vp` does not use it.
        augment: labels of non-leaking augmentation; they are zero when purifying.
    """

    arch: Literal["edm"] = "edm"
    width: Annotated[int, Field(ge=4, le=4096, multiple_of=4)]
    preconditioning: Literal["vp", "edm"]
    sigma_data: PositiveFloat = 0.5
    augment: Annotated[int, Field(ge=0, le=64)] = 0


class LucidrainsArgs(Record):
    """`purify_audit.models.networks.lucidrains.LucidrainsUNet` (denoising-diffusion-pytorch).

    Attributes:
        groups: of GroupNorm inside the blocks (package versions before 2.0); or none, for RMSNorm.
        heads: of every attention.
        head_channels: width of one head.
        memory: learned keys and values of each head, in addition to those of the pixels.
        full_attention: levels with softmax attention; the others have linear attention. The
            middle always has softmax attention; the package's default is the last level.
    """

    arch: Literal["lucidrains-unet"] = "lucidrains-unet"
    width: Annotated[int, Field(ge=4, le=4096, multiple_of=2)]  # for sines and cosines of the time
    multipliers: Multipliers
    groups: Channels | None = None
    heads: Annotated[int, Field(ge=1, le=256)] = 4
    head_channels: Channels = 32
    memory: Annotated[int, Field(ge=1, le=1024)] = 4
    full_attention: Levels = ()

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        levels_exist(self.full_attention, self.multipliers)
        if self.groups is not None and self.width % self.groups:
            raise ValueError(f"width {self.width} is not a multiple of groups {self.groups}")
        return self


class _UNet2DConfig(BaseModel):
    """What is checked in a `config.json` of `diffusers.UNet2DModel`; diffusers reads the rest."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    class_name: Annotated[Literal["UNet2DModel"], Field(alias="_class_name")]
    in_channels: Channels
    out_channels: Channels
    block_out_channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=10)]
    layers_per_block: Blocks = 2
    time_embedding_type: Literal["positional", "fourier"] = "positional"
    class_embed_type: str | None = None
    num_class_embeds: int | None = None

    @model_validator(mode="after")
    def _no_classes(self) -> Self:
        if self.class_embed_type is not None or self.num_class_embeds is not None:
            raise ValueError("the network is class-conditional; a purifier knows no class")
        return self


class DiffusersArgs(Record):
    """`diffusers.UNet2DModel`, built by diffusers itself (an extra).

    Attributes:
        config: the model's `config.json`, as text. Channels and numbers of layers are bounded,
            classes and learned time embeddings are refused.
    """

    arch: Literal["diffusers-unet2d"] = "diffusers-unet2d"
    config: Annotated[str, Field(max_length=100_000)]

    @model_validator(mode="after")
    def _config_can_be_used(self) -> Self:
        try:
            self._checked()
        except ValidationError as error:
            raise ValueError(f"in config.json, {first_fault(error)}") from None
        return self

    @property
    def channels(self) -> tuple[int, int]:
        """Of what the model takes, and of what it returns."""
        checked = self._checked()
        return checked.in_channels, checked.out_channels

    @property
    def levels(self) -> int:
        """How many resolutions; each after the first is half of the one before."""
        return len(self._checked().block_out_channels)

    def _checked(self) -> _UNet2DConfig:
        return _UNet2DConfig.model_validate_json(self.config)


DiffusionNetwork = Annotated[
    UNetArgs | NCSNppArgs | ADMArgs | DDPMUNetArgs | EDMArgs | LucidrainsArgs | DiffusersArgs,
    Field(discriminator="arch"),
]
