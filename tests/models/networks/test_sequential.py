"""Chains of layers: names of tensors, arithmetic, and cards that are refused."""

import copy
import json
import re

import pytest
import torch
from effort import calls
from network_checks import check_double, check_gradients, check_rows_apart, images, trained
from torch.nn import functional as F

from purify_audit.core.errors import CardError, CheckpointError
from purify_audit.models.checkpoint import read_checkpoint, save_checkpoint
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.networks import build_network
from purify_audit.models.networks.sequential import Sequential, build_sequential
from purify_audit.spec.architectures import SequentialArgs
from purify_audit.spec.card import parse_card

CPU = torch.device("cpu")


def conv(name="conv1", inputs=3, outputs=4, kernel=3, **sizes):
    layer = {"kind": "conv", "name": name, "inputs": inputs, "outputs": outputs, "kernel": kernel}
    return layer | sizes


def chain(*layers):
    return SequentialArgs.model_validate_json(json.dumps({"layers": layers}), strict=True)


# Every kind of layer, each with sizes that are not the default where it has any.
EVERY_KIND = (
    conv("stem.0", 2, 6, kernel=3, stride=2, padding=1),
    {"kind": "batch-norm", "name": "stem.1", "inputs": 6},
    {"kind": "relu"},
    {"kind": "upsample", "stride": 3},
    conv("stem.mix.a-b", 6, 4, kernel=1, bias=False),
    {"kind": "silu"},
    {"kind": "max-pool", "kernel": 3, "stride": 2, "padding": 1},
    conv("up", 4, 3, kernel=4, stride=2, padding=1) | {"kind": "conv-transpose"},
    {"kind": "tanh"},
    {"kind": "average-pool", "kernel": 3, "stride": 2, "padding": 1},
    {"kind": "flatten"},
    {"kind": "linear", "name": "0", "inputs": 3 * 8 * 8, "outputs": 5},
    {"kind": "sigmoid"},
    {"kind": "linear", "name": "1", "inputs": 5, "outputs": 4, "bias": False},
)


def test_every_layer_is_what_it_says():
    """Against the same chain written out with functions, on 9 x 9 pixels."""
    network = trained(build_sequential(chain(*EVERY_KIND), (2, 9, 9), (4,)))
    w, x = network.state_dict(), images(3, (2, 9, 9))
    h = F.conv2d(x, w["stem.0.weight"], w["stem.0.bias"], stride=2, padding=1)
    statistics = w["stem.1.running_mean"], w["stem.1.running_var"]
    h = F.relu(F.batch_norm(h, *statistics, w["stem.1.weight"], w["stem.1.bias"]))
    h = h.repeat_interleave(3, 2).repeat_interleave(3, 3)
    h = torch.einsum("oc,nchw->nohw", w["stem.mix.a-b.weight"][:, :, 0, 0], h)
    h = h * torch.sigmoid(h)
    h = F.max_pool2d(h, 3, 2, 1)
    h = torch.tanh(F.conv_transpose2d(h, w["up.weight"], w["up.bias"], stride=2, padding=1))
    h = F.pad(h, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).mean((-1, -2))
    h = torch.sigmoid(h.reshape(3, -1) @ w["0.weight"].T + w["0.bias"])
    h = h @ w["1.weight"].T
    with torch.no_grad():
        torch.testing.assert_close(network(x), h, rtol=1e-5, atol=1e-5)


def test_tensors_have_the_names_of_their_layers():
    network = Sequential(chain(*EVERY_KIND))
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted = {"stem.0.weight", "stem.0.bias", "stem.mix.a-b.weight", "up.weight", "up.bias"}
    wanted |= {f"stem.1.{name}" for name in norm} | {"0.weight", "0.bias", "1.weight"}
    assert set(network.state_dict()) == wanted
    args = chain(*EVERY_KIND)
    assert sum(layer.numbers for layer in args.layers) == sum(
        tensor.numel() for tensor in network.state_dict().values() if tensor.is_floating_point()
    )


