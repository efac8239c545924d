"""U-Nets that diffusers builds from their `config.json`; an extra."""

import inspect
import json
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from purify_audit.core.errors import CardError
from purify_audit.core.records import printable
from purify_audit.spec.architectures import DiffusersArgs


def diffusers_unet(args: DiffusersArgs) -> nn.Module:
    """A `diffusers.UNet2DModel` whose forward(x, t) returns a tensor.

    `x` is [n, in_channels, h, w] and `t` [n], the index of the schedule (or a noise level, where
    `time_embedding_type` is `fourier`); the result is [n, out_channels, h, w]. The names of the
    weights are the model's own.

    Raises:
        CardError: diffusers is not installed, or cannot build a network from this configuration.
    """
    model = _model()
    given = {k: v for k, v in json.loads(args.config).items() if not k.startswith("_")}
    unknown = sorted(given.keys() - inspect.signature(model.__init__).parameters.keys())
    if unknown:
        raise CardError(
            f"config.json: the installed diffusers does not know '{printable(unknown[0])}', so it"
            " would build another network; install the version that trained it"
        )
    try:
        network: nn.Module = model(**given)
    except Exception as error:  # any exception of the constructor
        raise CardError(
            "config.json: diffusers cannot build a UNet2DModel from it:"
            f" {type(error).__name__}: {printable(str(error))}"
        ) from None
    return network


@cache
def _model() -> Any:
    """The class, defined on first use: importing diffusers takes seconds."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        raise CardError(
            "networks of kind diffusers-unet2d need diffusers: install purify-audit[diffusers]"
        ) from None

    class DiffusersUNet(UNet2DModel):
        """UNet2DModel, with the interface of the other diffusion networks."""

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            parent: Any = super()
            return cast(Tensor, parent.forward(x, t, return_dict=False)[0])

    return DiffusersUNet
