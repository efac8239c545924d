"""NCSN++ and DDPM++ against numbers computed by the code that trained the published weights."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import Script, continuous_abar, diffusion_card
from pydantic import ValidationError
from safetensors.torch import load_file

from purify_audit.core.errors import CheckpointError
from purify_audit.models.checkpoint import read_checkpoint, save_checkpoint
from purify_audit.models.load import load_purifier
from purify_audit.models.networks.layers import (
    double_filtered,
    halve_filtered,
    sines_and_cosines,
)
from purify_audit.models.networks.ncsnpp import NCSNpp
from purify_audit.models.purifiers.denoiser import Denoiser
from purify_audit.spec.architectures import NCSNppArgs
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.samplers import OneStepSampler, VPSchedule, VPSDESampler

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
CIFAR = ImageSpec(channels=3, height=32, width=32)
SMALL = {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}
VE = {"embedding": "fourier", "fir": True, "progressive_input": "residual", "scale_by_sigma": True}
VARIANTS = {
    "score_sde_ddpmpp": NCSNppArgs(**SMALL),
    "score_sde_ncsnpp_fir": NCSNppArgs(**SMALL, **VE),
}


def golden(name):
    path = GOLDEN / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path.name} in {path.parent}")
    return load_file(path)


def weights(numbers):
    """The state dict in a golden file, under the network's own names."""
    return {k.removeprefix("model."): v for k, v in numbers.items() if k.startswith("model.")}


def trained(name):
    """A variant with the weights of its golden file, and the file."""
    numbers = golden(name)
    network = NCSNpp(CIFAR, VARIANTS[name])
    network.load_state_dict(weights(numbers))
    return network.eval().requires_grad_(False), numbers


def same(got, want, tolerance=1e-5):
    """Every image within a share of its own largest number."""
    assert got.shape == want.shape
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def untrained(**changes):
    torch.manual_seed(0)
    image = ImageSpec(channels=3, height=16, width=16)
    args = NCSNppArgs(**({"width": 8, "multipliers": (1, 2), "blocks": 1} | changes))
    return NCSNpp(image, args).eval().requires_grad_(False)


def images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


# --- the golden numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", VARIANTS)
def test_output_is_the_published_codes(name, dtype):
    network, numbers = trained(name)
    out = network.to(dtype)(numbers["x"].to(dtype), numbers["labels"].to(dtype))
    assert out.dtype == dtype
    same(out.float(), numbers["out"])


def test_output_does_not_depend_on_the_layout_in_memory():
    for name in VARIANTS:
        network, numbers = trained(name)
        x = numbers["x"].contiguous(memory_format=torch.channels_last)
        same(network.to(memory_format=torch.channels_last)(x, numbers["labels"]), numbers["out"])


def test_score_through_the_denoiser_vp():
    """score = -eps / sqrt(1 - abar(t)), the network being told 999 t."""
    network, numbers = trained("score_sde_ddpmpp")
    for x, t, score in zip(numbers["x"], numbers["t"].tolist(), numbers["score"], strict=True):
        abar = continuous_abar(VPSchedule(), t)
        estimate = Denoiser(network, "eps", "continuous")(x[None], 999.0 * t, abar)
        same(-estimate.eps / math.sqrt(1.0 - abar), score[None])


def test_score_through_the_denoiser_ve():
    """A VE network is told sigma and gives the score of x0 + sigma eps; its image is Tweedie's."""
    network, numbers = trained("score_sde_ncsnpp_fir")
    for x, sigma, out in zip(numbers["x"], numbers["labels"].tolist(), numbers["out"], strict=True):
        abar = 1.0 / (1.0 + sigma**2)
        estimate = Denoiser(network, "score", "sigma")(math.sqrt(abar) * x[None], math.nan, abar)
        same(-estimate.eps / sigma, out[None])
        same(estimate.x0, (x + sigma**2 * out)[None])


def test_the_chain_of_nie_et_al(tmp_path):
    """From a native checkpoint: forward by the discrete schedule, back by the continuous VP-SDE."""
    numbers = golden("score_sde_ddpmpp__vpsde_t20")
    path = native(tmp_path, "score_sde_ddpmpp", t_star=20, sampler=VPSDESampler(clamp=False))
    purifier = load_purifier(read_checkpoint(path), torch.device("cpu"))
    noise = Script(torch.cat((numbers["e"][None], numbers["z"])).transpose(0, 1))
    purified = purifier((numbers["x0"] + 1.0) / 2.0, noise)
    assert noise.asked == list(range(21))
    torch.testing.assert_close(2.0 * purified - 1.0, numbers["purified"], rtol=0, atol=1e-5)


# --- weights by name and by place ---------------------------------------------------------------


def native(folder, name, change=None, **settings):
    """A native checkpoint with the weights of a golden file."""
    tensors = weights(golden(name))
    path = folder / f"{name}.safetensors"
    save_checkpoint(path, card(name, **settings), change(tensors) if change else tensors)
    return path