def test_loaded_weights_are_the_ones_used():
    """Also in a copy: the layers that run are those that hold the tensors."""
    network = trained(Sequential(chain(conv("a.b", 1, 1, 1), {"kind": "relu"})))
    copied = copy.deepcopy(network)
    copied.load_state_dict(
        {"a.b.weight": torch.full((1, 1, 1, 1), 2.0), "a.b.bias": torch.ones(1)}, assign=True
    )
    x = images(1, (1, 3, 3))
    with torch.no_grad():
        torch.testing.assert_close(copied(x), 2.0 * x + 1.0)
        assert not torch.allclose(network(x), copied(x))


SMOOTH = (
    conv("a", 2, 4, padding=1),
    {"kind": "silu"},
    conv("b", 4, 3, kernel=4, stride=2, padding=1) | {"kind": "conv-transpose"},
    {"kind": "tanh"},
    {"kind": "average-pool", "kernel": 2, "stride": 2},
)


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (1, 9)])
def test_rows_gradients_and_precision(size):
    network = trained(build_sequential(chain(*SMOOTH), (2, *size), (3, *size)))
    x = images(3, (2, *size))
    check_rows_apart(network, x)
    check_gradients(network, network, x)
    check_double(network, lambda net: net, x)


# --- cards that are refused ---------------------------------------------------------------------


def card_text(layers, family="feedforward"):
    card = {
        "family": family,
        "name": "chain",
        "image": {"channels": 3, "height": 8, "width": 8},
        "provenance": {"data": "none", "command": "none", "licence": "none"},
        "network": {"arch": "sequential", "layers": layers},
    }
    if family == "classifier":
        card |= {"classes": 10, "mean": [0.0] * 3, "std": [1.0] * 3}
    return json.dumps(card)


def fault(*layers):
    with pytest.raises(CardError) as raised:
        parse_card(card_text(layers), "card.json")
    message = str(raised.value)
    assert message.startswith("card.json: the card cannot be used: field 'feedforward.network")
    assert message.isprintable()
    assert len(message) < 600
    return message


def without(layer, name):
    return {key: value for key, value in layer.items() if key != name}


LINEAR = {"kind": "linear", "name": "fc", "inputs": 3, "outputs": 3}
POOL = {"kind": "max-pool", "kernel": 2, "stride": 2}


@pytest.mark.parametrize(
    ("layer", "needed"),
    [
        (conv(), ("name", "inputs", "outputs", "kernel")),
        (conv() | {"kind": "conv-transpose"}, ("name", "inputs", "outputs", "kernel")),
        (LINEAR, ("name", "inputs", "outputs")),
        ({"kind": "batch-norm", "name": "bn", "inputs": 3}, ("name", "inputs")),
        (POOL, ("kernel", "stride")),
        (POOL | {"kind": "average-pool"}, ("kernel", "stride")),
        ({"kind": "upsample", "stride": 2}, ("stride",)),
    ],
)
def test_needed_sizes(layer, needed):
    parse_card(card_text([layer]), "card.json")
    for name in needed:
        assert f"a {layer['kind']} layer needs {name}" in fault(without(layer, name))
        if name in ("name", "inputs", "outputs"):
            assert f"a {layer['kind']} layer needs {name}" in fault(layer | {name: None})


def test_all_that_is_missing_is_named():
    assert "a conv layer needs inputs and kernel and name and outputs" in fault({"kind": "conv"})


@pytest.mark.parametrize(
    ("layer", "useless"),
    [
        (LINEAR, {"kernel": 3, "stride": 2, "padding": 1}),
        (
            {"kind": "batch-norm", "name": "bn", "inputs": 3},
            {"outputs": 3, "kernel": 3, "stride": 2, "padding": 1, "bias": False},
        ),
        (POOL, {"name": "pool", "inputs": 3, "outputs": 3, "bias": False}),
        ({"kind": "upsample", "stride": 2}, {"name": "up", "kernel": 2, "padding": 1}),
        *(
            ({"kind": kind}, {"name": "act", "inputs": 3, "kernel": 2, "stride": 2, "bias": False})
            for kind in ("relu", "silu", "sigmoid", "tanh", "flatten")
        ),
    ],
)
def test_useless_sizes(layer, useless):
    for name, value in useless.items():
        assert f"a {layer['kind']} layer has no use for {name}" in fault(layer | {name: value})


