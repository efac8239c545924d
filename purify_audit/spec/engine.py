"""How a purifier's network is run: what changes its speed, and the last digits of its numbers."""

from typing import Literal

from purify_audit.core.records import Record

Precision = Literal["float32", "tf32", "bfloat16", "float16"]

_TOLD = {
    "float32": "float32, TF32 off",
    "tf32": "float32, TF32 in the network",
    "bfloat16": "float32, TF32 off, bfloat16 in the network",
    "float16": "float32, TF32 off, float16 in the network",
}


class Engine(Record):
    """Of the purifier's network alone: noise, sampler, differences and classifier stay as they are.

    Attributes:
        precision: of convolutions and matrix products, as `torch.autocast` chooses them; `tf32`
            rounds their factors to 11 bits, on CUDA only.
        compile: whether `torch.compile` makes one program of the network.
        channels_last: whether the channels of a pixel lie beside one another in memory.
    """

    precision: Precision = "float32"
    compile: bool = False
    channels_last: bool = False

    @property
    def told(self) -> str:
        """In words: what a report's `environment` says of precision."""
        network = {"compiled": self.compile, "channels last": self.channels_last}
        return ", ".join([_TOLD[self.precision], *(how for how, so in network.items() if so)])


PLAIN = Engine()
"""Exact float32, as everything around the network."""
