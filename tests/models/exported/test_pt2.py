"""Exported programs (.pt2) as purifiers: computed as PyTorch does, and nothing in them is run."""

import json
from dataclasses import replace

import pytest
import torch
from graph_files import (
    CALL,
    CPU,
    IMAGE,
    WEIGHTS,
    Drawing,
    Plain,
    Zoo,
    classifier_card,
    graph_card,
    images,
    load,
    noise,
    read,
    rewritten,
    save_pt2,
    target,
)
from subjects import codes, run

from purify_audit.core.errors import CardError, CheckpointError, PlanError
from purify_audit.core.noise import Noise
from purify_audit.models.containers.zip_checks import check_archive
from purify_audit.models.exported.read import graph_container
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.protocols import is_differentiable


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "plain.pt2"
    return save_pt2(path, Plain(), images(3), card=graph_card())


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "drawing.pt2"
    return save_pt2(path, Drawing(), images(3), card=graph_card(noise="captured"))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    card = graph_card(noise="inputs", noise_inputs={"z": [1, 8, 8]}, clamp=False)
    path = tmp_path_factory.mktemp("graphs") / "zoo.pt2"
    return save_pt2(path, Zoo(), images(3), images(3), rows=(2, 6), card=card)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_graph_gives_what_the_module_gives_and_its_gradient(zoo, n):
    x, purifier = images(n).requires_grad_(), load(zoo)
    z = noise(n).normal(0, (1, 8, 8))
    eager = Zoo()(x, z)
    made = purifier(x, noise(n))
    assert torch.equal(made, eager)
    (g,), (e,) = (torch.autograd.grad(y.square().sum(), x) for y in (made, eager))
    assert torch.equal(g, e)
    assert is_differentiable(purifier)


def test_torch_itself_gives_the_same(zoo):
    x, z = images(4), images(4)
    theirs = torch.export.load(zoo).module()
    assert torch.equal(load(zoo).graph.network(x, z), theirs(x, z))


def test_in_float64_the_whole_graph_is(zoo):
    x, wide = images(4).double().requires_grad_(), Zoo()
    made = load(zoo)(x, noise(4))
    # The module says float32 once; the graph's constants are float64 all the same.
    wide.double()
    z = noise(4).normal(0, (1, 8, 8)).double()
    torch.Tensor.to, to = lambda t, *a: t, torch.Tensor.to
    torch.Tensor.float, narrow = torch.Tensor.double, torch.Tensor.float
    try:
        eager = wide(x, z)
    finally:
        torch.Tensor.to, torch.Tensor.float = to, narrow
    assert made.dtype == torch.float64
    assert torch.allclose(made, eager, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [(1, 64), (2, 5), None])
@pytest.mark.parametrize("n", [1, 3, 11])
def test_any_number_of_rows_goes_through_a_graph_of_some(tmp_path, rows, n):
    path = save_pt2(tmp_path / "some.pt2", Plain(), images(3), rows=rows, card=graph_card())
    with torch.no_grad():
        assert torch.allclose(load(path)(images(n), noise(n)), Plain()(images(n)), atol=1e-7)


def test_the_data_range_and_the_clamp_are_the_cards(plain, tmp_path):
    card = json.dumps(graph_card(data_range=[-1.0, 1.0], clamp=False)).encode()
    purifier = load_purifier(read(plain, card), CPU)
    with torch.no_grad():
        wanted = (Plain()(2 * images(2) - 1) + 1) / 2
        assert torch.allclose(purifier(images(2), noise(2)), wanted)


def test_what_a_graph_draws_is_captured_row_by_row(drawing):
    purifier = load(drawing)
    together, x = purifier(images(3), noise(3)), images(3)
    assert purifier.randomised
    for n in range(3):
        alone = purifier(x[n : n + 1], noise(3)[n : n + 1])
        assert torch.allclose(together[n : n + 1], alone, atol=1e-6)
    assert torch.equal(together, purifier(images(3), noise(3)))
    assert not torch.allclose(together, purifier(images(3), noise(3, seed=4)), atol=1e-2)
    with torch.no_grad():
        drawn = (together - Plain()(x)) / 0.1
    inside = (together > 0.0) & (together < 1.0)
    assert torch.allclose(drawn[inside], noise(3).normal(0, (1, 8, 8))[inside], atol=1e-5)


