"""EDM's denoisers against numbers computed by the published code, and against their own algebra."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import Constant, Recorder, Script, continuous_abar, diffusion_card, literal_abar
from pydantic import ValidationError
from safetensors.torch import load_file

from purify_audit.core.errors import CheckpointError
from purify_audit.models.checkpoint import read_checkpoint, save_checkpoint
from purify_audit.models.load import load_purifier
from purify_audit.models.networks.edm import EDM
from purify_audit.models.purifiers.denoiser import Denoiser
from purify_audit.spec.architectures import EDMArgs
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.samplers import DDIMSampler, LinearSchedule, OneStepSampler, VPSchedule

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
CIFAR = ImageSpec(channels=3, height=32, width=32)
SMALL = {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "augment": 9}
COLUMNS = ("vp", "edm")  # of table 1
CPU = torch.device("cpu")


def golden(column):
    path = GOLDEN / f"edm_{column}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path.name} in {path.parent}")
    return load_file(path)


def weights(numbers):
    """The state dict in a golden file, under the network's own names."""
    return {k.removeprefix("model."): v for k, v in numbers.items() if k.startswith("model.")}


def trained(column):
    """A network with the weights of its golden file, and the file."""
    numbers = golden(column)
    network = EDM(CIFAR, EDMArgs(preconditioning=column, **SMALL))
    network.load_state_dict(weights(numbers))
    return network.eval().requires_grad_(False), numbers


def same(got, want, tolerance=1e-5):
    """Every image within a share of its own largest number."""
    assert got.shape == want.shape
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def card(column="edm", **changes):
    settings = {
        "image": CIFAR,
        "network": EDMArgs(preconditioning=column, **SMALL),
        "prediction": "x0",
        "time_conditioning": "sigma",
        "sampler": DDIMSampler(clip=False, clamp=False),
        "t_star": 100,
    }
    return diffusion_card(**{**settings, **changes})


def native(folder, column, drop="", **settings):
    """A native checkpoint with the weights of a golden file, one of them perhaps left out."""
    tensors = {k: v for k, v in weights(golden(column)).items() if k != drop}
    path = folder / f"{column}.safetensors"
    save_checkpoint(path, card(column, **settings), tensors)
    return path


# --- the golden numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("column", COLUMNS)
def test_denoised_is_the_published_codes(column, dtype):
    network, numbers = trained(column)
    out = network.to(dtype)(numbers["x"].to(dtype), numbers["sigma"].to(dtype))
    assert out.dtype == dtype
    same(out.float(), numbers["denoised"])


def test_output_does_not_depend_on_the_layout_in_memory():
    network, numbers = trained("edm")
    x = numbers["x"].contiguous(memory_format=torch.channels_last)
    network = network.to(memory_format=torch.channels_last)
    same(network(x, numbers["sigma"]), numbers["denoised"])


def test_labels_of_augmentation_are_not_needed():
    network, numbers = trained("edm")
    plain = EDM(CIFAR, EDMArgs(preconditioning="edm", **(SMALL | {"augment": 0}))).eval()
    kept = {k: v for k, v in network.state_dict().items() if k != "model.map_augment.weight"}
    plain.load_state_dict(kept)
    x, sigma = numbers["x"], numbers["sigma"]
    assert torch.equal(plain(x, sigma), network(x, sigma))


# --- preconditioning (Karras et al. 2022, table 1) ----------------------------------------------

SIGMAS = (0.002, 0.02, 0.3388, 3.42, 80.0)


def preconditioned(column, sigma, inside):
    """D of a network whose inside gives `inside` everywhere, for images of ones."""
    network = EDM(CIFAR, EDMArgs(preconditioning=column, sigma_data=0.4, **SMALL))
    network.model = Recorder(Constant(inside))
    x = torch.ones(1, 3, 32, 32, dtype=torch.float64)
    out = network(x, torch.tensor([sigma], dtype=torch.float64))
    assert bool((out == out.flatten()[0]).all())
    return float(out.flatten()[0]), network.model


