"""ONNX graphs that are refused: random, custom, damaged, or with weights outside their folder."""

import sys

import numpy as np
import pytest
import torch
from graph_files import graph_card, images, load, noise, read
from onnx import TensorProto, helper
from onnx.helper import make_node
from onnx_files import ROWS, apart, constant, halved, save_onnx, value

from purify_audit.core.errors import CardError, CheckpointError
from purify_audit.models.exported.read import graph_container

NONE = graph_card("onnx")


@pytest.fixture
def saved(tmp_path):
    """Nodes and more -> a purifier's file; without nodes, x / 2 + 1/4."""

    def save(nodes=None, stored=(), card=NONE, **changes):
        if nodes is None:
            nodes, stored = halved()
        return save_onnx(tmp_path / "graph.onnx", nodes, stored=stored, card=card, **changes)

    return save


_RANDOM = [
    make_node("RandomNormalLike", ["x"], ["y"], name="here"),
    make_node("RandomNormal", [], ["y"], name="here", shape=[1, 1, 8, 8]),
    make_node("RandomUniformLike", ["x"], ["y"], name="here"),
    make_node("RandomUniform", [], ["y"], name="here", shape=[1, 1, 8, 8], seed=1.0),
    make_node("Bernoulli", ["x"], ["y"], name="here"),
    make_node("Multinomial", ["x"], ["y"], name="here"),
    make_node("Dropout", ["x", "", "on"], ["y"], name="here"),
]


@pytest.mark.parametrize("node", _RANDOM, ids=lambda node: node.op_type)
def test_random_operators_are_refused_by_name(saved, node):
    with pytest.raises(
        CheckpointError, match=rf"cannot be aligned: operator {node.op_type} \(node 'here'\)"
    ):
        read(saved([node], [constant("on", True, bool)]))


def test_random_operators_within_others_are_found(saved):
    random = _RANDOM[0]
    inner = helper.make_graph([random], "inner", [], [value("y")])
    branch = make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    with pytest.raises(CheckpointError, match="operator RandomNormalLike"):
        read(saved([branch], [constant("c", True, bool)]))
    function = helper.make_function(
        "own", "f", ["x"], ["y"], [random], [helper.make_opsetid("", 17)]
    )
    node = make_node("f", ["x"], ["y"], domain="own")
    with pytest.raises(CheckpointError, match="operator RandomNormalLike"):
        read(saved([node], functions=[function], domains={"own": 1}))


def test_dropout_that_is_off_is_no_randomness(saved):
    off = constant("off", False, bool)
    stored = make_node("Dropout", ["x", "", "off"], ["y"])
    assert torch.allclose(load(saved([stored], [off]))(images(2), noise(2)), images(2))
    made = make_node("Constant", [], ["off"], value=off)
    assert torch.allclose(load(saved([made, stored]))(images(2), noise(2)), images(2))
    given = [value("x"), value("off", [], TensorProto.BOOL)]
    with pytest.raises(CheckpointError, match=r"operator Dropout .* in training mode"):
        read(saved([stored], inputs=given))


