"""Published checkpoints at their real size, and weights that are run otherwise than trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published import state_of
from torch import nn

from purify_audit.compression.denoising import check_denoising
from purify_audit.compression.preflight import preflight
from purify_audit.core.noise import Noise
from purify_audit.images.image_set import ImageSet, choose, load_images
from purify_audit.models.checkpoint import load_tensors, read_checkpoint
from purify_audit.models.formats.complete_card import complete_card
from purify_audit.models.formats.presets import PRESETS
from purify_audit.models.formats.recognise import FORMATS
from purify_audit.models.load import load_purifier
from purify_audit.models.networks import build_network
from purify_audit.models.networks.adm import ADM
from purify_audit.models.networks.ddpm_unet import DDPMUNet
from purify_audit.models.networks.edm import EDM
from purify_audit.models.networks.lucidrains import LucidrainsUNet
from purify_audit.models.networks.ncsnpp import NCSNpp
from purify_audit.models.networks.restoration import DnCNN, DRUNet, FFDNet
from purify_audit.models.networks.wideresnet import WideResNet
from purify_audit.models.open import open_checkpoint
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.purifiers.schedule import noise_schedule
from purify_audit.models.runner import Runner
from purify_audit.spec.architectures import (
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
from purify_audit.spec.card import DiffusionCard, ImageSpec
from purify_audit.spec.load_options import LoadOptions

CPU = torch.device("cpu")
CIFAR = ImageSpec(channels=3, height=32, width=32)
LARGE = ImageSpec(channels=3, height=256, width=256)
DDPM = DDPMUNetArgs(width=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(1,))
DIGITS = Path(__file__).parents[2] / "models" / "digits-ddpm.safetensors"


def test_the_file_of_ho_et_al_at_its_size(tmp_path):
    """model-790000.ckpt has 143,046,049 bytes: float32 and about 44 kB of names and headers."""
    network = DDPMUNet(CIFAR, DDPM).eval()
    path = tmp_path / "model-790000.ckpt"
    torch.save(state_of(network), path)
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    assert 142_985_228 < path.stat().st_size < 143_300_000
    assume = {"t_star": "2"}
    checkpoint = open_checkpoint(
        str(path), CIFAR, LoadOptions(preset="ddpm-cifar10", assume=assume)
    )
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


# Bytes of the published file, and how many a parameter has: Adam's two moments and the average too.
BYTES = {
    "cifar10_ddpmpp_deep_continuous": (1_707_310_559, 16),
    "256x256_diffusion_uncond": (2_211_383_297, 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_arguments_of_published_networks_are_read_from_their_shapes(name):
    args, build, preset, millions = PUBLISHED[name]
    with torch.device("meta"):
        network = build(args)
    numbers = sum(p.numel() for p in network.parameters())
    assert numbers / 1e6 == pytest.approx(millions, rel=2e-3)
    if name in BYTES:
        size, each = BYTES[name]
        assert each * numbers < size < 1.001 * each * numbers
    state = state_of(network)
    (form,) = (form for form in FORMATS if form.matches(state))
    draft = form.draft(state)
    assume = {"t_star": "100"} if draft.fields["family"] == "diffusion" else {}
    if form.name == "lucidrains":
        assume |= {"schedule.kind": "cosine"}
    if "image" not in PRESETS[preset].fields.keys() | draft.fields.keys():
        assume |= {"image": f"{draft.fields['channels']}x32x32"}
    reading = LoadOptions(preset=preset, assume=assume)
    how = draft.fields, reading, None, draft.conventions
    card, _ = complete_card(Path(name), form.name, *how)
    assert card.network == args
    with torch.device("meta"):
        built = build_network(card).state_dict()
    assert {n: t.shape for n, t in built.items()} == {n: t.shape for n, t in state.items()}


# --- weights that are run otherwise than they were trained --------------------------------------


class Told(nn.Module):
    """A network that is told another time, or shown other pixels, than it should be."""

    def __init__(self, network, time=1.0, scale=1.0, shift=0.0, sign=1.0):
        super().__init__()
        self.network, self.time, self.sign = network, time, sign
        self.scale, self.shift = scale, shift

    def forward(self, x, t):
        return self.sign * self.network(self.scale * x + self.shift, self.time * t)


@pytest.fixture(scope="module")
def digits():
    return choose(load_images("digits"), 64, 0)


def codes(purifier, images):
    runner = Runner(purifier, CPU, 0, 16)
    return {finding.code for finding in preflight(runner, images).findings}


def digits_purifier(change=None, weights=None, **card):
    """The shipped purifier of digits, something about it changed."""
    checkpoint = read_checkpoint(DIGITS)
    settings = checkpoint.card.model_dump() | {"t_star": 5} | card
    purifier = load_purifier(checkpoint, CPU, DiffusionCard.model_validate(settings))
    if weights is not None:
        purifier.network.load_state_dict(weights(load_tensors(checkpoint)))
    return replace(purifier, network=change(purifier.network)) if change else purifier


@pytest.mark.parametrize("t_star", [5, 40])
def test_weights_that_are_run_as_trained_denoise(t_star, digits):
    assert "PA106" not in codes(digits_purifier(t_star=t_star), digits)


SETTINGS = {
    "range [0, 1]": {"data_range": (0.0, 1.0)},
    "range [0, 255]": {"data_range": (0.0, 255.0)},
    "predicts x0": {"prediction": "x0"},
    "predicts v": {"prediction": "v"},
    "predicts the score": {"prediction": "score"},
    "told sigma": {"time_conditioning": "sigma"},
    "cosine schedule": {"schedule": {"kind": "cosine", "steps": 1000}},
    "100 steps": {
        "schedule": {"kind": "linear", "steps": 100, "beta_start": 1e-3, "beta_end": 0.2}
    },
    "4000 steps": {
        "schedule": {"kind": "linear", "steps": 4000, "beta_start": 2.5e-5, "beta_end": 5e-3}
    },
}


@pytest.mark.parametrize("wrong", SETTINGS)
def test_wrong_settings_are_seen(wrong, digits):
    assert "PA106" in codes(digits_purifier(**SETTINGS[wrong]), digits)


TOLD = {
    "time in [0, 1]": {"time": 1e-3},
    "a quarter of the time": {"time": 0.25},
    "half of the time": {"time": 0.5},
    "twice the time": {"time": 2.0},
    "four times the time": {"time": 4.0},
    "pixels doubled twice": {"scale": 2.0, "shift": -1.0},
    "pixels halved": {"scale": 0.5},
    "the other sign": {"sign": -1.0},
}


@pytest.mark.parametrize("wrong", TOLD)
def test_a_network_that_is_told_otherwise_is_seen(wrong, digits):
    purifier = digits_purifier(lambda network: Told(network, **TOLD[wrong]))
    assert "PA106" in codes(purifier, digits)


def rotated(tensors, last):
    """Tensors of one shape in each other's places: an average zipped in a wrong order.

    Args:
        tensors: by name.
        last: how many of each shape change places.
    """
    mixed, shapes = dict(tensors), {}
    for name, tensor in tensors.items():
        shapes.setdefault(tuple(tensor.shape), []).append(name)
    for names in shapes.values():
        some = names[:last]
        for here, there in zip(some, [*some[1:], *some[:1]]):
            mixed[here] = tensors[there]
    return mixed


def half_random(tensors):
    generator = torch.Generator().manual_seed(0)
    late = list(tensors)[len(tensors) // 2 :]
    noise = {n: torch.randn(tensors[n].shape, generator=generator) for n in late}
    return tensors | {n: 0.1 * noise[n] for n in late}


@pytest.mark.parametrize(
    "weights",
    [lambda t: rotated(t, 1000), lambda t: rotated(t, 2), half_random],
    ids=["all rotated", "two of each shape swapped", "half random"],
)
def test_weights_in_wrong_places_are_seen(weights, digits):
    assert "PA106" in codes(digits_purifier(weights=weights), digits)


UNSEEN = {
    "a clock that is one index early": {"time_conditioning": "continuous"},
    "the continuous schedule for the discrete": {"schedule": {"kind": "vp", "steps": 1000}},
    "another variance": {"sampler": {"kind": "ddpm", "variance": "fixed-large"}},
    "another t*": {"t_star": 6},
}


@pytest.mark.parametrize("wrong", UNSEEN)
def test_what_no_denoising_error_tells(wrong, digits):
    """These give the network almost what it was trained on, or are no matter of the network."""
    assert "PA106" not in codes(digits_purifier(**UNSEEN[wrong]), digits)


# A purifier of photographs, which knows images of every contrast, hides more.
CIFAR_MODEL = DIGITS.with_name("cifar10-ddpm.safetensors")
PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "cifar10_test_lossless_1178.npz"


def photographs_purifier(told=None, **card):
    if not (CIFAR_MODEL.exists() and PHOTOGRAPHS.exists()):
        pytest.skip("the CIFAR-10 purifier or its images are not here")
    checkpoint = read_checkpoint(CIFAR_MODEL)
    settings = checkpoint.card.model_dump() | {"t_star": 5, "sampler": {"kind": "ddpm"}} | card
    purifier = load_purifier(checkpoint, CPU, DiffusionCard.model_validate(settings))
    return replace(purifier, network=Told(purifier.network, **told)) if told else purifier


PHOTOGRAPHS_SEEN = {
    "predicts v": ({"prediction": "v"}, None, "taken for a prediction of eps it would be"),
    "cosine schedule": (SETTINGS["cosine schedule"], None, "given half the time it would be"),
    "half the time": ({}, {"time": 0.5}, "given twice the time it would be"),
    "twice the time": ({}, {"time": 2.0}, "given half the time it would be"),
    "four times the time": ({}, {"time": 4.0}, "given a quarter of the time it would be"),
}


@pytest.mark.parametrize("wrong", PHOTOGRAPHS_SEEN)
def test_a_purifier_of_photographs_run_wrongly_is_seen_and_told_how(wrong):
    card, told, sentence = PHOTOGRAPHS_SEEN[wrong]
    images = choose(load_images(str(PHOTOGRAPHS)), 8, 0) if PHOTOGRAPHS.exists() else None
    runner = Runner(photographs_purifier(told, **card), CPU, 0, 16)
    found = check_denoising(runner, images)
    assert found.code == "PA106"
    assert sentence in found.sentence


def test_a_purifier_of_photographs_run_rightly_or_in_another_range():
    """The range hides: the network denoises paler photographs just as well."""
    purifiers = photographs_purifier(), photographs_purifier(data_range=(0.0, 1.0))
    images = choose(load_images(str(PHOTOGRAPHS)), 8, 0)
    pale = ImageSet(0.4 + 0.2 * images.pixels, images.labels, images.ids, images.source)
    for purifier, shown in ((purifiers[0], images), (purifiers[0], pale), (purifiers[1], images)):
        assert check_denoising(Runner(purifier, CPU, 0, 16), shown) is None


@pytest.mark.parametrize("contrast", [0.0, 0.05, 1.0])
def test_an_exact_denoiser_is_let_through_whatever_the_images(contrast):
    """Of Gaussian images about grey: eps = (x − sqrt(abar) m) sqrt(1 − abar) / (v abar + 1 − abar).

    The limit is that of pixels uniform over the range where the images vary less.
    """
    deviation = max(contrast / 4.0, 1e-4)
    card = read_checkpoint(DIGITS).card
    abar = torch.from_numpy(noise_schedule(card.schedule).abar.copy())

    class Gaussian(nn.Module):
        def forward(self, x, t):
            left = abar[t.long()][:, None, None, None]
            variance = (2.0 * deviation) ** 2
            return (x * (1.0 - left).sqrt() / (variance * left + 1.0 - left)).float()

    pixels = 0.5 + deviation * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images = ImageSet(pixels.clamp(0.0, 1.0).numpy(), None, np.arange(64), "Gaussian")
    assert "PA106" not in codes(DiffusionPurifier(card, Gaussian()), images)