def card(name="score_sde_ddpmpp", **changes):
    ve = name == "score_sde_ncsnpp_fir"
    settings = {
        "image": CIFAR,
        "network": VARIANTS[name],
        "time_conditioning": "sigma" if ve else "continuous",
        "prediction": "score" if ve else "eps",
        "sampler": OneStepSampler(clip=False, clamp=False),
    }
    return diffusion_card(**{**settings, **changes})


@pytest.mark.parametrize("name", VARIANTS)
def test_a_native_checkpoint_is_loaded_strictly(name, tmp_path):
    network, numbers = trained(name)
    purifier = load_purifier(read_checkpoint(native(tmp_path, name)), torch.device("cpu"))
    x, labels = numbers["x"], numbers["labels"]
    assert torch.equal(purifier.network(x, labels), network(x, labels))

    def lose(tensors):
        return {k: v for k, v in tensors.items() if k != "all_modules.5.Conv_2.bias"}

    lost = read_checkpoint(native(tmp_path, name, lose))
    with pytest.raises(CheckpointError, match=r"missing: all_modules\.5\.Conv_2\.bias$"):
        load_purifier(lost, torch.device("cpu"))


def test_parameters_come_in_the_order_of_averaged_weights():
    """Averaged weights are stored as a list in this order; what was never trained is not in it."""
    network = NCSNpp(CIFAR, VARIANTS["score_sde_ncsnpp_fir"])
    names = [name for name, _ in network.named_parameters()]
    places = [int(name.split(".")[1]) for name in names]
    assert places == sorted(places)
    assert set(places) == set(range(1, 20))  # 0 holds the random frequencies
    both = ("weight", "bias")
    for place, parts in {
        4: ("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1"),
        5: ("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2"),
        6: ("Conv2d_0",),
        8: ("GroupNorm_0", "NIN_0", "NIN_1", "NIN_2", "NIN_3"),
    }.items():
        want = [
            f"all_modules.{place}.{part}.{leaf}"
            for part in parts
            for leaf in (("W", "b") if part.startswith("NIN") else both)
        ]
        assert [name for name, p in zip(names, places, strict=True) if p == place] == want


def test_the_network_of_diffpure_has_its_known_size_and_order():
    """CIFAR-10 DDPM++ "deep": 106.7M weights, of which the published file holds four copies."""
    args = NCSNppArgs(width=128, multipliers=(1, 2, 2, 2), blocks=8, attention=(1,))
    with torch.device("meta"):
        network = NCSNpp(CIFAR, args)
    count = sum(p.numel() for p in network.parameters())
    # weights, their average, two moments, float32; names and padding are the rest of the file
    assert 0 < 1_707_310_559 - 16 * count < 2_000_000
    layers = {i: describe(layer) for i, layer in enumerate(network.all_modules)}
    assert len(layers) == 91
    linear, conv, attend = {0, 1}, {2, 90}, {*range(13, 28, 2), 47, 78}
    assert {i for i, kind in layers.items() if kind == "Linear"} == linear
    assert {i for i, kind in layers.items() if kind == "Conv2d"} == conv
    assert {i for i, kind in layers.items() if kind == "GroupNorm"} == {89}
    assert {i for i, kind in layers.items() if kind == "NIN"} == attend
    resampling = {11, 28, 37, 58, 68, 79}
    factors = {i: resample_factor(layer) for i, layer in enumerate(network.all_modules)}
    assert {i for i, factor in factors.items() if factor != 1.0} == resampling
    assert {i for i, factor in factors.items() if factor == 0.5} == {11, 28, 37}
    widths = {i: network.all_modules[i].GroupNorm_0.num_channels for i in (3, 12, 49, 57, 67, 88)}
    assert widths == {3: 128, 12: 128, 49: 512, 57: 512, 67: 512, 88: 256}


def describe(layer):
    names = {name.split(".")[0] for name, _ in layer.named_parameters()}
    if "NIN_0" in names:
        return "NIN"
    return "block" if "Dense_0" in names else type(layer).__name__


def resample_factor(layer):
    """By how much a block changes the height of the image."""
    if describe(layer) != "block":
        return 1.0
    c, time = layer.GroupNorm_0.num_channels, layer.Dense_0.in_features
    out = layer(torch.empty(1, c, 4, 4, device="meta"), torch.empty(1, time, device="meta"))
    return out.shape[-1] / 4


# --- arithmetic written out ---------------------------------------------------------------------


def filtered_once(x):
    """Rows of 2n numbers to n: (x[2i-1] + 3 x[2i] + 3 x[2i+1] + x[2i+2]) / 8, zeros outside."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 1)])
    a, b, c, d = (padded[..., k : k + x.shape[-1] : 2] for k in range(4))
    return (a + 3 * b + 3 * c + d) / 8


def spread_once(x):
    """Rows of n numbers to 2n: (x[i-1] + 3 x[i]) / 4, then (3 x[i] + x[i+1]) / 4; zeros outside."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 1)])
    left, here, right = padded[..., :-2], padded[..., 1:-1], padded[..., 2:]
    pairs = np.stack(((left + 3 * here) / 4, (3 * here + right) / 4), -1)
    return pairs.reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("resample", ["halve", "double"])
