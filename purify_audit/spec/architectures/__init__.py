"""Network architectures: one record of constructor arguments for each."""

from purify_audit.spec.architectures.chains import Layer, SequentialArgs
from purify_audit.spec.architectures.classifiers import (
    CifarResNetArgs,
    ClassifierNetwork,
    CnnArgs,
    CodeArgs,
    GraphArgs,
    WideResNetArgs,
)
from purify_audit.spec.architectures.diffusion import (
    ADMArgs,
    DDPMUNetArgs,
    DiffusersArgs,
    DiffusionNetwork,
    EDMArgs,
    LucidrainsArgs,
    NCSNppArgs,
    UNetArgs,
)
from purify_audit.spec.architectures.restoration import (
    AutoencoderArgs,
    DnCNNArgs,
    DRUNetArgs,
    FFDNetArgs,
    RestorationNetwork,
    SpandrelArgs,
)
from purify_audit.spec.architectures.sizes import Channels

__all__ = [
    "ADMArgs",
    "AutoencoderArgs",
    "Channels",
    "CifarResNetArgs",
    "ClassifierNetwork",
    "CnnArgs",
    "CodeArgs",
    "DDPMUNetArgs",
    "DRUNetArgs",
    "DiffusersArgs",
    "DiffusionNetwork",
    "DnCNNArgs",
    "EDMArgs",
    "FFDNetArgs",
    "GraphArgs",
    "Layer",
    "LucidrainsArgs",
    "NCSNppArgs",
    "RestorationNetwork",
    "SequentialArgs",
    "SpandrelArgs",
    "UNetArgs",
    "WideResNetArgs",
]
