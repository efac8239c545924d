"""Presets: published settings for published weights, with their sources.

A preset supplies settings that a file does not contain; it may not contradict those that it does.
"""

from dataclasses import dataclass
from typing import Any

_LINEAR = {"kind": "linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 2e-2}
_CIFAR = {"channels": 3, "height": 32, "width": 32}
_LARGE = {"channels": 3, "height": 256, "width": 256}
_SIGNED = [-1.0, 1.0]
_SDE = {"kind": "vp-sde", "clamp": False}
_DIFFPURE = "Nie et al. 2022 (DiffPure), section 5 and its scripts"


@dataclass(frozen=True, slots=True)
class Preset:
    """Published settings of a model.

    Attributes:
        formats: names of the formats that it applies to.
        source: the publication.
        fields: of the card, by dotted name.
        weights: the set of weights to use, if a file contains both.
    """

    formats: tuple[str, ...]
    source: str
    fields: dict[str, Any]
    weights: str | None = None


_DDPMPP = {
    "image": _CIFAR,
    "prediction": "eps",
    "time_conditioning": "continuous",
    "schedule": _LINEAR,
    "data_range": _SIGNED,
    "network.fir": False,
    "network.scale_by_sigma": False,
    "sampler": _SDE,
}
_ADM_256 = {
    "network.head_channels": 64,
    "network.new_attention_order": False,
    "image": _LARGE,
    "schedule": _LINEAR,
    "data_range": _SIGNED,
}


def _ddpm(variance: str, *, clip: bool = True) -> dict[str, Any]:
    return {"kind": "ddpm", "variance": variance, "clip": clip}


def _edm(preconditioning: str, column: str) -> Preset:
    source = f"Karras et al. 2022, table 1, {column}; as a purifier on the VP schedule, by DDIM"
    fields = {
        "network.preconditioning": preconditioning,
        "schedule": _LINEAR,
        "sampler": {"kind": "ddim", "clip": False},
    }
    return Preset(("edm",), source, fields, weights="ema")


def _lucidrains(prediction: str, version: str) -> Preset:
    source = f"denoising-diffusion-pytorch{version}, images in [−1, 1]"
    fields = {"prediction": prediction, "data_range": _SIGNED, "sampler": _ddpm("fixed-small")}
    return Preset(("lucidrains",), source, fields, weights="ema")


PRESETS: dict[str, Preset] = {
    "diffpure-cifar10": Preset(
        ("score_sde",),
        f"{_DIFFPURE}: CIFAR-10, l-inf 8/255, t* = 100",
        _DDPMPP | {"t_star": 100},
        weights="ema",
    ),
    "diffpure-cifar10-l2": Preset(
        ("score_sde",),
        f"{_DIFFPURE}: CIFAR-10, l2 0.5, t* = 75",
        _DDPMPP | {"t_star": 75},
        weights="ema",
    ),
    "diffpure-imagenet": Preset(
        ("adm",),
        f"{_DIFFPURE}: ImageNet, l-inf 4/255, t* = 150, at 256 x 256 (it resizes from 224)",
        _ADM_256 | {"t_star": 150, "sampler": _SDE},
    ),
    "guided-diffusion": Preset(
        ("adm",),
        "Dhariwal and Nichol 2021, 256 x 256 unconditional: ancestral, learned variance, clipped",
        _ADM_256 | {"sampler": _ddpm("learned-range")},
    ),
    "improved-diffusion-cifar10": Preset(
        ("adm",),
        "Nichol and Dhariwal 2021, CIFAR-10: cosine schedule, 4000 steps, learned variance",
        {
            "image": _CIFAR,
            "schedule": {"kind": "cosine", "steps": 4000},
            "data_range": _SIGNED,
            "network.heads": 4,
            "network.new_attention_order": False,
            "network.time_scale": 0.25,  # its rescale_timesteps: 1000 / 4000
            "sampler": _ddpm("learned-range"),
        },
    ),
    "ddpm-cifar10": Preset(
        ("ddpm",),
        "Ho et al. 2020, CIFAR-10: fixed-large variance, clipped",
        {"image": _CIFAR, "sampler": _ddpm("fixed-large")},
        weights="ema",
    ),
    "diffpure-celeba": Preset(
        ("ddpm",),
        f"{_DIFFPURE}: CelebA-HQ with SDEdit's weights, t* = 500, fixed-small, not clipped",
        {
            "image": _LARGE,
            "t_star": 500,
            "sampler": _ddpm("fixed-small", clip=False) | {"clamp": False},
        },
        weights="ema",
    ),
    "edm-cifar10-vp": _edm("vp", "VP column"),
    "edm-cifar10": _edm("edm", "last column"),
    "lucidrains": _lucidrains("v", " 2.x, its defaults: predicts v"),
    "lucidrains-eps": _lucidrains("eps", ", objective pred_noise"),
    "kair-gray-25": Preset(
        ("dncnn",),
        "Zhang et al. 2017: DnCNN for noise of 25/255; the noise is added before it",
        {"sigma": 25 / 255},
    ),
    "kair-ffdnet-25": Preset(
        ("ffdnet", "drunet"),
        "Zhang et al. 2018, 2021: told a noise level of 25/255, which is added before it",
        {"sigma": 25 / 255, "level": 25 / 255},
    ),
    "spandrel": Preset(
        ("spandrel",),
        "spandrel (an extra) detects the network in the weights; images in [0, 1]",
        {},
    ),
    "robustbench-standard": Preset(
        ("wideresnet",),
        "RobustBench, `Standard` and others of its classic layout: pixels in [0, 1] as they are",
        {"image": _CIFAR, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
    ),
    "robustbench-deepmind": Preset(
        ("dm-wideresnet",),
        "RobustBench, DeepMind's layout: CIFAR-10 mean and deviation inside the network",
        {"image": _CIFAR, "mean": [0.4914, 0.4822, 0.4465], "std": [0.2471, 0.2435, 0.2616]},
    ),
    "akamaster-cifar10": Preset(
        ("cifar-resnet",),
        "Y. Idelbayev, pytorch_resnet_cifar10: normalised by ImageNet's mean and deviation",
        {"image": _CIFAR, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    ),
}