@pytest.mark.parametrize("rows", [None, (1, 4)])
def test_rows_of_one_address_draw_the_same_in_every_portion(tmp_path, rows):
    card = graph_card(noise="captured", clamp=False)
    purifier = load(save_pt2(tmp_path / "few.pt2", Drawing(), images(3), rows=rows, card=card))
    one = Noise(3, (7,) * 11, (2,) * 11)  # an anchor and its probes
    x = images(1).expand(11, -1, -1, -1)
    made = purifier(x, one)
    assert torch.allclose(made, made[:1].expand_as(made), atol=1e-6)
    assert torch.allclose(purifier(x[:2], one[:2]), made[:2], atol=1e-6)
    mixed = replace(noise(11), images=(7,) * 11, draws=(2, *range(10, 20)))
    assert torch.allclose(purifier(x, mixed)[:1], made[:1], atol=1e-6)
    found = set(codes(run(purifier, measure_anyway=True)))
    assert found - {"PA105"} == (set() if rows else {"PA112"})  # one by one where rows is fixed


def test_a_classifier_is_padded_too(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    path = save_pt2(tmp_path / "c.pt2", network, images(4), rows=None, card=classifier_card())
    classifier = load_classifier(read(path), CPU)
    assert (classifier.classes, classifier.image.shape) == (10, (1, 8, 8))
    assert torch.allclose(classifier(images(5)), network((images(5) - 0.5) / 0.25), atol=1e-6)
    drops = torch.nn.Sequential(torch.nn.Dropout(), network)
    path = save_pt2(tmp_path / "d.pt2", drops, images(4), rows=None, card=classifier_card())
    with pytest.raises(CardError, match=r"draws random numbers \(dropout\); a classifier must not"):
        read(path)


# --- without a card ----------------------------------------------------------------------------


def test_without_a_card_it_is_asked_for_what_the_graph_does_not_say(tmp_path, plain):
    bare = rewritten(plain, tmp_path / "bare.pt2", {"extra/purify_audit.json": None})
    with pytest.raises(PlanError, match=r"no card.*give --assume data_range=LOW,HIGH") as caught:
        read(bare)
    assert "noise" not in str(caught.value)
    assert "image" not in str(caught.value).partition("give")[2]
    found = read(bare, assume={"data_range": "0,1", "evaluations": "5"})
    assert found.card.image.shape == (1, 8, 8)
    assert (found.card.noise, found.card.evaluations, found.card.clamp) == ("none", 5, True)
    said = {a.what: (a.value, a.source) for a in found.recognised.assumptions}
    assert said["data_range"][1] == "given by the user"
    assert said["clamp"] == ("True", "default")
    assert (found.recognised.format, found.recognised.unpickled) == ("torch.export graph", False)


def test_noise_is_never_guessed(tmp_path, zoo):
    bare = rewritten(zoo, tmp_path / "bare.pt2", {"extra/purify_audit.json": None})
    with pytest.raises(PlanError, match=r"data_range=.*; --assume noise=inputs if its inputs"):
        read(bare)
    found = read(bare, assume={"data_range": "0,1", "noise": "inputs", "clamp": "false"})
    assert found.card.noise_inputs == {"z": (1, 8, 8)}
    with pytest.raises(CardError, match=r"takes x: float32 \[n, 1, 8, 8\]; z: .* the images$"):
        read(bare, assume={"data_range": "0,1", "noise": "none"})


def test_what_draws_cannot_be_said_not_to(tmp_path, drawing):
    with pytest.raises(CardError, match=r"draws random numbers \(randn_like\).* is 'none'"):
        read(drawing, json.dumps(graph_card()).encode())
    bare = rewritten(drawing, tmp_path / "bare.pt2", {"extra/purify_audit.json": None})
    assert read(bare, assume={"data_range": "0,1"}).card.noise == "captured"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (graph_card("onnx"), "its card says that it is onnx; it is pt2"),
        (graph_card(image=IMAGE | {"width": 9}), r"\[n, 1, 8, 8\]' for images, .* \[n, 1, 8, 9\]"),
        (classifier_card(), r"for logits, which are float32 \[n, 10\]: another shape"),
        (graph_card(noise="inputs", noise_inputs={"z": [1, 8, 8]}), "by its card it takes .*, z"),
        (graph_card(noise="seed"), "by its card it takes the images, an integer seed"),
        (graph_card(unknown=1), "the card cannot be used: field 'graph.unknown'"),
        ({"spec": 99}, "the card is of version 99"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(plain, card, message):
    with pytest.raises(CardError, match=message):
        read(plain, json.dumps(card).encode())


def test_a_card_of_another_family_is_refused(plain, make_card):
    with pytest.raises(CardError, match="not that of a graph, but of 'transform'"):
        read(plain, make_card("transform").model_dump_json().encode())


def test_a_card_leaves_nothing_to_assume(plain):
    with pytest.raises(CardError, match=r"has a card, which is complete: leave out .* clamp"):
        read(plain, assume={"clamp": "false"})


# --- bad graphs ---------------------------------------------------------------------------------


class _Odd(torch.nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.compute, self.norm = compute, torch.nn.BatchNorm2d(1)

    def forward(self, x):
        return self.compute(self, x)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda m, x: (x, x), "returns 2 values; export a function that returns one image"),
        (lambda m, x: m.norm(x), r"every call changes 'norm.*', .*export the model in eval mode"),
        (lambda m, x: x[:, :, :4], r"\[n, 1, 4, 8\]' for purified images, .* another shape"),
        (lambda m, x: x.double(), "float64 .* for purified images, which are float32"),
        (lambda m, x: x.mean(), "for purified images, .*: another shape"),
    ],
)
def test_graphs_that_are_no_purifiers_are_refused(tmp_path, compute, message):
    path = save_pt2(tmp_path / "odd.pt2", _Odd(compute), images(3), card=graph_card())
    with pytest.raises((CardError, CheckpointError), match=message):
        load(path)