def test_a_card_written_out_in_full_is_read_again():
    """A stored card names every field, defaults included: they are not useless sizes."""
    card = parse_card(card_text(EVERY_KIND), "card.json")
    assert '"kernel":1' in card.model_dump_json()
    assert parse_card(card.model_dump_json(), "card.json") == card


@pytest.mark.parametrize(
    "name", ["", ".", ".a", "a.", "a..b", "a b", "a\n", "\u2028", "größe", "a/b", "n" * 201]
)
def test_names_that_are_none(name):
    fault(conv(name))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "b", "a"), "two layers are named 'a'"),
        (("a", "a.b"), "layer 'a.b' would be a part of layer 'a'"),
        (("a.b.weight", "a"), "layer 'a.b.weight' would be a part of layer 'a'"),
        (("a.weight", "x", "a"), "layer 'a.weight' would be a part of layer 'a'"),
    ],
)
def test_names_that_clash(names, message):
    assert message in fault(*(conv(name, 3, 3) for name in names))


def test_names_that_only_look_alike():
    names = [layer.name for layer in chain(*map(conv, ("a.b", "a.c", "ab", "A", "a.bc.d"))).layers]
    assert names == ["a.b", "a.c", "ab", "A", "a.bc.d"]


@pytest.mark.parametrize("kind", ["max-pool", "average-pool"])
def test_padding_of_a_pool(kind):
    pool = {"kind": kind, "kernel": 3, "stride": 1}
    assert "padding 2 is more than half of kernel 3" in fault(pool | {"padding": 2})
    parse_card(card_text([pool | {"padding": 1}]), "card.json")


def test_a_chain_without_layers():
    assert "at least 1 item" in fault()


def test_kinds_that_are_none():
    assert "'conv', 'conv-transpose', 'linear'" in fault({"kind": "gelu"})


def test_more_weights_than_any_chain_has():
    big = conv("a", 4096, 4096, kernel=8)  # 2**30 weights and their biases
    assert "its layers hold 1,073,745,920 numbers, more than 1,073,741,824" in fault(big)
    parse_card(card_text([big | {"bias": False}]), "card.json")
    many = [conv(f"a{n}", 1024, 1024, kernel=8) for n in range(17)]
    assert "its layers hold 1,140,868,096 numbers" in fault(*many)
    assert "less than or equal to 1000000" in fault(LINEAR | {"inputs": 10**6 + 1})
    assert "at most 1000 items" in fault(*[{"kind": "relu"}] * 1001)


