"""Published ways of running published weights, every choice spelled out, each with its source.

A preset fills what a file does not say. What the file says, a preset may not contradict.
"""

from dataclasses import dataclass
from typing import Any

_LINEAR = {"kind": "linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 2e-2}
_CIFAR = {"channels": 3, "height": 32, "width": 32}
_SDE = {"kind": "vp-sde", "clamp": False}
_DIFFPURE = "Nie et al. 2022 (DiffPure), section 5 and its scripts"


@dataclass(frozen=True, slots=True)
class Preset:
    """A way of running weights.

    Attributes:
        formats: whose weights.
        source: on whose word.
        fields: of the card, nested ones with dots.
        weights: which of two sets of weights, where a file holds both.
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
    "data_range": [-1.0, 1.0],
    "network.fir": False,
    "network.scale_by_sigma": False,
    "sampler": _SDE,
}
_ADM_HEADS = {"network.head_channels": 64, "network.new_attention_order": False}

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
        _ADM_HEADS
        | {
            "image": {"channels": 3, "height": 256, "width": 256},
            "schedule": _LINEAR,
            "data_range": [-1.0, 1.0],
            "t_star": 150,
            "sampler": _SDE,
        },
    ),
    "guided-diffusion": Preset(
        ("adm",),
        "Dhariwal and Nichol 2021, 256 x 256 unconditional: ancestral, learned variance, clipped",
        _ADM_HEADS
        | {
            "image": {"channels": 3, "height": 256, "width": 256},
            "schedule": _LINEAR,
            "data_range": [-1.0, 1.0],
            "sampler": {"kind": "ddpm", "variance": "learned-range", "clip": True},
        },
    ),
    "improved-diffusion-cifar10": Preset(
        ("adm",),
        "Nichol and Dhariwal 2021, CIFAR-10: cosine schedule, 4000 steps, learned variance",
        {
            "image": _CIFAR,
            "schedule": {"kind": "cosine", "steps": 4000},
            "data_range": [-1.0, 1.0],
            "network.heads": 4,
            "network.new_attention_order": False,
            "network.time_scale": 0.25,  # its rescale_timesteps: 1000 / 4000
            "sampler": {"kind": "ddpm", "variance": "learned-range", "clip": True},
        },
    ),
    "ddpm-cifar10": Preset(
        ("ddpm",),
        "Ho et al. 2020, CIFAR-10: fixed-large variance, clipped",
        {"image": _CIFAR, "sampler": {"kind": "ddpm", "variance": "fixed-large", "clip": True}},
        weights="ema",
    ),
    "diffpure-celeba": Preset(
        ("ddpm",),
        f"{_DIFFPURE}: CelebA-HQ with SDEdit's weights, t* = 500, fixed-small, not clipped",
        {
            "image": {"channels": 3, "height": 256, "width": 256},
            "t_star": 500,
            "sampler": {"kind": "ddpm", "variance": "fixed-small", "clip": False, "clamp": False},
        },
        weights="ema",
    ),
    "edm-cifar10-vp": Preset(
        ("edm",),
        "Karras et al. 2022, table 1, VP column; as a purifier on the VP schedule, by DDIM",
        {
            "network.preconditioning": "vp",
            "schedule": _LINEAR,
            "sampler": {"kind": "ddim", "clip": False},
        },
        weights="ema",
    ),
    "edm-cifar10": Preset(
        ("edm",),
        "Karras et al. 2022, table 1, last column; as a purifier on the VP schedule, by DDIM",
        {
            "network.preconditioning": "edm",
            "schedule": _LINEAR,
            "sampler": {"kind": "ddim", "clip": False},
        },
        weights="ema",
    ),
    "lucidrains": Preset(
        ("lucidrains",),
        "denoising-diffusion-pytorch 2.x, its defaults: predicts v, images in [−1, 1]",
        {
            "prediction": "v",
            "data_range": [-1.0, 1.0],
            "sampler": {"kind": "ddpm", "variance": "fixed-small", "clip": True},
        },
        weights="ema",
    ),
    "lucidrains-eps": Preset(
        ("lucidrains",),
        "denoising-diffusion-pytorch, objective pred_noise, images in [−1, 1]",
        {
            "prediction": "eps",
            "data_range": [-1.0, 1.0],
            "sampler": {"kind": "ddpm", "variance": "fixed-small", "clip": True},
        },
        weights="ema",
    ),
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