def test_an_image_of_another_type_is_refused(tmp_path):
    module = _Odd(lambda m, x: x.float() / 255)
    whole = (255 * images(3)).to(torch.uint8)
    path = save_pt2(tmp_path / "bytes.pt2", module, whole, card=graph_card())
    with pytest.raises(CardError, match=r"'x: uint8 \[n, 1, 8, 8\]' for images, which are float32"):
        read(path)


def _schema(program):
    program["schema_version"] = {"major": 9, "minor": 1}


def _no_nodes(program):
    del program["graph_module"]["graph"]["nodes"]


def _short(index):
    index["config"]["conv.weight"]["tensor_meta"]["sizes"][0] = {"as_int": 400}


def _negative(index):
    index["config"]["conv.weight"]["tensor_meta"]["strides"][0] = {"as_int": -9}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({CALL: b"{"}, "'models/model.json' is not JSON: damaged"),
        ({CALL: None}, r"holds no graph \(models/model.json\)"),
        ({CALL: _schema}, r"layout 9.1 \(PyTorch .*\), and this purify-audit reads layout 8"),
        ({CALL: _no_nodes}, r"does not follow the schema of torch.export \(KeyError: 'nodes'\)"),
        ({CALL: b"[]"}, "does not follow the schema of torch.export"),
        ({WEIGHTS: _short}, "36 bytes are too few for shape .400, 1, 3, 3.: truncated"),
        ({WEIGHTS: _negative}, "not laid out by strides"),
        ({"byteorder": b"big"}, "big-endian"),
        ({"serialized_exported_program.json": b"{}"}, "PyTorch before 2.8"),
        ({"data/aotinductor/model/a.so": b"\x7fELF"}, "compiled by AOTInductor, which are machine"),
        ({CALL: target("torch.ops.aten.clomp.default")}, "'torch.ops.aten.clomp.default', which"),
        ({CALL: target("torch.ops.aten.clamp")}, "is no arithmetic operator of PyTorch"),
        (
            {CALL: target("torch.ops.aten.sum.dim_IntList")},
            "operator torch.ops.aten.sum.dim_In.* c",
        ),
    ],
)
def test_damaged_and_foreign_archives_are_refused(plain, tmp_path, changes, message):
    path = rewritten(plain, tmp_path / "bad.pt2", changes)
    with pytest.raises(CheckpointError, match=message):
        load(path)(images(2), noise(2))


def test_a_truncated_file_is_refused(plain, tmp_path):
    (tmp_path / "cut.pt2").write_bytes(plain.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is a zip archive whose directory is not at its end"):
        read(tmp_path / "cut.pt2")
    (tmp_path / "text.pt2").write_bytes(b"hello, world")
    assert graph_container(tmp_path / "text.pt2") is None
    with pytest.raises(
        CheckpointError, match=r"is not a graph of torch.export, ONNX or TorchScript"
    ):
        read(tmp_path / "text.pt2")


def test_damaged_weights_are_refused(plain, tmp_path):
    data = bytearray(plain.read_bytes())
    data[check_archive(plain).entries["data/weights/weight_0"].offset] ^= 0xFF
    (tmp_path / "flipped.pt2").write_bytes(data)
    with pytest.raises(CheckpointError, match="the weights cannot be read: Bad CRC-32"):
        load(tmp_path / "flipped.pt2")
