"""Files with the layout of published checkpoints: containers, nesting, prefixes, order, types.

Weights are random and networks small. Each maker writes one file or folder and says what it must be
taken for. Nothing here uses what reads these files.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from network_checks import trained
from safetensors.torch import save_file
from torch import Tensor, nn

from purify_audit.models.networks.adm import ADM
from purify_audit.models.networks.classifiers import CifarResNet
from purify_audit.models.networks.ddpm_unet import DDPMUNet
from purify_audit.models.networks.edm import EDM
from purify_audit.models.networks.lucidrains import LucidrainsUNet
from purify_audit.models.networks.ncsnpp import NCSNpp
from purify_audit.models.networks.restoration import DnCNN, DRUNet, FFDNet
from purify_audit.models.networks.wideresnet import WideResNet
from purify_audit.spec.architectures import (
    ADMArgs,
    CifarResNetArgs,
    DDPMUNetArgs,
    DnCNNArgs,
    DRUNetArgs,
    EDMArgs,
    FFDNetArgs,
    LucidrainsArgs,
    NCSNppArgs,
    WideResNetArgs,
)
from purify_audit.spec.card import ImageSpec

IMAGE = ImageSpec(channels=3, height=16, width=16)
GREY = ImageSpec(channels=1, height=16, width=16)
TINY = {"image": "3x16x16", "t_star": "3"}
CLASSES = 10

LINEAR = {"kind": "linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 2e-2}
SDE = {"kind": "vp-sde", "clamp": False}


@dataclass(frozen=True)
class Published:
    """A file, and what it must be taken for.

    Attributes:
        path: the file or folder.
        format: name of the layout.
        container: how it is stored.
        answers: of `LoadOptions`; with them, nothing is left to say.
        card: fields that its card must have.
        network: the one whose weights must be used, with them.
        raw: the trained weights beside their moving average, if both are there.
    """

    path: Path
    format: str
    container: str
    answers: dict
    card: dict
    network: nn.Module
    raw: nn.Module | None = None


def save(folder: Path, name: str, value: object, **how: object) -> Path:
    torch.save(value, folder / name, **how)
    return folder / name


def state_of(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


def adam(tensors: list[Tensor]) -> dict:
    """The state of an Adam optimiser after some steps."""
    moments = {
        n: {"step": 7, "exp_avg": torch.ones_like(t), "exp_avg_sq": torch.ones_like(t)}
        for n, t in enumerate(tensors)
    }
    group = {"lr": 2e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    return {"state": moments, "param_groups": [group | {"params": list(moments)}]}


# --- score_sde ----------------------------------------------------------------------------------

_RESIDUAL = ("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2")
_ATTENTION = ("GroupNorm_0", "NIN_0", "NIN_1", "NIN_2", "NIN_3")
_PARTS = {part: n for parts in (_RESIDUAL, _ATTENTION) for n, part in enumerate(parts)}
_UNTRAINED = re.compile(r"sigmas|all_modules\.0\.W")


def trained_order(names: list[str]) -> list[str]:
    """Names of score_sde's parameters in the order of its modules' constructors.

    By the number of the module, then the order in which a residual or attention module makes its
    parts, then weight before bias. Frequencies of the Fourier embedding are not trained.
    """

    def place(name: str) -> tuple[int, int, bool]:
        _, number, *part, last = name.split(".")
        return int(number), _PARTS.get(part[0], 0) if part else 0, last in ("bias", "b")

    return sorted((n for n in names if not _UNTRAINED.fullmatch(n)), key=place)


def ncsnpp(seed: int = 0, **changes: object) -> NCSNpp:
    args = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,)} | changes
    return trained(NCSNpp(IMAGE, NCSNppArgs(**args)), seed)


def score_sde(folder: Path, **changes: object) -> Published:
    """DiffPure's checkpoint_8.pth: {optimizer, model, ema, step}, DataParallel, a nameless list."""
    average, raw = ncsnpp(0, **changes), ncsnpp(1, **changes)
    names = trained_order(list(raw.state_dict()))
    shadow = [average.state_dict()[name] for name in names]
    average.load_state_dict(  # what was not trained was not averaged
        {n: t for n, t in raw.state_dict().items() if n not in names}, strict=False
    )
    whole = {
        "optimizer": adam(shadow),
        "model": state_of(raw, "module."),
        "ema": {"decay": 0.9999, "num_updates": 950_001, "shadow_params": shadow},
        "step": 950_001,
    }
    card = {
        "family": "diffusion",
        "network": average.args,
        "prediction": "eps",
        "time_conditioning": "continuous",
        "schedule": LINEAR,
        "data_range": (-1.0, 1.0),
        "t_star": 3,
        "sampler": SDE,
    }
    answers = {"preset": "diffpure-cifar10", "assume": TINY}
    path = save(folder, "checkpoint_8.pth", whole)
    return Published(path, "score_sde", "zip pickle", answers, card, average, raw)