def test_filtered_resampling_axis_by_axis(resample):
    x = images(2, 3, 6, 10).double()
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    kernel = torch.outer(taps, taps)[None, None]
    ours, axis = (
        (halve_filtered, filtered_once) if resample == "halve" else (double_filtered, spread_once)
    )
    want = axis(axis(x.numpy()).swapaxes(2, 3)).swapaxes(2, 3)
    np.testing.assert_allclose(ours(x, kernel).numpy(), want, rtol=0, atol=1e-14)


def test_a_box_filter_is_means_of_four_and_nearest_neighbours():
    x, box = images(2, 3, 6, 10).double(), torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)
    want = x.reshape(2, 3, 3, 2, 5, 2).mean((3, 5))
    torch.testing.assert_close(halve_filtered(x, box), want, rtol=0, atol=1e-15)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(double_filtered(x, box), repeated, rtol=0, atol=1e-15)


def test_sines_then_cosines_from_1_to_a_ten_thousandth():
    t = torch.tensor([0.0, 49.95, 699.3], dtype=torch.float64)
    angles = [[float(a) * 10_000.0 ** (-i / 7) for i in range(8)] for a in t]
    rows = [[math.sin(a) for a in row] + [math.cos(a) for a in row] for row in angles]
    want = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(sines_and_cosines(t, 16), want, rtol=0, atol=1e-11)


def test_uncentered_networks_double_the_pixels_themselves():
    centered, uncentered = untrained(), untrained(centered=False)
    uncentered.load_state_dict(centered.state_dict())
    x, t = images(2, 3, 16, 16), torch.tensor([3.0, 500.0])
    assert torch.equal(uncentered(x, t), centered(2.0 * x - 1.0, t))


@pytest.mark.parametrize(
    "changes",
    [
        {"multipliers": (1,)},
        {"multipliers": (2, 1, 3), "blocks": 2, "attention": (0, 2)},
        {"multipliers": (1, 1, 1), **VE},
    ],
    ids=str,
)
def test_any_size_that_can_be_halved(changes):
    network = untrained(**changes)
    x, t = images(2, 3, 8, 20), torch.tensor([1.0, 30.0])
    out = network(x, t)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    alone = network(x[1:], t[1:])
    torch.testing.assert_close(alone, out[1:], rtol=1e-4, atol=1e-5)


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_weight_and_the_image(name):
    network, numbers = trained(name)
    network.double().requires_grad_(True)
    x, labels = numbers["x"].double().requires_grad_(), numbers["labels"].double()
    direction = images(2, 3, 32, 32, seed=1).double()
    (network(x, labels) * direction).sum().backward()
    for key, parameter in network.named_parameters():
        if not key.endswith("NIN_1.b"):  # adds one number to all scores of a pixel: softmax ignores
            assert parameter.grad.abs().max() > 1e-6, key
    step = 1e-5 * direction
    with torch.no_grad():
        change = network(x + step, labels) - network(x - step, labels)
    slope = float((change * direction).sum()) / 2e-5
    assert float((x.grad * direction).sum()) == pytest.approx(slope, rel=1e-6)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention": (2,)}, "attention (2,) names a level that is not there"),
        ({"progressive_input": "residual"}, "progressive_input residual resamples by the filter"),
        ({"scale_by_sigma": True}, "scale_by_sigma needs embedding fourier"),
        ({"width": 6}, "multiple of 4"),
    ],
    ids=str,
)
def test_settings_that_no_published_network_has(changes, sentence):
    with pytest.raises(ValidationError) as raised:
        NCSNppArgs(**(SMALL | changes))
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"image": ImageSpec(channels=3, height=32, width=33)},
            "32 x 33 pixels cannot be halved 1 times, as a network of 2 levels does",
        ),
        ({"learned_variance": True}, "network ncsnpp has no learned_variance"),
        (
            {"network": VARIANTS["score_sde_ncsnpp_fir"]},
            "a network with scale_by_sigma has time_conditioning sigma",
        ),
    ],
    ids=["size", "variance", "time_conditioning"],
)
def test_cards_that_contradict_the_network(changes, sentence):
    with pytest.raises(ValidationError) as raised:
        card(**changes)
    assert sentence in str(raised.value)


def test_widths_that_no_group_norm_divides(tmp_path):
    path = tmp_path / "wide.safetensors"
    args = NCSNppArgs(width=36, multipliers=(4,), blocks=1)
    save_checkpoint(path, card(network=args), {"sigmas": torch.zeros(1000)})
    with pytest.raises(CheckpointError) as raised:
        load_purifier(read_checkpoint(path), torch.device("cpu"))
    assert str(raised.value) == (
        f"{path}: the card's network: 144 channels do not divide into 32 groups of GroupNorm;"
        " widths that are multiples of 32 do"
    )
