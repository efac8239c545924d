"""WideResNets in both layouts, against logits of their authors' code."""

import json
from pathlib import Path

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
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from purify_audit.models.checkpoint import read_checkpoint, save_checkpoint
from purify_audit.models.load import load_classifier
from purify_audit.models.networks.wideresnet import WideResNet
from purify_audit.spec.architectures import WideResNetArgs
from purify_audit.spec.card import ClassifierCard, ImageSpec, Provenance

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
FILES = {"classic": "wideresnet_16_2", "deepmind": "dm_wideresnet_16_2"}
LAYOUTS = tuple(FILES)


def on_meta(depth, width, layout, channels=3, classes=10):
    with torch.device("meta"):
        args = WideResNetArgs(depth=depth, width=width, layout=layout)
        return WideResNet(channels, classes, args)


def small(layout, width=1):
    network = WideResNet(2, 5, WideResNetArgs(depth=10, width=width, layout=layout))
    return trained(network)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_of_the_authors_code(layout, tmp_path):
    """Through a card: its mean and std do what the deepmind code does inside the network."""
    path = GOLDEN / f"{FILES[layout]}.safetensors"
    if not path.exists():
        pytest.skip("the golden vectors are not here")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["golden"])
    card = ClassifierCard(
        name="golden",
        image=ImageSpec(channels=3, height=32, width=32),
        provenance=Provenance(data="none", command="none", licence="none"),
        network=WideResNetArgs(depth=16, width=2, layout=layout),
        classes=10,
        mean=tuple(facts.get("mean", (0.0,) * 3)),
        std=tuple(facts.get("std", (1.0,) * 3)),
    )
    stored = tmp_path / "golden.safetensors"
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    save_checkpoint(stored, card, weights)
    classifier = load_classifier(read_checkpoint(stored), torch.device("cpu"))
    logits = classifier(tensors["x"])
    assert logits.std() > 0.01
    torch.testing.assert_close(logits, tensors["logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("depth", "width", "count"), [(28, 10, 36_479_194), (70, 16, 266_796_506), (34, 10, 46_160_474)]
)
def test_published_sizes(layout, depth, width, count):
    network = on_meta(depth, width, layout)
    assert parameters(network) == count
    names = network.state_dict().keys()
    blocks = (depth - 4) // 6
    last = {
        "classic": f"block3.layer.{blocks - 1}.conv2.weight",
        "deepmind": f"layer.2.block.{blocks - 1}.conv_1.weight",
    }
    assert last[layout] in names
    shortcuts = [name for name in names if "shortcut" in name.lower()]
    assert len(shortcuts) == 3


def test_names_of_the_layouts():
    """One block in each stage, written out."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    classic = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{part}" for part in norm)}
    deepmind = {"init_conv.weight", "logits.weight", "logits.bias"}
    deepmind |= {f"batchnorm.{part}" for part in norm}
    for stage in range(3):
        here, there = f"block{stage + 1}.layer.0", f"layer.{stage}.block.0"
        classic |= {f"{here}.{part}.weight" for part in ("conv1", "conv2", "convShortcut")}
        classic |= {f"{here}.bn{i}.{part}" for i in (1, 2) for part in norm}
        deepmind |= {f"{there}.{part}.weight" for part in ("conv_0", "conv_1", "shortcut")}
        deepmind |= {f"{there}.batchnorm_{i}.{part}" for i in (0, 1) for part in norm}
    assert set(on_meta(10, 2, "classic").state_dict()) == classic
    assert set(on_meta(10, 2, "deepmind").state_dict()) == deepmind


def test_no_shortcut_where_the_width_stays():
    assert "block1.layer.0.convShortcut.weight" not in on_meta(10, 1, "classic").state_dict()
    assert "layer.0.block.0.shortcut.weight" not in on_meta(10, 1, "deepmind").state_dict()


@pytest.mark.parametrize(
    ("layout", "size", "rows"),
    [
        ("classic", 8, [0, 2, 4, 6]),
        ("classic", 7, [0, 2, 4, 6]),
        ("deepmind", 8, [1, 3, 5, 7]),
        ("deepmind", 7, [0, 2, 4, 6]),
    ],
)
def test_where_strided_convolutions_look(layout, size, rows):
    """A kernel that is 1 in the middle picks the pixels that the strided grid is centred on.

    Padding on every side centres it on even pixels; SAME on odd ones where the size is even.
    """
    block = WideResNet(2, 5, WideResNetArgs(depth=10, width=1, layout=layout)).get_submodule(
        {"classic": "block2.layer.0", "deepmind": "layer.1.block.0"}[layout]
    )
    first, second, shortcut = (m for m in block.children() if isinstance(m, nn.Conv2d))
    nn.init.zeros_(shortcut.weight)
    for conv in (first, second):
        nn.init.zeros_(conv.weight)
        with torch.no_grad():
            conv.weight[0, 0, 1, 1] = 1.0
    x = images(1, (16, size, size)) + 30.0  # where SiLU is the identity
    with torch.no_grad():
        picked = block.eval()(x)[0, 0]
    torch.testing.assert_close(picked, x[0, 0, rows][:, rows], rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (5, 7), (1, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_gradients_and_precision(layout, size):
    network, x = small(layout), images(3, (2, *size))
    assert network(x).shape == (3, 5)
    check_rows_apart(network, x)
    check_gradients(network, network, x)
    check_double(network, lambda net: net, x)


def test_depths_that_are_none():
    with pytest.raises(ValidationError, match="depth 17 is not 6n"):
        WideResNetArgs(depth=17, width=2, layout="classic")