def score_sde_ve(folder: Path, **changes: object) -> Published:
    """NCSN++ of the VE SDE: filters, Fourier features, images joined at every level."""
    how = {"embedding": "fourier", "fir": True, "progressive_input": "residual"}
    how |= {"scale_by_sigma": True, "centered": False, "scales": 7} | changes
    found = score_sde(folder, **how)
    assume = {
        "image": "3x16x16",
        "network.scale_by_sigma": "true",
        "network.centered": "false",
        "prediction": "score",
        "time_conditioning": "sigma",
        "schedule": json.dumps(LINEAR),
        "data_range": "0,1",
        "t_star": "3",
        "sampler": "ddim",
    }
    card = found.card | {
        "prediction": "score",
        "time_conditioning": "sigma",
        "data_range": (0.0, 1.0),
    }
    card["sampler"] = {"kind": "ddim", "clip": True, "eta": 0.0}
    answers = {"weights": "ema", "assume": assume}
    return Published(found.path, "score_sde", "zip pickle", answers, card, found.network, found.raw)


# --- guided diffusion and improved diffusion ----------------------------------------------------


def adm(seed: int = 0, learned: bool = True, **changes: object) -> ADM:
    args = {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}
    return trained(ADM(IMAGE, 6 if learned else 3, ADMArgs(**(args | changes))), seed)


def guided_diffusion(
    folder: Path, dtype: torch.dtype = torch.float32, **changes: object
) -> Published:
    """256x256_diffusion_uncond.pt: a plain state dict, learned variance, residual resampling."""
    how = {"head_channels": 64, "resblock_updown": True} | changes
    network = adm(**how).to(dtype).float()
    state = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    card = {
        "family": "diffusion",
        "network": network.args,
        "prediction": "eps",
        "time_conditioning": "index",
        "learned_variance": True,
        "schedule": LINEAR,
        "data_range": (-1.0, 1.0),
        "sampler": {"kind": "ddpm", "variance": "learned-range", "clip": True},
    }
    heads = {"network.head_channels": str(network.args.head_channels)}
    answers = {"preset": "guided-diffusion", "assume": TINY | heads}
    path = save(folder, "256x256_diffusion_uncond.pt", state)
    return Published(path, "adm", "zip pickle", answers, card, network)


def guided_diffusion_half(folder: Path) -> Published:
    """The same weights stored in float16."""
    return guided_diffusion(folder, torch.float16)


def improved_diffusion(folder: Path, **changes: object) -> Published:
    """cifar10_uncond_50M_500K.pt: strided convolutions, 4 heads, 4000 steps told as 1000."""
    how = {"heads": 4, "time_scale": 0.25} | changes
    network = adm(**how)
    card = {
        "family": "diffusion",
        "network": network.args,
        "prediction": "eps",
        "time_conditioning": "index",
        "learned_variance": True,
        "schedule": {"kind": "cosine", "steps": 4000},
        "data_range": (-1.0, 1.0),
        "sampler": {"kind": "ddpm", "variance": "learned-range", "clip": True},
    }
    answers = {"preset": "improved-diffusion-cifar10", "assume": TINY}
    path = save(folder, "cifar10_uncond_50M_500K.pt", state_of(network))
    return Published(path, "adm", "zip pickle", answers, card, network)


# --- Ho et al. ----------------------------------------------------------------------------------


def ddpm_unet(seed: int = 0, **changes: object) -> DDPMUNet:
    args = {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,)} | changes
    network = trained(DDPMUNet(IMAGE, DDPMUNetArgs(**args)), seed)
    network.args = DDPMUNetArgs(**args)
    return network