def test_functions_of_the_file_itself_are_computed(saved):
    nodes = [make_node("Identity", ["a"], ["b"])]
    function = helper.make_function("own", "f", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])
    node = make_node("f", ["x"], ["y"], domain="own")
    path = saved([node], functions=[function], domains={"own": 1})
    assert torch.allclose(load(path)(images(2), noise(2)), images(2))
    with pytest.raises(CheckpointError, match=r"has custom operator f \(node ''\) of domain 'own'"):
        read(saved([node], domains={"own": 1}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": [value("y"), value("h")]}, r"returns 2 values \(y: float32 .*; h: float32"),
        (
            {"inputs": [value("x"), value("w")]},
            r"takes x: .*; w: .*; by its card it takes the images$",
        ),
        (
            {"inputs": [value("x", dtype=TensorProto.FLOAT16)]},
            "'x: float16 .* for images, which are",
        ),
        (
            {"inputs": [value("x", (ROWS, 3, 8, 8))]},
            r"\[n, 3, 8, 8\]' for images, .* \[n, 1, 8, 8\]",
        ),
        ({"outputs": [value("y", (ROWS, 1, 4, 4))]}, "for purified images, .*: another shape"),
    ],
)
def test_graphs_that_are_no_purifiers_are_refused(saved, changes, message):
    with pytest.raises((CardError, CheckpointError), match=message):
        read(saved(**changes))


def test_files_that_are_not_onnx_are_refused(saved, tmp_path):
    path = saved()
    assert graph_container(path) == "onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(CheckpointError, match="is not an ONNX file, or is truncated"):
        read(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\nand so on")
    with pytest.raises(CheckpointError, match="is not an ONNX file"):
        read(path)
    other = tmp_path / "graph.bin"  # the name does not matter
    other.write_bytes(whole)
    assert graph_container(other) == "onnx"
    assert torch.allclose(load(other)(images(1), noise(1)), images(1) / 2 + 0.25)


def test_what_the_runtime_cannot_do_is_one_sentence(saved, capfd):
    nodes = [make_node("Add", ["x", "k"], ["y"])]
    path = saved(nodes, [constant("k", np.zeros((1, 1, 3, 8)))], outputs=[value("y", (ROWS,) * 4)])
    with pytest.raises(CheckpointError, match=r"ONNX Runtime .*cannot (run|compute) it: .*"):
        load(path)(images(1), noise(1))
    path = saved([make_node("NoSuchOperator", ["x"], ["y"])])
    with pytest.raises(CheckpointError, match=r"Runtime [\d.]+ cannot run it: .*NoSuchOperator"):
        load(path)
    path.write_bytes(path.read_bytes().replace(b"NoSuch", b"NoS\xff\xfe\xff"))
    with pytest.raises(CheckpointError, match=r"Runtime [\d.]+ cannot run it: "):
        load(path)
    assert capfd.readouterr() == ("", "")  # of errors whose text it cannot read it prints itself


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(saved, monkeypatch, package):
    path = saved()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CheckpointError, match=rf"needs the packages? .*{package}.*pip install"):
        load(path)


def _outside(tmp_path, location):
    numbers = np.full(1, 0.125, np.float32)
    tensor = apart("k", numbers, location)
    return numbers, [make_node("Add", ["x", "k"], ["y"])], tensor


def test_weights_beside_the_file_are_read_and_are_part_of_its_digest(saved, tmp_path):
    numbers, nodes, tensor = _outside(tmp_path, "weights.bin")
    numbers.tofile(tmp_path / "weights.bin")
    path = saved(nodes, [tensor], graph_card("onnx", clamp=False))
    assert torch.allclose(load(path)(images(2), noise(2)), images(2) + 0.125)
    before = read(path).sha256
    (2 * numbers).tofile(tmp_path / "weights.bin")
    assert read(path).sha256 != before


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/hostname", "link.bin", "a\\..\\..\\b", ""]
)
def test_weights_outside_the_folder_are_refused(saved, tmp_path, location):
    numbers, nodes, tensor = _outside(tmp_path, location)
    numbers.tofile(tmp_path.parent / "weights.bin")
    (tmp_path / "link.bin").symlink_to(tmp_path.parent / "weights.bin")
    with pytest.raises(CheckpointError, match="keeps the tensor 'k' outside its folder, at '"):
        read(saved(nodes, [tensor]))
    within = make_node("Constant", [], ["k"], value=tensor)
    with pytest.raises(CheckpointError, match="keeps the tensor 'k' outside its folder, at '"):
        read(saved([within, *nodes]))


def test_missing_weights_are_named(saved, tmp_path):
    _, nodes, tensor = _outside(tmp_path, "weights.bin")
    with pytest.raises(CheckpointError, match=r"in 'weights.bin', which is not beside it; copy"):
        read(saved(nodes, [tensor]))
