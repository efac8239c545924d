"""Networks of classifiers, and models with a network of their own: user code, exported graphs."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from purify_audit.core.records import Record
from purify_audit.spec.architectures.chains import SequentialArgs
from purify_audit.spec.architectures.sizes import Channels


class CnnArgs(Record):
    """`purify_audit.models.networks.classifiers.Cnn`."""

    arch: Literal["cnn"] = "cnn"
    widths: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8)]
    hidden: Channels


class CifarResNetArgs(Record):
    """`purify_audit.models.networks.classifiers.CifarResNet` (He et al. 2016, section 4.2)."""

    arch: Literal["cifar-resnet"] = "cifar-resnet"
    depth: Annotated[int, Field(ge=8, le=1202)]

    @model_validator(mode="after")
    def _six_n_plus_two(self) -> Self:
        if (self.depth - 2) % 6:
            raise ValueError(f"depth {self.depth} is not 6n + 2")
        return self


class WideResNetArgs(Record):
    """`purify_audit.models.networks.wideresnet.WideResNet` (Zagoruyko and Komodakis 2016).

    Attributes:
        layout: names of the tensors, as two families of published weights have them: `classic`
            (`block1.layer.0.conv1`, ReLU) or `deepmind` (`layer.0.block.0.conv_0`, SiLU).
    """

    arch: Literal["wideresnet"] = "wideresnet"
    depth: Annotated[int, Field(ge=10, le=1000)]
    width: Annotated[int, Field(ge=1, le=64)]
    layout: Literal["classic", "deepmind"]

    @model_validator(mode="after")
    def _six_n_plus_four(self) -> Self:
        if (self.depth - 4) % 6:
            raise ValueError(f"depth {self.depth} is not 6n + 4")
        return self


class CodeArgs(Record):
    """User code: an importable factory function that returns the model.

    Attributes:
        factory: `package.module:function`.
        arguments: of the factory, as text.
    """

    arch: Literal["code"] = "code"
    factory: Annotated[str, Field(min_length=1, max_length=500)]
    arguments: dict[str, str] = Field(default_factory=dict)


class GraphArgs(Record):
    """An exported graph: `torch.export`, ONNX or TorchScript."""

    arch: Literal["graph"] = "graph"
    container: Literal["pt2", "onnx", "torchscript"]


ClassifierNetwork = Annotated[
    CnnArgs | CifarResNetArgs | WideResNetArgs | SequentialArgs | CodeArgs | GraphArgs,
    Field(discriminator="arch"),
]