def ddpm(folder: Path, legacy: bool = False, **changes: object) -> Published:
    """model-790000.ckpt: a plain state dict of float32."""
    network = ddpm_unet(**changes)
    card = {
        "family": "diffusion",
        "network": network.args,
        "prediction": "eps",
        "time_conditioning": "index",
        "schedule": LINEAR,
        "data_range": (-1.0, 1.0),
        "t_star": 3,
        "sampler": {"kind": "ddpm", "variance": "fixed-large", "clip": True, "clamp": True},
    }
    answers = {"preset": "ddpm-cifar10", "assume": TINY}
    how = {"_use_new_zipfile_serialization": False} if legacy else {}
    path = save(folder, "model-790000.ckpt", state_of(network), **how)
    container = "legacy pickle" if legacy else "zip pickle"
    return Published(path, "ddpm", container, answers, card, network)


def ddpm_legacy(folder: Path) -> Published:
    """As PyTorch wrote it before 1.6."""
    return ddpm(folder, legacy=True)


def ddim_training(folder: Path, **changes: object) -> Published:
    """The ddim repository's own ckpt.pth: [model, optimiser, epoch, step, average]."""
    found = ddpm(folder, **changes)
    raw = ddpm_unet(1, **changes)
    average = state_of(found.network, "module.")
    whole = [state_of(raw, "module."), adam(list(average.values())), 12, 34_567, average]
    path = save(folder, "ckpt.pth", whole)
    return Published(path, "ddpm", "zip pickle", found.answers, found.card, found.network, raw)


def sdedit(folder: Path) -> Published:
    """celeba_hq.ckpt: four halvings here, attention at one level; DiffPure's way of running it."""
    multipliers = (1, 1, 2, 2, 4)
    found = ddpm(folder, multipliers=multipliers, attention=(4,))
    path = found.path.rename(folder / "celeba_hq.ckpt")
    card = found.card | {
        "sampler": {"kind": "ddpm", "variance": "fixed-small", "clip": False, "clamp": False}
    }
    answers = {"preset": "diffpure-celeba", "assume": TINY}
    return Published(path, "ddpm", "zip pickle", answers, card, found.network)


# --- EDM ----------------------------------------------------------------------------------------


def edm_network(seed: int = 0, **changes: object) -> EDM:
    args = {"width": 8, "multipliers": (2, 2), "blocks": 1, "attention": (1,), "augment": 9}
    args |= {"preconditioning": "vp"} | changes
    network = EDM(IMAGE, EDMArgs(**args))
    filters = {n: t.clone() for n, t in network.state_dict().items() if "filter" in n}
    trained(network, seed).load_state_dict(filters, strict=False)  # they are fixed
    return network


def edm(folder: Path, **changes: object) -> Published:
    """edm_cifar_uncond_vp.pt: the state dict of the network inside NVIDIA's pickle."""
    network = edm_network(**changes)
    card = {
        "family": "diffusion",
        "network": network.args,
        "prediction": "x0",
        "time_conditioning": "sigma",
        "schedule": LINEAR,
        "data_range": (-1.0, 1.0),
        "image": IMAGE.model_dump(),
        "t_star": 3,
        "sampler": {"kind": "ddim", "clip": False},
    }
    preset = {"vp": "edm-cifar10-vp", "edm": "edm-cifar10"}[network.args.preconditioning]
    answers = {"preset": preset, "assume": {"t_star": "3"}}
    path = save(folder, "edm_cifar_uncond_vp.pt", state_of(network))
    return Published(path, "edm", "zip pickle", answers, card, network)


# --- denoising-diffusion-pytorch ----------------------------------------------------------------


def lucidrains_unet(seed: int = 0, **changes: object) -> LucidrainsUNet:
    args = {"width": 8, "multipliers": (1, 2), "full_attention": (1,), "heads": 2}
    args |= {"head_channels": 4} | changes
    network = trained(LucidrainsUNet(IMAGE, 3, LucidrainsArgs(**args)), seed)
    network.args = LucidrainsArgs(**args)
    return network


BETAS = torch.linspace(1e-4, 2e-2, 50)


