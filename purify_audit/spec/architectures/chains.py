"""Sequential networks, described layer by layer."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from purify_audit.core.records import Record

Features = Annotated[int, Field(ge=1, le=1_000_000)]
TensorPrefix = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")]
_MOST_NUMBERS = 2**30  # parameters in all layers; VGG-16 has 2**27

# Required and optional settings of each kind of layer; others are refused.
_SIZES: dict[str, tuple[set[str], set[str]]] = {
    "conv": ({"name", "inputs", "outputs", "kernel"}, {"stride", "padding", "bias"}),
    "conv-transpose": ({"name", "inputs", "outputs", "kernel"}, {"stride", "padding", "bias"}),
    "linear": ({"name", "inputs", "outputs"}, {"bias"}),
    "batch-norm": ({"name", "inputs"}, set()),
    "max-pool": ({"kernel", "stride"}, {"padding"}),
    "average-pool": ({"kernel", "stride"}, {"padding"}),
    "upsample": ({"stride"}, set()),
}


class Layer(Record):
    """One layer of `purify_audit.models.networks.sequential.Sequential`.

    Attributes:
        kind: which; `upsample` repeats pixels (nearest neighbour), `flatten` leaves one axis.
        name: prefix of its tensors' names (`conv1`, `model.0`); none for a layer without weights.
        inputs: channels, or features of `linear`.
        outputs: the same, where they can differ.
        kernel: its height and width.
        stride: of the kernel, which for a pool must be said; the factor of `upsample`.
        padding: with zeros, on every side (a max-pool's never win; an average-pool's count).
        bias: whether it has one.
    """

    kind: Literal[
        "conv",
        "conv-transpose",
        "linear",
        "batch-norm",
        "relu",
        "silu",
        "sigmoid",
        "tanh",
        "max-pool",
        "average-pool",
        "upsample",
        "flatten",
    ]
    name: TensorPrefix | None = None
    inputs: Features | None = None
    outputs: Features | None = None
    kernel: Annotated[int, Field(ge=1, le=64)] = 1
    stride: Annotated[int, Field(ge=1, le=64)] = 1
    padding: Annotated[int, Field(ge=0, le=64)] = 0
    bias: bool = True

    @property
    def numbers(self) -> int:
        """Number of its parameters."""
        inputs, outputs = self.inputs or 0, self.outputs or 0
        if self.kind == "batch-norm":
            return 4 * inputs
        return outputs * (inputs * self.kernel**2 + self.bias)

    @model_validator(mode="after")
    def _has_its_sizes(self) -> Self:
        needed, taken = _SIZES.get(self.kind, (set(), set()))
        said = {name for name in self.model_fields_set if getattr(self, name) is not None}
        if missing := sorted(needed - said):
            raise ValueError(f"a {self.kind} layer needs {' and '.join(missing)}")
        defaults = {name: field.default for name, field in Layer.model_fields.items()}
        changed = {name for name in said if getattr(self, name) != defaults[name]}
        if useless := sorted(changed - needed - taken - {"kind"}):
            raise ValueError(f"a {self.kind} layer has no use for {' and '.join(useless)}")
        if self.kind.endswith("pool") and 2 * self.padding > self.kernel:
            raise ValueError(f"padding {self.padding} is more than half of kernel {self.kernel}")
        return self


class SequentialArgs(Record):
    """`purify_audit.models.networks.sequential.Sequential`: layers one after the other."""

    arch: Literal["sequential"] = "sequential"
    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _names_apart(self) -> Self:
        names: set[str] = set()
        for layer in self.layers:
            if layer.name in names:
                raise ValueError(f"two layers are named '{layer.name}'")
            names |= {layer.name} if layer.name else set()
        for name in sorted(names):
            parts = name.split(".")
            for end in range(1, len(parts)):
                if (outer := ".".join(parts[:end])) in names:
                    raise ValueError(f"layer '{name}' would be a part of layer '{outer}'")
        return self

    @model_validator(mode="after")
    def _not_too_large(self) -> Self:
        if (numbers := sum(layer.numbers for layer in self.layers)) > _MOST_NUMBERS:
            raise ValueError(f"its layers hold {numbers:,} numbers, more than {_MOST_NUMBERS:,}")
        return self