@pytest.mark.parametrize("sigma", SIGMAS)
def test_edm_column(sigma):
    """Input and target have unit variance, and c_out is as small as it can be (appendix B.6)."""
    skip, seen = preconditioned("edm", sigma, 0.0)
    scale = preconditioned("edm", sigma, 1.0)[0] - skip
    assert skip == pytest.approx(0.16 / (sigma**2 + 0.16), rel=1e-12)
    # The target (x0 - c_skip x) / c_out of data of standard deviation 0.4 has variance 1.
    variance = 0.16 * (1.0 - skip) ** 2 + skip**2 * sigma**2
    assert scale == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert float(seen.images[0].flatten()[0]) ** 2 * (0.16 + sigma**2) == pytest.approx(1.0)
    assert seen.times == [pytest.approx(math.log(sigma) / 4.0, rel=1e-12)]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_vp_column(sigma):
    """D = x - sigma F(sqrt(abar) x, 999 t), t being when the VP process has this sigma."""
    skip, seen = preconditioned("vp", sigma, 0.0)
    assert skip == 1.0
    assert preconditioned("vp", sigma, 1.0)[0] == pytest.approx(1.0 - sigma, rel=1e-12)
    abar = continuous_abar(VPSchedule(), seen.times[0] / 999.0)
    assert math.sqrt(1.0 / abar - 1.0) == pytest.approx(sigma, rel=1e-9)
    assert float(seen.images[0].flatten()[0]) == pytest.approx(math.sqrt(abar), rel=1e-9)


# --- as a purifier ------------------------------------------------------------------------------


@pytest.mark.parametrize("column", COLUMNS)
def test_eps_of_the_denoiser_is_what_the_image_lost(column):
    """x / sqrt(abar) = x0 + sigma eps, and the network is told sigma: the golden numbers again."""
    network, numbers = trained(column)
    for noisy, sigma, denoised in zip(
        numbers["x"], numbers["sigma"].tolist(), numbers["denoised"], strict=True
    ):
        abar = 1.0 / (1.0 + sigma**2)
        x = math.sqrt(abar) * noisy[None]
        estimate = Denoiser(network, "x0", "sigma")(x, math.nan, abar)
        same(estimate.x0, denoised[None])
        same(estimate.eps, (noisy[None] - denoised) / sigma)
        again = math.sqrt(abar) * estimate.x0 + math.sqrt(1.0 - abar) * estimate.eps
        same(again, x)


@pytest.mark.parametrize("column", COLUMNS)
def test_ddim_is_eulers_method_in_sigma(column, tmp_path):
    """In y = x / sqrt(abar) DDIM steps dy/dsigma = (y - D(y; sigma)) / sigma (Song, Meng and Ermon
    2021, eq. 14; Karras et al. 2022, eq. 3), from y = x0 + sigma z to sigma = 0.
    """
    purifier = load_purifier(
        read_checkpoint(native(tmp_path, column, sampler=DDIMSampler(steps=4, clip=False))), CPU
    )
    x, z = (0.2 * images(2, 3, 32, 32) + 0.5).clamp(0.0, 1.0), images(2, 1, 3, 32, 32, seed=1)
    abar = literal_abar(LinearSchedule())
    sigmas = [math.sqrt(1.0 / abar[i] - 1.0) for i in (99, 74, 49, 24)]
    assert sigmas[0] == pytest.approx(0.3388, abs=1e-4)
    network, _ = trained(column)
    network = network.double()
    y = 2.0 * x.double() - 1.0 + sigmas[0] * z[:, 0].double()
    for here, there in zip(sigmas, (*sigmas[1:], 0.0), strict=True):
        slope = (y - network(y, torch.full((2,), here, dtype=torch.float64))) / here
        y = y + (there - here) * slope
    same(purifier(x, Script(z)), ((y + 1.0) / 2.0).clamp(0.0, 1.0).float())


def test_one_step_is_one_look_of_the_network(tmp_path):
    purifier = load_purifier(
        read_checkpoint(native(tmp_path, "edm", sampler=OneStepSampler(clip=False, clamp=False))),
        CPU,
    )
    network, _ = trained("edm")
    x, z = images(2, 3, 32, 32), images(2, 1, 3, 32, 32, seed=1)
    sigma = math.sqrt(1.0 / literal_abar(LinearSchedule())[99] - 1.0)
    want = network(2.0 * x - 1.0 + sigma * z[:, 0], torch.full((2,), sigma))
    same(2.0 * purifier(x, Script(z)) - 1.0, want)


# --- weights by name ----------------------------------------------------------------------------


def test_a_native_checkpoint_is_loaded_strictly(tmp_path):
    """The filters are weights too: they are read from the file, not assumed."""
    for drop in ("model.map_augment.weight", "model.enc.16x16_down.skip.resample_filter"):
        path = native(tmp_path, "edm", drop)
        with pytest.raises(CheckpointError) as raised:
            load_purifier(read_checkpoint(path), CPU)
        assert f"1 tensors that the card's network needs are missing: {drop}" in str(raised.value)


