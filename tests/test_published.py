"""Published checkpoints at their real size, and weights that are run otherwise than trained."""

import time
from pathlib import Path

import pytest
import torch
from published import SDE, LINEAR, state_of
from torch import nn

from purify_audit.architectures import (
    ADMArgs,
    DDPMUNetArgs,
    DnCNNArgs,
    DRUNetArgs,
    EDMArgs,
    FFDNetArgs,
    LucidrainsArgs,
    NCSNppArgs,
    WideResNetArgs,
)
from purify_audit.card import DiffusionCard, ImageSpec
from purify_audit.checkpoint import load_tensors, read_checkpoint
from purify_audit.formats.complete import complete_card
from purify_audit.formats.read import FORMATS
from purify_audit.images import choose, load_images
from purify_audit.loading import load_purifier
from purify_audit.networks import build_network
from purify_audit.networks.adm import ADM
from purify_audit.networks.ddpm_unet import DDPMUNet
from purify_audit.networks.edm import EDM
from purify_audit.networks.lucidrains import LucidrainsUNet
from purify_audit.networks.ncsnpp import NCSNpp
from purify_audit.networks.restoration import DnCNN, DRUNet, FFDNet
from purify_audit.networks.wideresnet import WideResNet
from purify_audit.noise import Noise
from purify_audit.opening import open_checkpoint
from purify_audit.preflight import preflight
from purify_audit.purifiers.diffusion import DiffusionPurifier
from purify_audit.reading import Reading
from purify_audit.runtime import Runner

CPU = torch.device("cpu")
CIFAR = ImageSpec(channels=3, height=32, width=32)
LARGE = ImageSpec(channels=3, height=256, width=256)
DDPM = DDPMUNetArgs(width=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(1,))
DIGITS = Path(__file__).parents[1] / "models" / "digits-ddpm.safetensors"


def test_the_file_of_ho_et_al_at_its_size(tmp_path):
    """model-790000.ckpt has 143,046,049 bytes: float32 and about 44 kB of names and headers."""
    network = DDPMUNet(CIFAR, DDPM).eval()
    path = tmp_path / "model-790000.ckpt"
    torch.save(state_of(network), path)
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    assert 142_985_228 < path.stat().st_size < 143_300_000
    assume = {"t_star": "2"}
    checkpoint = open_checkpoint(str(path), CIFAR, Reading(preset="ddpm-cifar10", assume=assume))
    assert checkpoint.card.network == DDPM
    assert checkpoint.parameters == 35_746_307
    purifier = load_purifier(checkpoint, CPU)
    assert purifier.evaluations == 2
    x, noise = torch.rand(2, 3, 32, 32), Noise(0, (0, 1), (0, 0))
    with torch.inference_mode():
        purified = purifier(x, noise)
        direct = DiffusionPurifier(checkpoint.card, network)(x, noise)
    assert torch.equal(purified, direct)
    path.unlink()


# --- the others, by their shapes alone ----------------------------------------------------------

# Arguments as their repositories' configurations have them; millions of parameters as published.
PUBLISHED = {
    "cifar10_ddpmpp_deep_continuous": (
        NCSNppArgs(width=128, multipliers=(1, 2, 2, 2), blocks=8, attention=(1,)),
        lambda args: NCSNpp(CIFAR, args),
        "diffpure-cifar10",
        106.7,
    ),
    "256x256_diffusion_uncond": (
        ADMArgs(
            width=256,
            multipliers=(1, 1, 2, 2, 4, 4),
            blocks=2,
            attention=(3, 4, 5),
            head_channels=64,
            resblock_updown=True,
        ),
        lambda args: ADM(LARGE, 6, args),
        "diffpure-imagenet",
        552.8,
    ),
    "cifar10_uncond_50M_500K": (
        ADMArgs(
            width=128,
            multipliers=(1, 2, 2, 2),
            blocks=3,
            attention=(1, 2),
            heads=4,
            time_scale=0.25,
        ),
        lambda args: ADM(CIFAR, 6, args),
        "improved-diffusion-cifar10",
        52.5,
    ),
    "celeba_hq": (
        DDPMUNetArgs(width=128, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(4,)),
        lambda args: DDPMUNet(LARGE, args),
        "diffpure-celeba",
        113.7,
    ),
    "edm_cifar_uncond_vp": (
        EDMArgs(
            width=128,
            multipliers=(2, 2, 2),
            blocks=4,
            attention=(1,),
            preconditioning="vp",
            augment=9,
        ),
        lambda args: EDM(CIFAR, args),
        "edm-cifar10-vp",
        55.7,
    ),
    "lucidrains default": (
        LucidrainsArgs(width=64, multipliers=(1, 2, 4, 8), full_attention=(3,)),
        lambda args: LucidrainsUNet(CIFAR, 3, args),
        "lucidrains",
        35.7,
    ),
    "dncnn_25": (
        DnCNNArgs(width=64, depth=17),
        lambda args: DnCNN(1, args),
        "kair-gray-25",
        0.556,
    ),
    "ffdnet_color": (
        FFDNetArgs(width=96, depth=12),
        lambda args: FFDNet(3, args),
        "kair-ffdnet-25",
        0.853,
    ),
    "drunet_color": (
        DRUNetArgs(widths=(64, 128, 256, 512), blocks=4),
        lambda args: DRUNet(3, args),
        "kair-ffdnet-25",
        32.64,
    ),
    "WRN-28-10": (
        WideResNetArgs(depth=28, width=10, layout="classic"),
        lambda args: WideResNet(3, 10, args),
        "robustbench-standard",
        36.5,
    ),
    "WRN-70-16": (
        WideResNetArgs(depth=70, width=16, layout="deepmind"),
        lambda args: WideResNet(3, 10, args),
        "robustbench-deepmind",
        266.8,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_arguments_of_published_networks_are_read_from_their_shapes(name):
    args, build, preset, millions = PUBLISHED[name]
    with torch.device("meta"):
        network = build(args)
    numbers = sum(p.numel() for p in network.parameters())
    assert numbers / 1e6 == pytest.approx(millions, rel=2e-3)
    state = state_of(network)
    (form,) = (form for form in FORMATS if form.marks(state))
    draft = form.draft(state)
    told = {"image": "1x32x32"} if name == "dncnn_25" else {"image": "3x32x32"}
    told |= {"t_star": "100", "schedule.kind": "cosine"} if name == "lucidrains default" else {}
    given = {"image"} & PUBLISHED_PRESET_FIELDS(preset) or {"image"} & draft.fields.keys()
    assume = {key: value for key, value in told.items() if key not in given}
    if draft.fields["family"] == "diffusion":
        assume |= {"t_star": "100"}
    card, _ = complete_card(
        Path(name), form.name, draft.fields, Reading(preset=preset, assume=assume), None,
        draft.conventions,
    )
    assert card.network == args
    with torch.device("meta"):
        built = build_network(card).state_dict()
    assert {n: t.shape for n, t in built.items()} == {n: t.shape for n, t in state.items()}