def gaussian_diffusion(network: nn.Module) -> dict[str, Tensor]:
    """A GaussianDiffusion's state: the schedule and what follows from it, then the network."""
    abar = torch.cumprod(1.0 - BETAS, 0)
    before = torch.cat((torch.ones(1), abar[:-1]))
    variance = BETAS * (1.0 - before) / (1.0 - abar)
    buffers = {
        "betas": BETAS,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1.0 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1.0 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1.0 / abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1.0 / abar - 1.0).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": BETAS * before.sqrt() / (1.0 - abar),
        "posterior_mean_coef2": (1.0 - before) * (1.0 - BETAS).sqrt() / (1.0 - abar),
        "loss_weight": abar / (1.0 - abar),
    }
    return {name: tensor.clone() for name, tensor in buffers.items()} | state_of(network, "model.")


_LUCIDRAINS = {
    "family": "diffusion",
    "prediction": "v",
    "time_conditioning": "index",
    "data_range": (-1.0, 1.0),
    "schedule": {"kind": "table", "betas": tuple(float(beta) for beta in BETAS)},
    "t_star": 3,
    "sampler": {"kind": "ddpm", "variance": "fixed-small", "clip": True},
}


def lucidrains_trainer(folder: Path, **changes: object) -> Published:
    """A trainer's model-N.pt: trained weights, and ema-pytorch's state, which has them again."""
    average, raw = lucidrains_unet(0, **changes), lucidrains_unet(1, **changes)
    trained_state = gaussian_diffusion(raw)
    ema = {"initted": torch.tensor([1.0]), "step": torch.tensor([100])}
    ema |= {f"online_model.{name}": tensor for name, tensor in trained_state.items()}
    ema |= {f"ema_model.{name}": tensor for name, tensor in gaussian_diffusion(average).items()}
    whole = {
        "step": 100,
        "model": trained_state,
        "opt": adam(list(raw.state_dict().values())),
        "ema": ema,
        "scaler": None,
        "version": "2.2.5",
    }
    answers = {"preset": "lucidrains", "assume": TINY}
    path = save(folder, "model-10.pt", whole)
    card = _LUCIDRAINS | {"network": average.args}
    return Published(path, "lucidrains", "zip pickle", answers, card, average, raw)


def lucidrains_diffusion(folder: Path, **changes: object) -> Published:
    """The state dict of a GaussianDiffusion."""
    network = lucidrains_unet(**changes)
    path = save(folder, "diffusion.pt", gaussian_diffusion(network))
    answers = {"preset": "lucidrains-eps", "assume": TINY}
    card = _LUCIDRAINS | {"network": network.args, "prediction": "eps"}
    return Published(path, "lucidrains", "zip pickle", answers, card, network)


def lucidrains_bare(folder: Path, **changes: object) -> Published:
    """The state dict of a U-Net alone, as safetensors: it has no schedule."""
    network = lucidrains_unet(**changes)
    path = folder / "unet.safetensors"
    save_file(state_of(network), path)
    assume = TINY | {"schedule.kind": "cosine"}
    answers = {"preset": "lucidrains", "assume": assume}
    schedule = {"kind": "cosine", "steps": 1000}
    card = _LUCIDRAINS | {"network": network.args, "schedule": schedule}
    return Published(path, "lucidrains", "safetensors", answers, card, network)


def lucidrains_1(folder: Path) -> Published:
    """Version 1.9: GroupNorm in the blocks."""
    return lucidrains_diffusion(folder, groups=8)


# --- diffusers ----------------------------------------------------------------------------------

UNET2D = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [32, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_large",
    "clip_sample": True,
    "prediction_type": "epsilon",
}
_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def diffusers_unet(seed: int = 0, **changes: object) -> nn.Module:
    from diffusers import UNet2DModel

    class Plain(UNet2DModel):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x, t).sample

    return trained(Plain(**(UNET2D | changes)), seed)