# --- chains that do not fit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([conv(inputs=4)], "layer 0 (conv conv1) takes 4 inputs and is given [3, 8, 8]"),
        (
            [{"kind": "relu"}, conv(inputs=4) | {"kind": "conv-transpose"}],
            "layer 1 (conv-transpose conv1) takes 4 inputs and is given [3, 8, 8]",
        ),
        (
            [{"kind": "batch-norm", "name": "bn", "inputs": 1}],
            "layer 0 (batch-norm bn) takes 1 inputs and is given [3, 8, 8]",
        ),
        (
            [{"kind": "flatten"}, LINEAR],
            "layer 1 (linear fc) takes 3 inputs and is given [192]",
        ),
        ([LINEAR], "layer 0 (linear fc) is given [3, 8, 8]; flatten it first"),
        ([conv(kernel=9)], "layer 0 (conv conv1) cannot take [3, 8, 8]: "),
        ([POOL | {"kernel": 9}], "layer 0 (max-pool) cannot take [3, 8, 8]: "),
        ([{"kind": "flatten"}, POOL], "layer 1 (max-pool) cannot take [192]: "),
        ([{"kind": "flatten"}, {"kind": "upsample", "stride": 2}], "layer 1 (upsample) cannot"),
        ([{"kind": "flatten"}, conv(inputs=192)], "layer 1 (conv conv1) cannot take [192]: "),
        (
            [conv(kernel=1, padding=64) | {"kind": "conv-transpose"}],
            "layer 0 (conv-transpose conv1) cannot take [3, 8, 8]: ",
        ),
        ([conv(padding=1)], "its layers turn [3, 8, 8] into [4, 8, 8], not [3, 8, 8]"),
        ([conv(outputs=3)], "its layers turn [3, 8, 8] into [3, 6, 6], not [3, 8, 8]"),
        ([{"kind": "flatten"}], "its layers turn [3, 8, 8] into [192], not [3, 8, 8]"),
    ],
)
def test_chains_that_do_not_fit(layers, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        build_network(parse_card(card_text(layers), "card.json"))
    assert "\n" not in str(raised.value)


def test_a_classifier_gives_its_classes():
    layers = [{"kind": "flatten"}, LINEAR | {"inputs": 192, "outputs": 9}]
    with pytest.raises(ValueError, match=re.escape("into [9], not [10]")):
        build_network(parse_card(card_text(layers, "classifier"), "card.json"))


def test_one_colour_at_a_time():
    card = json.loads(card_text([conv(inputs=1, outputs=1, padding=1)])) | {"per_channel": True}
    network = build_network(parse_card(json.dumps(card), "card.json"))
    assert network(images(2, (1, 8, 8))).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("name", ["forward", "a.forward", "type.a", "training", "state_dict.x.y"])
def test_names_that_pytorch_keeps(name):
    with pytest.raises(ValueError, match=f"layer name '{name}' has a part that PyTorch keeps"):
        Sequential(chain(conv(name)))


def test_an_explosion_of_features_is_refused_before_it_happens():
    """64 times larger, again and again: told from shapes alone."""
    layers = [{"kind": "upsample", "stride": 64}] * 1000
    card = parse_card(card_text(layers), "card.json")

    def build():
        with pytest.raises(ValueError, match=r"layer 1 \(upsample\) makes \[3, 32768, 32768\] of"):
            build_network(card)

    assert calls(build)[1] < 100_000


def test_the_cost_of_a_chain_grows_with_its_length():
    def build(length):
        layers = [conv(f"a{n}", 3, 3, kernel=3, padding=1) for n in range(length)]
        with torch.device("meta"):
            build_network(parse_card(card_text(layers), "card.json"))

    assert calls(lambda: build(1000))[1] < 12 * calls(lambda: build(100))[1]


# --- from a file --------------------------------------------------------------------------------


def test_a_stored_chain_is_loaded_strictly(tmp_path):
    path = tmp_path / "chain.safetensors"
    card = parse_card(card_text([conv("body.0", 3, 3, padding=1)]), "card.json")
    weights = trained(build_network(card)).state_dict()
    save_checkpoint(path, card, weights)
    purifier = load_purifier(read_checkpoint(path), CPU)
    x = images(2, (3, 8, 8))
    expected = F.conv2d(x, weights["body.0.weight"], weights["body.0.bias"], padding=1)
    torch.testing.assert_close(purifier.network(x), expected)
    save_checkpoint(path, card, {**weights, "body.1.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"1 tensors are not part .*: body\.1\.weight"):
        load_purifier(read_checkpoint(path), CPU)


def test_a_stored_chain_that_does_not_fit_is_told_with_its_file(tmp_path):
    path = tmp_path / "chain.safetensors"
    card = parse_card(card_text([LINEAR], "classifier"), "card.json")
    save_checkpoint(path, card, {"fc.weight": torch.ones(3, 3), "fc.bias": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"chain\.safetensors: the card's network: layer 0"):
        load_classifier(read_checkpoint(path), CPU)
