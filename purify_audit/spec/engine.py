"""Engine settings of a purifier's network: precision, compilation, memory layout."""

from typing import Literal

from purify_audit.core.records import Record

Precision = Literal["float32", "tf32", "bfloat16", "float16"]

_DESCRIPTION = {
    "float32": "float32, TF32 off",
    "tf32": "float32, TF32 in the network",
    "bfloat16": "float32, TF32 off, bfloat16 in the network",
    "float16": "float32, TF32 off, float16 in the network",
}


class Engine(Record):
    """Settings of the purifier's network only; noise, sampler and classifier stay in float32.

    Attributes:
        precision: of convolutions and matrix products, as `torch.autocast` chooses them; `tf32`
            rounds their factors to 11 bits, on CUDA only.
        compile: whether `torch.compile` compiles the network.
        channels_last: whether the channels of a pixel are contiguous in memory.
    """

    precision: Precision = "float32"
    compile: bool = False
    channels_last: bool = False

    @property
    def description(self) -> str:
        """The precision as a report's `environment` states it."""
        network = {"compiled": self.compile, "channels last": self.channels_last}
        return ", ".join(
            [_DESCRIPTION[self.precision], *(option for option, on in network.items() if on)]
        )


PLAIN = Engine()
"""Exact float32, as everything around the network."""