def write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def diffusers_folder(
    folder: Path,
    config: dict | None = None,
    scheduler: dict | None = None,
    root: bool = False,
    stored: str = "safetensors",
    old: bool = False,
) -> Published:
    """A pipeline: `unet/` and `scheduler/`, or all at the root as google/ddpm-cifar10-32 has it."""
    home = folder / "ddpm-cifar10-32"
    model = home if root else home / "unet"
    settings = SCHEDULER if scheduler is None else scheduler
    place = "scheduler_config.json" if root else "scheduler/scheduler_config.json"
    write_json(home / place, settings)
    write_json(home / "model_index.json", {"_class_name": "DDPMPipeline"})
    written = {"_class_name": "UNet2DModel", "_diffusers_version": "0.1.1"} | UNET2D
    write_json(model / "config.json", written | (config or {}))
    network = diffusers_unet(**(config or {}))
    state = {n: t.contiguous() for n, t in network.state_dict().items()}
    if old:
        for now, then in _OLD.items():
            state = {n.replace(f".{now}.", f".{then}."): t for n, t in state.items()}
        assert any(".query." in name for name in state)
    if stored == "safetensors":
        save_file(state, model / "diffusion_pytorch_model.safetensors")
    else:
        save(model, "diffusion_pytorch_model.bin", state)
    kind = {"safetensors": "safetensors", "bin": "zip pickle"}[stored]
    card = {
        "family": "diffusion",
        "prediction": "eps",
        "time_conditioning": "index",
        "schedule": LINEAR,
        "data_range": (-1.0, 1.0),
        "image": IMAGE.model_dump(),
        "t_star": 3,
        "sampler": {"kind": "ddpm", "variance": "fixed-large", "clip": True},
    }
    answers = {"assume": {"t_star": "3"}}
    return Published(home, "diffusers", f"folder of {kind}", answers, card, network)


def diffusers_old(folder: Path) -> Published:
    """All at the root, `.bin`, old names of attention, GaussianDDPMScheduler with `timesteps`."""
    scheduler = {n: v for n, v in SCHEDULER.items() if n not in ("num_train_timesteps",)}
    scheduler |= {"_class_name": "GaussianDDPMScheduler", "timesteps": 1000}
    del scheduler["prediction_type"]
    return diffusers_folder(folder, None, scheduler, root=True, stored="bin", old=True)


# --- KAIR ---------------------------------------------------------------------------------------


def restorer(
    folder: Path, name: str, network: nn.Module, what: tuple[str, object, int]
) -> Published:
    form, args, channels = what
    image = {1: GREY, 3: IMAGE}[channels]
    told = form != "dncnn"
    card = {
        "family": "feedforward",
        "network": args,
        "image": image.model_dump(),
        "sigma": 25 / 255,
        "level": 25 / 255 if told else None,
        "data_range": (0.0, 1.0),
    }
    preset = "kair-ffdnet-25" if told else "kair-gray-25"
    answers = {"preset": preset, "assume": {"image": "x".join(map(str, image.shape))}}
    path = save(folder, name, state_of(network))
    return Published(path, form, "zip pickle", answers, card, network)


def dncnn(folder: Path, width: int = 8, depth: int = 5, channels: int = 1) -> Published:
    """dncnn_25.pth."""
    args = DnCNNArgs(width=width, depth=depth)
    network = trained(DnCNN(channels, args))
    return restorer(folder, "dncnn_25.pth", network, ("dncnn", args, channels))


def ffdnet(folder: Path, width: int = 8, depth: int = 5, channels: int = 3) -> Published:
    """ffdnet_color.pth."""
    args = FFDNetArgs(width=width, depth=depth)
    network = trained(FFDNet(channels, args))
    return restorer(folder, "ffdnet_color.pth", network, ("ffdnet", args, channels))


def drunet(
    folder: Path, widths: tuple[int, ...] = (4, 8, 12, 16), blocks: int = 2, channels: int = 3
) -> Published:
    """drunet_color.pth."""
    args = DRUNetArgs(widths=widths, blocks=blocks)
    network = trained(DRUNet(channels, args))
    return restorer(folder, "drunet_color.pth", network, ("drunet", args, channels))


# --- classifiers --------------------------------------------------------------------------------

DEEPMIND = ([0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616])


def classifier(
    path: Path, form: tuple[str, str], network: nn.Module, args: object, norm: tuple
) -> Published:
    mean, std = norm
    card = {"family": "classifier", "network": args, "classes": CLASSES}
    card |= {"image": IMAGE.model_dump(), "mean": tuple(mean), "std": tuple(std)}
    answers = {"preset": form[1], "assume": {"image": "3x16x16"}}
    return Published(path, form[0], "zip pickle", answers, card, network)


