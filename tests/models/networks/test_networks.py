"""Networks: shapes, names of layers, and arithmetic against implementations written out here."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import PROVENANCE, diffusion_card
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from purify_audit.models.networks import build_network
from purify_audit.models.networks.autoencoder import Autoencoder
from purify_audit.models.networks.classifiers import CifarResNet, Cnn
from purify_audit.models.networks.layers import sinusoidal_embedding
from purify_audit.models.networks.unet import UNet
from purify_audit.spec.architectures import AutoencoderArgs, CifarResNetArgs, CnnArgs, UNetArgs
from purify_audit.spec.card import ClassifierCard, FeedforwardCard, ImageSpec
from purify_audit.spec.samplers import DDPMSampler

DATA = Path(__file__).parents[4] / "shared" / "data"


def images(n, shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, *shape))).float()


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads cost more than they give on tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- U-Net --------------------------------------------------------------------------------------


def unet(channels=1, out=1, *, width=16, multipliers=(1, 2), blocks=1, attention=(), groups=8):
    """With a last layer that is not zero, as after training."""
    network = UNet(channels, out, width, multipliers, blocks, attention, groups)
    nn.init.normal_(network.conv_out.weight, std=0.2)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"multipliers": (1,)},
        {"multipliers": (1, 2, 2)},
        {"multipliers": (2, 1), "blocks": 2, "attention": (0, 1)},
        {"multipliers": (1, 2), "attention": (1,), "groups": 4},
        {"multipliers": (3,), "width": 6, "groups": 3},
    ],
    ids=str,
)
def test_unet_keeps_the_shape_of_the_image(settings, channels, size):
    x, t = images(2, (channels, *size)), torch.tensor([3.0, 40.0])
    plain = unet(channels, channels, **settings)(x, t)
    assert plain.shape == x.shape
    wide = unet(channels, 2 * channels, **settings)(x, t)
    assert wide.shape == (2, 2 * channels, *size)
    assert torch.isfinite(wide).all()
    assert (wide.std((2, 3)) > 1e-3).all()


def test_unet_starts_at_zero():
    network = UNet(1, 1, 16, (1, 2), 1, (), 8)
    assert torch.equal(network(images(2, (1, 8, 8)), torch.ones(2)), torch.zeros(2, 1, 8, 8))


def test_unet_hears_the_time_and_each_row_its_own():
    network = unet(attention=(1,))
    x = images(1, (1, 8, 8)).expand(3, -1, -1, -1)
    y = network(x, torch.tensor([1.0, 2.0, 500.0]))
    assert (y[0] - y[1]).abs().max() > 1e-4
    assert (y[0] - y[2]).abs().max() > 1e-2
    alone = network(x[:1], torch.tensor([500.0]))
    torch.testing.assert_close(alone[0], y[2], rtol=0, atol=1e-5)


def test_unet_sees_the_whole_image_where_it_attends():
    """A corner pixel moves the opposite corner through attention, and not through convolutions."""
    x = images(1, (1, 32, 32)).double()
    moved = x.clone()
    moved[0, 0, 0, 0] += 1.0
    t = torch.tensor([5.0], dtype=torch.float64)
    for attention, far in (((), False), ((0,), True)):
        # GroupNorm reaches everywhere too: make it the identity, to leave what is being tested.
        network = unet(multipliers=(1,), attention=attention).double()
        for module in list(network.modules()):
            for key, child in list(module.named_children()):
                if isinstance(child, nn.GroupNorm):
                    setattr(module, key, nn.Identity())
        change = (network(moved, t) - network(x, t)).abs()[0, 0]
        assert change[0, 0] > 1e-6
        assert bool(change[-1, -1] > 0.0) is far


def test_attention_is_softmax_of_scaled_products():
    """x + out(softmax(q^T k / sqrt(c)) v) over pixels, one head; q, k, v in this order."""
    network = unet(multipliers=(1,), attention=(0,)).double()
    layer = network.middle.attention
    for p in layer.parameters():
        nn.init.normal_(p, std=0.4)
    x = images(2, (16, 3, 5)).double()
    h = layer.norm(x).flatten(2)
    weight, bias = layer.qkv.weight[:, :, 0, 0], layer.qkv.bias[:, None]
    q, k, v = (weight @ h + bias).split(16, dim=1)
    mixed = torch.einsum("nqk,nck->ncq", (q.transpose(1, 2) @ k / 4.0).softmax(-1), v)
    out = layer.out.weight[:, :, 0, 0] @ mixed + layer.out.bias[:, None]
    torch.testing.assert_close(layer(x), x + out.reshape(x.shape), rtol=0, atol=1e-12)


def unet_by_hand(w, x, t, groups):
    """Two levels of one block each, attention at the coarse one, from a state dict."""

    def conv(h, key, stride=1):
        weight = w[f"{key}.weight"]
        return F.conv2d(h, weight, w[f"{key}.bias"], stride, weight.shape[-1] // 2)

    def norm(h, key):
        return F.group_norm(h, groups, w[f"{key}.weight"], w[f"{key}.bias"])

    def linear(h, key):
        return h @ w[f"{key}.weight"].T + w[f"{key}.bias"]

    def silu(h):
        return h / (1.0 + torch.exp(-h))

    def block(h, key):
        inner = conv(silu(norm(h, f"{key}.norm1")), f"{key}.conv1")
        inner = inner + linear(silu(time), f"{key}.time")[:, :, None, None]
        inner = conv(silu(norm(inner, f"{key}.norm2")), f"{key}.conv2")
        return inner + (conv(h, f"{key}.skip") if f"{key}.skip.weight" in w else h)

    def attend(h, key):
        q, k, v = conv(norm(h, f"{key}.norm"), f"{key}.qkv").flatten(2).chunk(3, 1)
        share = (torch.einsum("ncq,nck->nqk", q, k) / q.shape[1] ** 0.5).softmax(-1)
        mixed = torch.einsum("nqk,nck->ncq", share, v).reshape(h.shape)
        return h + conv(mixed, f"{key}.out")

    half = w["time.0.weight"].shape[1] // 2
    angles = t[:, None] * 10_000.0 ** (-torch.arange(half, dtype=t.dtype) / half)
    time = linear(torch.cat((angles.cos(), angles.sin()), 1), "time.0")
    time = linear(silu(time), "time.2")

    first = conv(x, "conv_in")
    fine = block(first, "down.0")
    halved = conv(fine, "down.1", stride=2)
    coarse = attend(block(halved, "down.2"), "down.2.attention")
    h = attend(block(coarse, "middle"), "middle.attention")
    h = attend(block(torch.cat((h, coarse), 1), "up.0"), "up.0.attention")
    h = attend(block(torch.cat((h, halved), 1), "up.1"), "up.1.attention")
    h = conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3), "up.2.conv")
    h = block(torch.cat((h, fine), 1), "up.3")
    h = block(torch.cat((h, first), 1), "up.4")
    return conv(silu(norm(h, "norm_out")), "conv_out")


def test_unet_by_hand():
    """Pins the meaning of every tensor of a checkpoint."""
    network = unet(2, 4, width=8, multipliers=(1, 2), attention=(1,), groups=4).double()
    for parameter in network.parameters():
        if parameter.ndim == 1:  # biases, and scales that would otherwise be 1
            parameter.add_(images(1, parameter.shape)[0].double() * 0.3)
    x, t = images(2, (2, 8, 4)).double(), torch.tensor([0.5, 149.85], dtype=torch.float64)
    want = unet_by_hand(network.state_dict(), x, t, 4)
    assert want.std() > 0.1
    torch.testing.assert_close(network(x, t), want, rtol=0, atol=1e-10)


def test_unet_in_float64():
    network = unet(multipliers=(1, 2), attention=(1,))
    x, t = images(2, (1, 8, 8)), torch.tensor([3.0, 700.0])
    single, double = network(x, t), network.double()(x.double(), t.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


def test_embedding_is_cosines_then_sines():
    """cos(t w_j) for j < width / 2, then sin(t w_j); w_j = 10000^(-j / (width / 2))."""
    t = np.array([0.0, 1.0, 149.85, 999.0])
    w = 10_000.0 ** (-np.arange(5) / 5)
    want = np.concatenate([np.cos(np.outer(t, w)), np.sin(np.outer(t, w))], 1)
    got = sinusoidal_embedding(torch.from_numpy(t), 10)
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-11)
    assert got.dtype == torch.float64
    single = sinusoidal_embedding(torch.from_numpy(t).float(), 10)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), want, rtol=0, atol=2e-5)
    whole = sinusoidal_embedding(torch.tensor([0, 1, 150, 999]), 10)
    assert whole.dtype == torch.float32
    np.testing.assert_allclose(
        whole[2].numpy(), np.concatenate([np.cos(150 * w), np.sin(150 * w)]), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 12, "multipliers": (1,), "blocks": 1}, "not a multiple of groups"),
        ({"width": 9, "multipliers": (1,), "blocks": 1, "groups": 3}, "must be even"),
        ({"width": 8, "multipliers": (), "blocks": 1}, "at least 1 item"),
        ({"width": 8, "multipliers": (0,), "blocks": 1}, "greater than or equal to 1"),
        ({"width": 8, "multipliers": (1,), "blocks": 0}, "greater than or equal to 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_odd_unets_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        UNetArgs(**settings)


def test_unet_needs_a_size_that_halves():
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        unet(multipliers=(1, 2, 2))(images(1, (1, 6, 6)), torch.ones(1))


# --- the network of a card ----------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
def test_a_diffusion_card_builds_its_unet(learned):
    card = diffusion_card(
        DDPMSampler(),
        image=ImageSpec(channels=3, height=8, width=8),
        network=UNetArgs(width=8, multipliers=(1, 2), blocks=1, attention=(0,), groups=4),
        learned_variance=learned,
    )
    network = build_network(card)
    assert isinstance(network, UNet)
    out = network(images(2, (3, 8, 8)), torch.ones(2))
    assert out.shape == (2, 6 if learned else 3, 8, 8)
    assert network.norm_out.num_groups == 4


def test_the_other_cards_build_theirs():
    common = {"name": "x", "provenance": PROVENANCE}
    square = ImageSpec(channels=3, height=8, width=8)
    feedforward = FeedforwardCard(image=square, network=AutoencoderArgs(widths=(4, 6)), **common)
    assert build_network(feedforward)(images(2, (3, 8, 8))).shape == (2, 3, 8, 8)
    wanted = {"image": square, "classes": 7, "mean": (0.5,) * 3, "std": (0.2,) * 3, **common}
    for args, kind in (
        (CnnArgs(widths=(4, 6), hidden=5), Cnn),
        (CifarResNetArgs(depth=8), CifarResNet),
    ):
        network = build_network(ClassifierCard(network=args, **wanted))
        assert isinstance(network, kind)
        assert network.eval()(images(2, (3, 8, 8))).shape == (2, 7)


# --- autoencoder and CNN ------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(4,), (4, 6), (4, 6, 5)])
def test_autoencoder_halves_and_doubles(widths):
    network = Autoencoder(3, widths)
    x, small = images(2, (3, 8, 12)), 2 ** (len(widths) - 1)
    assert network.encoder(x).shape == (2, widths[-1], 8 // small, 12 // small)
    assert network(x).shape == x.shape
    ends = (3 * widths[0] * 9 + widths[0]) + (widths[0] * 3 * 9 + 3)
    assert parameters(network) == ends + sum(18 * a * b + a + b for a, b in pairwise(widths))
    assert network(x).min() < 0  # a linear last layer: nothing squashes it


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("widths", [(4,), (4, 6), (4, 6, 5)])
def test_cnn_shapes_and_arithmetic(widths, size):
    network = Cnn((3, *size), widths, 11, 10)
    x = images(2, (3, *size))
    h = x
    for level in range(len(widths)):
        layer = network.features[2 * level]
        h = F.conv2d(h, layer.weight, layer.bias, 2 if level else 1, 1).clamp_min(0.0)
    small = [-(-side // 2 ** (len(widths) - 1)) for side in size]
    assert h.shape == (2, widths[-1], *small)
    h = (h.flatten(1) @ network.hidden.weight.T + network.hidden.bias).clamp_min(0.0)
    want = h @ network.linear.weight.T + network.linear.bias
    assert want.shape == (2, 10)
    torch.testing.assert_close(network(x), want, rtol=0, atol=1e-5)


# --- CIFAR ResNet -------------------------------------------------------------------------------


def resnet_by_hand(w, x, depth):
    """He et al. 2016, section 4.2, in evaluation mode, from a state dict; shortcuts of option A:

    every second pixel, and zero channels on both sides.
    """

    def norm(h, key):
        scale = w[f"{key}.weight"] / torch.sqrt(w[f"{key}.running_var"] + 1e-5)
        shift = w[f"{key}.bias"] - w[f"{key}.running_mean"] * scale
        return h * scale[:, None, None] + shift[:, None, None]

    h = norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1").clamp_min(0.0)
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            key, shrink = f"layer{stage}.{block}", stage > 1 and block == 0
            out = F.conv2d(h, w[f"{key}.conv1.weight"], stride=2 if shrink else 1, padding=1)
            out = norm(out, f"{key}.bn1").clamp_min(0.0)
            out = norm(F.conv2d(out, w[f"{key}.conv2.weight"], padding=1), f"{key}.bn2")
            if shrink:
                h = h[:, :, [*range(0, h.shape[2], 2)]][:, :, :, [*range(0, h.shape[3], 2)]]
                zeros = torch.zeros_like(h[:, : h.shape[1] // 2])
                h = torch.cat((zeros, h, zeros), 1)
            h = (out + h).clamp_min(0.0)
    return h.flatten(2).sum(2) / (h.shape[2] * h.shape[3]) @ w["linear.weight"].T + w["linear.bias"]


def test_cifar_resnet_by_hand():
    network = CifarResNet(3, 20, 10).double().eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    for module in network.modules():  # statistics as after training, not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.3, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                tensor.copy_(torch.from_numpy(rng.uniform(low, high, size=tensor.shape)))
    x = images(3, (3, 32, 32)).double()
    want = resnet_by_hand(network.state_dict(), x, 20)
    assert want.std() > 1e-3
    torch.testing.assert_close(network(x), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (32, 464_154), (56, 853_018)])
def test_cifar_resnet_size_and_names(depth, count):
    with torch.device("meta"):
        network = CifarResNet(3, depth, 10)
    assert parameters(network) == count
    names = set(network.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "linear.bias"} <= names
    assert f"layer3.{(depth - 2) // 6 - 1}.bn2.running_var" in names
    assert not [n for n in names if "shortcut" in n or "downsample" in n]  # option A has no weights


def test_odd_depths_are_refused():
    with pytest.raises(ValidationError, match="not 6n"):
        CifarResNetArgs(depth=21)


def test_published_weights_reach_their_published_accuracy():
    """Loaded by their plain names; on the first 1000 test images of CIFAR-10 as others count it."""
    weights, test_set = (
        DATA / "cifar10_resnet20.safetensors",
        DATA / "cifar10_test_lossless_1178.npz",
    )
    if not (weights.exists() and test_set.exists()):
        pytest.skip("the published ResNet-20 and the CIFAR-10 test images are not here")
    network = CifarResNet(3, 20, 10)
    missing, unexpected = network.load_state_dict(load_file(weights), strict=False)
    assert unexpected == []
    assert all(name.endswith("num_batches_tracked") for name in missing)
    with np.load(test_set) as data:
        first = data["idx"] < 1000
        x, y = data["x"][first], torch.from_numpy(data["y"][first].astype(np.int64))
    assert len(x) == 1000
    x = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255.0
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    with torch.inference_mode():
        logits = torch.cat([network.eval()(part) for part in ((x - mean) / std).split(100)])
    accuracy = float((logits.argmax(1) == y).float().mean())
    assert accuracy == pytest.approx(0.915, abs=0.003)