def test_stored_filters_are_used():
    network, numbers = trained("edm")
    state = {k: (1.5 * v if "resample" in k else v) for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    out = network(numbers["x"], numbers["sigma"])
    assert (out - numbers["denoised"]).abs().max() > 1e-3


def test_the_published_cifar_network_has_its_known_size_and_names():
    """CIFAR-10 unconditional, the DDPM++ variant: 55.7 million weights."""
    args = EDMArgs(
        width=128,
        multipliers=(2, 2, 2),
        blocks=4,
        attention=(1,),
        preconditioning="edm",
        augment=9,
    )
    with torch.device("meta"):
        network = EDM(CIFAR, args)
    assert 55_700_000 < sum(p.numel() for p in network.parameters()) < 55_800_000
    encoder = ["32x32_conv", *(f"32x32_block{k}" for k in range(4))]
    for size in (16, 8):
        encoder += [f"{size}x{size}_down", *(f"{size}x{size}_block{k}" for k in range(4))]
    assert list(network.model.enc) == encoder
    decoder = ["8x8_in0", "8x8_in1", *(f"8x8_block{k}" for k in range(5))]
    for size in (16, 32):
        decoder += [f"{size}x{size}_up", *(f"{size}x{size}_block{k}" for k in range(5))]
    assert list(network.model.dec) == [*decoder, "32x32_aux_norm", "32x32_aux_conv"]
    attending = {key.split(".")[2] for key in network.state_dict() if ".qkv.weight" in key}
    assert attending == {*(f"16x16_block{k}" for k in range(5)), "8x8_in0"}
    assert not any(key.startswith("model.dec.16x16_block0.qkv") for key in network.state_dict())


@pytest.mark.parametrize("settings", [{"multipliers": (1,)}, {"multipliers": (2, 1, 3)}], ids=str)
def test_any_size_that_can_be_halved(settings):
    torch.manual_seed(0)
    image = ImageSpec(channels=1, height=8, width=20)
    network = EDM(image, EDMArgs(width=8, blocks=2, preconditioning="edm", **settings))
    network.eval().requires_grad_(False)
    x, sigma = images(2, 1, 8, 20), torch.tensor([0.1, 2.0])
    out = network(x, sigma)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    torch.testing.assert_close(network(x[1:], sigma[1:]), out[1:], rtol=1e-4, atol=1e-5)


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("column", COLUMNS)
def test_gradients_reach_every_weight_and_the_image(column):
    network, numbers = trained(column)
    network.double().requires_grad_(True)
    x, sigma = numbers["x"].double().requires_grad_(), numbers["sigma"].double()
    direction = images(2, 3, 32, 32, seed=1).double()
    (network(x, sigma) * direction).sum().backward()
    for key, parameter in network.named_parameters():
        if "map_augment" in key:
            assert parameter.grad is None
        else:
            assert parameter.grad.abs().max() > 1e-6, key
    step = 1e-5 * direction
    with torch.no_grad():
        change = network(x + step, sigma) - network(x - step, sigma)
    slope = float((change * direction).sum()) / 2e-5
    assert float((x.grad * direction).sum()) == pytest.approx(slope, rel=1e-6)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prediction": "eps"}, "network edm predicts x0 and its time_conditioning is sigma"),
        (
            {"time_conditioning": "index"},
            "network edm predicts x0 and its time_conditioning is sigma",
        ),
        (
            {"learned_variance": True, "time_conditioning": "index"},
            "network edm has no learned_variance",
        ),
        (
            {"image": ImageSpec(channels=3, height=31, width=32)},
            "31 x 32 pixels cannot be halved 1 times, as a network of 2 levels does",
        ),
    ],
    ids=str,
)
def test_cards_that_contradict_the_network(changes, sentence):
    with pytest.raises(ValidationError) as raised:
        card(**changes)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention": (2,)}, "attention (2,) names a level that is not there"),
        ({"width": 30}, "multiple of 4"),
        ({"sigma_data": 0.0}, "greater than 0"),
    ],
    ids=str,
)
def test_settings_of_no_network(changes, sentence):
    with pytest.raises(ValidationError) as raised:
        EDMArgs(preconditioning="edm", **(SMALL | changes))
    assert sentence in str(raised.value)