def wideresnet(folder: Path, depth: int = 10, width: int = 1, unused: bool = False) -> Published:
    """RobustBench's classic layout: a training checkpoint of a DataParallel network."""
    args = WideResNetArgs(depth=depth, width=width, layout="classic")
    network = trained(WideResNet(3, CLASSES, args))
    state = state_of(network, "module.")
    if unused:
        again = {n: t for n, t in state.items() if ".block1." in n}
        state |= {n.replace(".block1.", ".sub_block1."): t.clone() for n, t in again.items()}
    whole = {"epoch": 76, "state_dict": state, "optimizer": adam(list(state.values()))}
    path = save(folder, "Standard.pt", whole)
    norm = ([0.0] * 3, [1.0] * 3)
    form = ("wideresnet", "robustbench-standard")
    return classifier(path, form, network, args, norm)


def wideresnet_trades(folder: Path) -> Published:
    """With the block that TRADES' class has and never calls."""
    return wideresnet(folder, unused=True)


def dm_wideresnet(folder: Path, depth: int = 10, width: int = 1, buffers: bool = True) -> Published:
    """DeepMind's layout, which stores the normalisation as buffers."""
    args = WideResNetArgs(depth=depth, width=width, layout="deepmind")
    network = trained(WideResNet(3, CLASSES, args))
    state = state_of(network)
    if buffers:
        both = {n: torch.tensor(v).view(3, 1, 1) for n, v in zip(("mean", "std"), DEEPMIND)}
        state = both | state
    path = save(folder, "Gowal2020Uncovering.pt", state)
    norm = [[float(torch.tensor(v)) if buffers else v for v in part] for part in DEEPMIND]
    return classifier(path, ("dm-wideresnet", "robustbench-deepmind"), network, args, norm)


def cifar_resnet(folder: Path, depth: int = 8) -> Published:
    """Y. Idelbayev's resnet20.th: {state_dict, best_prec1}, under DataParallel."""
    args = CifarResNetArgs(depth=depth)
    network = trained(CifarResNet(3, depth, CLASSES))
    whole = {"state_dict": state_of(network, "module."), "best_prec1": 91.73}
    path = save(folder, "resnet20.th", whole)
    norm = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return classifier(path, ("cifar-resnet", "akamaster-cifar10"), network, args, norm)


# --- other people's wrappers --------------------------------------------------------------------


def lightning(folder: Path) -> Published:
    """A Lightning module's checkpoint around a DDPM U-Net called `model`."""
    found = ddpm(folder)
    whole = {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state_of(found.network, "model."),
        "callbacks": {},
        "optimizer_states": [adam(list(found.network.state_dict().values()))],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 2e-4},
    }
    path = save(folder, "epoch=3.ckpt", whole)
    return Published(path, "ddpm", "zip pickle", found.answers, found.card, found.network)


def ema_only(folder: Path) -> Published:
    """Only the moving average, under its name."""
    found = guided_diffusion(folder)
    whole = {"ema_state_dict": state_of(found.network, "module."), "decay": 0.9999}
    path = save(folder, "ema.pt", whole)
    return Published(path, "adm", "zip pickle", found.answers, found.card, found.network)


LAYOUTS: dict[str, Callable[[Path], Published]] = {
    "score_sde checkpoint": score_sde,
    "score_sde VE checkpoint": score_sde_ve,
    "guided-diffusion": guided_diffusion,
    "guided-diffusion, float16": guided_diffusion_half,
    "improved-diffusion": improved_diffusion,
    "Ho et al.'s DDPM": ddpm,
    "Ho et al.'s DDPM, before PyTorch 1.6": ddpm_legacy,
    "ddim repository's training list": ddim_training,
    "SDEdit's CelebA-HQ": sdedit,
    "EDM, converted": edm,
    "diffusers folder": diffusers_folder,
    "diffusers folder, before 2023": diffusers_old,
    "lucidrains trainer": lucidrains_trainer,
    "lucidrains GaussianDiffusion": lucidrains_diffusion,
    "lucidrains GaussianDiffusion 1.9": lucidrains_1,
    "lucidrains U-Net, safetensors": lucidrains_bare,
    "Lightning checkpoint": lightning,
    "moving average alone": ema_only,
    "KAIR DnCNN": dncnn,
    "KAIR FFDNet": ffdnet,
    "KAIR DRUNet": drunet,
    "RobustBench WideResNet": wideresnet,
    "RobustBench WideResNet, TRADES": wideresnet_trades,
    "RobustBench DeepMind WideResNet": dm_wideresnet,
    "CIFAR ResNet": cifar_resnet,
}
"""The layouts of docs/format_matrix.json: name -> maker."""
