"""DnCNN, FFDNet and DRUNet: published names and sizes, and arithmetic against functions.

No published FFDNet or DRUNet is at hand: they are written out here from their papers and from the
names of their tensors. The published DnCNN runs in test_examples.py.
"""

import pytest
import torch
from network_checks import (
    check_double,
    check_gradients,
    check_rows_apart,
    images,
    parameters,
    trained,
)
from torch.nn import functional as F

from purify_audit.models.networks.restoration import DnCNN, DRUNet, FFDNet
from purify_audit.spec.architectures import DnCNNArgs, DRUNetArgs, FFDNetArgs

SIZES = [(8, 8), (7, 5), (1, 1), (9, 16)]


def dncnn(channels=2, width=6, depth=4, batch_norm=False):
    return trained(DnCNN(channels, DnCNNArgs(width=width, depth=depth, batch_norm=batch_norm)))


def ffdnet(channels=2, width=6, depth=4):
    return trained(FFDNet(channels, FFDNetArgs(width=width, depth=depth)))


def drunet(channels=2, widths=(4, 6, 8), blocks=2):
    return trained(DRUNet(channels, DRUNetArgs(widths=widths, blocks=blocks)))


def repeated(x, unit):
    """The last row and column again, until there is a multiple of `unit`; by index."""
    rows, columns = (
        torch.arange(-(-size // unit) * unit).clamp(max=size - 1) for size in x.shape[2:]
    )
    return x[:, :, rows][:, :, :, columns]


# --- DnCNN --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_dncnn_takes_away_what_it_predicts(size):
    network, x = dncnn(), images(2, (2, *size))
    w, h = network.state_dict(), x
    for index in (0, 2, 4, 6):
        h = F.conv2d(h, w[f"model.{index}.weight"], w[f"model.{index}.bias"], padding=1)
        h = h.clamp(min=0.0) if index < 6 else h
    with torch.no_grad():
        torch.testing.assert_close(network(x), x - h, rtol=0, atol=1e-5)


def test_dncnn_with_batch_norm():
    """(x − mean) / sqrt(var + 1e-4) · weight + bias between each inner convolution and its ReLU."""
    network, x = dncnn(batch_norm=True), images(2, (2, 6, 6))
    small = network.state_dict()["model.3.running_var"].fill_(1e-4)  # where the 1e-4 matters
    w, h = network.state_dict(), x
    assert torch.equal(w["model.3.running_var"], small)
    h = F.relu(F.conv2d(h, w["model.0.weight"], w["model.0.bias"], padding=1))
    for index in (2, 5):
        h = F.conv2d(h, w[f"model.{index}.weight"], w[f"model.{index}.bias"], padding=1)
        norm = {
            name: w[f"model.{index + 1}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        }
        h = (h - norm["running_mean"]) / torch.sqrt(norm["running_var"] + 1e-4)
        h = F.relu(h * norm["weight"] + norm["bias"])
    h = F.conv2d(h, w["model.8.weight"], w["model.8.bias"], padding=1)
    with torch.no_grad():
        torch.testing.assert_close(network(x), x - h, rtol=1e-5, atol=1e-3)


def test_dncnn_of_two_layers():
    assert set(dncnn(depth=2).state_dict()) == {
        f"model.{index}.{kind}" for index in (0, 2) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("channels", "args", "count"),
    [
        (1, DnCNNArgs(), 555_137),
        (3, DnCNNArgs(depth=20), 668_227),
        (1, DnCNNArgs(batch_norm=True), 555_137 + 15 * 2 * 64),
    ],
)
def test_published_dncnn(channels, args, count):
    with torch.device("meta"):
        network = DnCNN(channels, args)
    assert parameters(network) == count
    last = 2 + (args.depth - 2) * (3 if args.batch_norm else 2)
    assert network.state_dict()[f"model.{last}.weight"].shape == (channels, 64, 3, 3)


# --- FFDNet -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_ffdnet_works_on_quarters(size):
    """Channel 4 c + 2 i + j of the features is the quarter of rows i and columns j of colour c."""
    network, x, level = ffdnet(), images(2, (2, *size)), 0.3
    w, whole = network.state_dict(), repeated(x, 2)
    quarters = [whole[:, c, i::2, j::2] for c in (0, 1) for i in (0, 1) for j in (0, 1)]
    h = torch.stack([*quarters, torch.full_like(quarters[0], level)], 1)
    for index in (0, 2, 4, 6):
        h = F.conv2d(h, w[f"model.{index}.weight"], w[f"model.{index}.bias"], padding=1)
        h = h.clamp(min=0.0) if index < 6 else h
    wanted = torch.empty_like(whole)
    for n, (c, i, j) in enumerate((c, i, j) for c in (0, 1) for i in (0, 1) for j in (0, 1)):
        wanted[:, c, i::2, j::2] = h[:, n]
    with torch.no_grad():
        torch.testing.assert_close(
            network(x, level), wanted[:, :, : size[0], : size[1]], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(
    ("channels", "args", "count"),
    [
        (1, FFDNetArgs(width=64, depth=15), 485_316),
        (3, FFDNetArgs(width=96, depth=12), 852_108),
    ],
)
def test_published_ffdnet(channels, args, count):
    with torch.device("meta"):
        network = FFDNet(channels, args)
    state = network.state_dict()
    assert parameters(network) == count
    assert state["model.0.weight"].shape == (args.width, 4 * channels + 1, 3, 3)
    assert state[f"model.{2 * args.depth - 2}.weight"].shape == (4 * channels, args.width, 3, 3)


# --- DRUNet -------------------------------------------------------------------------------------


def written_out_drunet(w, x, level, levels, blocks):
    def block(h, name):
        inner = F.relu(F.conv2d(h, w[f"{name}.res.0.weight"], padding=1))
        return h + F.conv2d(inner, w[f"{name}.res.2.weight"], padding=1)

    h = repeated(x, 2 ** (levels - 1))
    h = torch.cat((h, torch.full_like(h[:, :1], level)), 1)
    skips = [F.conv2d(h, w["m_head.weight"], padding=1)]
    for number in range(1, levels):
        h = skips[-1]
        for i in range(blocks):
            h = block(h, f"m_down{number}.{i}")
        skips.append(F.conv2d(h, w[f"m_down{number}.{blocks}.weight"], stride=2))
    h = skips[-1]
    for i in range(blocks):
        h = block(h, f"m_body.{i}")
    for number in reversed(range(1, levels)):
        h = F.conv_transpose2d(h + skips[number], w[f"m_up{number}.0.weight"], stride=2)
        for i in range(1, blocks + 1):
            h = block(h, f"m_up{number}.{i}")
    h = F.conv2d(h + skips[0], w["m_tail.weight"], padding=1)
    return h[:, :, : x.shape[2], : x.shape[3]]


@pytest.mark.parametrize("size", SIZES)
def test_drunet_is_its_paper_s(size):
    network, x = drunet(), images(2, (2, *size))
    wanted = written_out_drunet(network.state_dict(), x, 0.3, 3, 2)
    with torch.no_grad():
        torch.testing.assert_close(network(x, 0.3), wanted, rtol=1e-5, atol=1e-4)


def test_drunet_scales():
    """Without biases the output for twice the image and twice the level is twice the output."""
    network, x = drunet(), images(1, (2, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(network(2 * x, 0.5), 2 * network(x, 0.25), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "count"), [(1, 32_638_656), (3, 32_640_960)])
def test_published_drunet(channels, count):
    with torch.device("meta"):
        network = DRUNet(channels, DRUNetArgs())
    state = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert parameters(network) == count
    assert {name.split(".")[0] for name in state} == {
        *("m_head", "m_down1", "m_down2", "m_down3", "m_body"),
        *("m_up3", "m_up2", "m_up1", "m_tail"),
    }
    assert not [name for name in state if name.endswith("bias")]
    assert state["m_head.weight"] == (64, channels + 1, 3, 3)
    assert state["m_down1.4.weight"] == (128, 64, 2, 2)
    assert state["m_body.3.res.2.weight"] == (512, 512, 3, 3)
    assert state["m_up3.0.weight"] == (512, 256, 2, 2)
    assert state["m_up1.4.res.0.weight"] == (64, 64, 3, 3)
    assert state["m_tail.weight"] == (channels, 64, 3, 3)


# --- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ffdnet, drunet])
def test_one_level_for_all_or_one_for_each(make):
    network, x = make(), images(3, (2, 6, 6))
    each = torch.tensor([0.1, 0.5, 0.1]).reshape(3, 1, 1, 1)
    with torch.no_grad():
        low, high = network(x, 0.1), network(x, 0.5)
        assert not torch.allclose(low, high)
        mixed = network(x, each)
        torch.testing.assert_close(mixed, torch.stack((low[0], high[1], low[2])))
        assert torch.equal(network(x, torch.tensor(0.5)), high)
        assert torch.equal(network(x, torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)), high)


def image_run(network):
    return network if isinstance(network, DnCNN) else lambda x: network(x, 0.2)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 3)])
@pytest.mark.parametrize("make", [dncnn, lambda: dncnn(batch_norm=True), ffdnet, drunet])
def test_rows_gradients_and_precision(make, size):
    network = make()
    x, run = images(3, (2, *size)), image_run(network)
    assert run(x).shape == x.shape
    check_rows_apart(run, x)
    check_gradients(network, run, x)
    check_double(network, image_run, x)


@pytest.mark.parametrize("make", [ffdnet, drunet])
def test_a_gradient_reaches_the_level(make):
    level = torch.full((2, 1, 1, 1), 0.2, requires_grad=True)
    make()(images(2, (2, 5, 5)), level).sum().backward()
    assert level.grad.abs().min() > 0
