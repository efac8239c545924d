"""ONNX graphs as purifiers and classifiers: what they compute, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_files import CPU, classifier_card, graph_card, images, load, noise, read
from onnx import TensorProto
from onnx.helper import make_node
from onnx_files import ROWS, constant, halved, save_onnx, value
from subjects import codes, run

from purify_audit.core.errors import PlanError
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.protocols import is_differentiable

NONE = graph_card("onnx")
MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture
def saved(tmp_path):
    """Nodes and more -> a purifier's file; without nodes, x / 2 + 1/4."""

    def save(nodes=None, stored=(), card=NONE, **changes):
        if nodes is None:
            nodes, stored = halved()
        return save_onnx(tmp_path / "graph.onnx", nodes, stored=stored, card=card, **changes)

    return save


@pytest.mark.parametrize("rows", [ROWS, 1, 4])
@pytest.mark.parametrize("n", [1, 4, 6])
def test_a_graph_of_any_batch_size_computes_what_it_says(saved, rows, n):
    shape = (rows, 1, 8, 8)
    path = saved(inputs=[value("x", shape)], outputs=[value("y", shape)])
    purifier = load(path)
    assert torch.allclose(purifier(images(n), noise(n)), images(n) / 2 + 0.25, atol=1e-7)
    assert (purifier.randomised, purifier.image.shape) == (False, (1, 8, 8))
    assert not is_differentiable(purifier)


def test_noise_inputs_are_the_normals_of_their_steps(saved):
    nodes = [make_node("Mul", ["z1", "k"], ["h"]), make_node("Sum", ["x", "z0", "h"], ["y"])]
    shapes = {"z0": [1, 8, 8], "z1": [1, 1, 1]}
    card = graph_card("onnx", noise="inputs", noise_inputs=shapes, clamp=False)
    inputs = [value("z1", (ROWS, 1, 1, 1)), value("x"), value("z0")]
    path = saved(nodes, [constant("k", 10.0)], card, inputs=inputs)
    wanted = images(3) + noise(3).normal(0, (1, 8, 8)) + 10 * noise(3).normal(1, (1, 1, 1))
    assert torch.allclose(load(path)(images(3), noise(3)), wanted, atol=1e-5)


@pytest.mark.parametrize(("shape", "dtype"), [([], "INT64"), ([1], "INT64"), ([], "INT32")])
def test_each_row_has_a_seed_of_its_own(saved, shape, dtype):
    kind = getattr(TensorProto, dtype)
    nodes = [
        make_node("Mod", ["seed", "k"], ["m"]),
        make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        make_node("Mul", ["f", "small"], ["s"]),
        make_node("Add", ["x", "s"], ["y"]),
    ]
    stored = [constant("k", 1000, np.dtype(dtype.lower())), constant("small", 1e-3)]
    card = graph_card("onnx", noise="seed", clamp=False)
    path = saved(nodes, stored, card, inputs=[value("x"), value("seed", shape, kind)])
    purifier, x = load(path), torch.zeros(4, 1, 8, 8)
    shifts = purifier(x, noise(4))[:, 0, 0, 0]
    assert len(set(shifts.tolist())) == 4
    assert shifts.min() >= 0  # a seed is not negative
    words = noise(4).integers(0, (2,), 2**32)
    seeds = words[:, 0] * 2**31 + (words[:, 1] >> 1) if dtype == "INT64" else words[:, 0] >> 1
    assert torch.allclose(shifts, (seeds % 1000) / 1000, atol=1e-6)
    assert torch.equal(purifier(x[2:], noise(4)[2:])[:, 0, 0, 0], shifts[2:])


def test_a_classifier_computes_logits(tmp_path):
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    nodes = [make_node("Flatten", ["x"], ["f"]), make_node("MatMul", ["f", "w"], ["y"])]
    path = tmp_path / "classifier.onnx"
    outputs = [value("y", (ROWS, 10))]
    card = classifier_card("onnx")
    save_onnx(path, nodes, stored=[constant("w", weights)], card=card, outputs=outputs)
    found = read(path)
    classifier = load_classifier(found, CPU)
    wanted = ((images(3) - 0.5) / 0.25).flatten(1) @ torch.from_numpy(weights)
    assert torch.allclose(classifier(images(3)), wanted, atol=1e-4)
    assert found.parameters == 640
    assert not is_differentiable(classifier)
    bare = save_onnx(path, nodes, stored=[constant("w", weights)], outputs=outputs)
    with pytest.raises(PlanError, match=r"give --assume mean=\[M,…\] .*; --assume std=\[S,…\]"):
        read(bare)
    answered = read(bare, assume={"mean": "[0.5]", "std": "[0.25]"})
    assert (answered.card.classes, answered.card.std) == (10, (0.25,))


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning")
def test_a_network_that_torch_exports_to_onnx_is_the_same(tmp_path):
    checkpoint = read_checkpoint(MODELS / "digits-autoencoder.safetensors")
    native = load_purifier(checkpoint, CPU)
    path = tmp_path / "auto.onnx"
    rows = torch.export.Dim("rows", min=1, max=64)
    torch.onnx.export(
        native.network, (images(2),), path, dynamic_shapes=({0: rows},), verbose=False
    )
    low, high = checkpoint.card.data_range
    purifier = load(path, assume={"data_range": f"{low},{high}"})
    ours, theirs = purifier(images(5), noise(5)), native(images(5), noise(5))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_pixel_that_is_not_finite_is_a_finding(saved):
    path = saved([make_node("Div", ["x", "zero"], ["y"])], [constant("zero", 0.0)])
    assert "PA103" in codes(run(load(path)))


def test_a_graph_of_free_axes_is_asked_about_and_fails_as_a_finding(saved):
    free = (ROWS, "c", "h", "w")
    node = make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2])
    path = saved([node], card=None, inputs=[value("x", free)], outputs=[value("y", free)])
    with pytest.raises(PlanError, match=r"give --assume image=CHANNELSxHEIGHTxWIDTH.*data_range"):
        read(path)
    purifier = load(path, assume={"image": "1x8x8", "data_range": "0,1"})
    assert codes(run(purifier)) == ["PA104"]


def test_the_card_in_the_file_is_the_one_that_counts(saved):
    path = saved(card=graph_card("onnx", evaluations=7))
    assert read(path).card.evaluations == 7
    other = json.dumps(graph_card("onnx", evaluations=3)).encode()
    assert read(path, other).card.evaluations == 3
    assert read(path).recognised.container == "protobuf"
