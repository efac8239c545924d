"""Networks of feed-forward purifiers: images to images."""

from typing import Annotated, Literal

from pydantic import Field

from purify_audit.core.records import Record
from purify_audit.spec.architectures.chains import SequentialArgs
from purify_audit.spec.architectures.sizes import Blocks, Channels


class AutoencoderArgs(Record):
    """`purify_audit.models.networks.autoencoder.Autoencoder`."""

    arch: Literal["autoencoder"] = "autoencoder"
    widths: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8)]


class DnCNNArgs(Record):
    """`purify_audit.models.networks.restoration.DnCNN`: x − model(x) (Zhang et al. 2017).

    Attributes:
        depth: convolutions, the first and the last included.
        batch_norm: after each but these two; published weights have it merged into them.
    """

    arch: Literal["dncnn"] = "dncnn"
    width: Channels = 64
    depth: Annotated[int, Field(ge=2, le=100)] = 17
    batch_norm: bool = False


class FFDNetArgs(Record):
    """`purify_audit.models.networks.restoration.FFDNet`, with noise level (Zhang et al. 2018).

    Published: width 64 and depth 15 for grey images, 96 and 12 for colour.
    """

    arch: Literal["ffdnet"] = "ffdnet"
    width: Channels
    depth: Annotated[int, Field(ge=2, le=100)]


class DRUNetArgs(Record):
    """`purify_audit.models.networks.restoration.DRUNet`, with noise level (Zhang et al. 2021).

    Attributes:
        widths: channels of every level.
        blocks: residual blocks of every level, on the way down and again on the way up.
    """

    arch: Literal["drunet"] = "drunet"
    widths: Annotated[tuple[Channels, ...], Field(min_length=2, max_length=8)] = (64, 128, 256, 512)
    blocks: Blocks = 4


class SpandrelArgs(Record):
    """Whatever `spandrel` (an extra) detects in the weights, used as an image restorer."""

    arch: Literal["spandrel"] = "spandrel"


RestorationNetwork = Annotated[
    AutoencoderArgs | SequentialArgs | DnCNNArgs | FFDNetArgs | DRUNetArgs | SpandrelArgs,
    Field(discriminator="arch"),
]
