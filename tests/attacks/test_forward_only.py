"""Attacks where no gradient can be had: through an exported purifier, or its classifier."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_files import classifier_card, graph_card
from onnx.helper import make_node
from onnx_files import ROWS, constant, halved, save_onnx, value

from purify_audit.core.errors import PlanError
from purify_audit.spec.attack_plan import PRESETS, AttackPlan

CLASSIFIER = Path(__file__).parents[2] / "models" / "digits-classifier.safetensors"
SMALL = ("--images", 6, "--steps", 3, "--draws", 1, "--held-out", 2, "--quiet")


def plan(**settings):
    given = {"norm": "linf", "eps": (0.1,), "steps": 10, "draws": 1, "restarts": 1}
    return AttackPlan(**given | {"held_out": 1, "square_queries": 50, "microbatch": 8} | settings)


def test_a_plan_keeps_to_what_can_be_had():
    assert plan().forward_only(True, True) == plan()
    assert plan().forward_only(False, True).gradient == "none"
    search = plan().forward_only(True, False)
    assert (search.optimiser, search.steps) == ("square", 50)
    assert plan(steps=70).forward_only(False, False).steps == 70
    for asked in ({"optimiser": "square"}, {"gradient": "bpda"}, {"gradient": "none"}):
        assert plan(**asked).forward_only(False, True) == plan(**asked)


@pytest.mark.parametrize(
    ("asked", "able", "message"),
    [
        (
            {"gradient": "exact"},
            (False, True),
            "--gradient exact: .* the purifier; use --gradient",
        ),
        ({"optimiser": "apgd"}, (True, False), "through the classifier; use --optimiser square"),
        ({"predict_only": True}, (True, False), "prediction needs the gradient of the classifier"),
        (
            {"predict_only": True, "optimiser": "square"},
            (True, False),
            "prediction needs the gradient of the classifier",
        ),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_refused(asked, able, message):
    with pytest.raises(PlanError, match=message):
        plan(**asked).forward_only(*able)


@pytest.fixture
def purifier(tmp_path):
    """x / 2 + 1/4 + z / 20: randomised, and compressing by half."""
    small = constant("small", 0.05)
    nodes, stored = halved("noisy", "y")
    nodes = [
        make_node("Mul", ["z", "small"], ["n"]),
        make_node("Add", ["x", "n"], ["noisy"]),
        *nodes,
    ]
    card = graph_card("onnx", noise="inputs", noise_inputs={"z": [1, 8, 8]})
    inputs = [value("x"), value("z")]
    return save_onnx(tmp_path / "p.onnx", nodes, inputs, [*stored, small], card)


@pytest.fixture
def classifier(tmp_path):
    """The nearest of ten random images."""
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    nodes = [make_node("Flatten", ["x"], ["f"]), make_node("MatMul", ["f", "w"], ["y"])]
    path, outputs = tmp_path / "c.onnx", [value("y", (ROWS, 10))]
    stored = [constant("w", weights)]
    return save_onnx(path, nodes, None, stored, classifier_card("onnx"), outputs=outputs)


def estimates(report):
    return {(e["metric"], e["probe"]): e["value"] for e in report["estimates"]}


def test_a_compression_rate_needs_no_gradient(purifier, run_cli, tmp_path):
    out = tmp_path / "report.json"
    code, _, error = run_cli("compress", purifier, "--images", 8, "--quiet", "--out", out)
    assert (code, error) == (0, "")
    rate = estimates(json.loads(out.read_text()))["compression_rate", "sign"]
    assert rate == pytest.approx(0.5, abs=1e-3)


def test_an_onnx_purifier_is_attacked_forward_only(purifier, run_cli, tmp_path):
    out = tmp_path / "verify.json"
    command = ("verify", purifier, "--attack", "--classifier", CLASSIFIER, *SMALL, "--out", out)
    code, _, error = run_cli(*command)
    assert error == ""
    report = json.loads(out.read_text())
    assert code in (0, 3)
    assert report["plan"]["attack"]["gradient"] == "none"
    assert "PA310" in {f["code"] for f in report["findings"]}
    assert report["status"] == "complete"
    values = estimates(report)
    aligned = values["aligned_robust_accuracy", "aligned"]
    assert aligned < values["anchor_accuracy", None]  # the attack does something
    assert "predicted_robust_accuracy" in {metric for metric, _ in values}


def test_an_onnx_classifier_leaves_only_a_search(purifier, classifier, run_cli, tmp_path):
    out = tmp_path / "verify.json"
    command = ("verify", purifier, "--attack", "--classifier", classifier, *SMALL, "--out", out)
    code, _, error = run_cli(*command)
    assert error == ""
    assert code in (0, 3)
    report = json.loads(out.read_text())
    assert report["plan"]["attack"]["optimiser"] == "square"
    queries = PRESETS["smoke"]["attack"]["square_queries"]
    assert report["plan"]["attack"]["steps"] == queries > 3  # not as many as gradients
    assert report["attack"]["gradients"] == {}


def test_the_command_line_refuses_gradients_that_are_not_there(purifier, refused, classifier):
    message = refused("verify", purifier, "--attack", "--gradient", "exact", *SMALL)
    assert message == (
        "--gradient exact: no gradient goes through the purifier; use --gradient none"
    )
    message = refused("verify", purifier, "--predict", "--classifier", classifier, *SMALL)
    assert message.startswith("prediction needs the gradient of the classifier, which has none")


def test_a_torch_graph_is_attacked_by_its_exact_gradient(run_cli, tmp_path):
    from graph_files import Plain, images, save_pt2

    path = save_pt2(tmp_path / "plain.pt2", Plain(), images(3), rows=(1, 63), card=graph_card())
    out = tmp_path / "verify.json"
    command = ("verify", path, "--attack", "--classifier", CLASSIFIER, *SMALL, "--out", out)
    code, _, error = run_cli(*command, "--device", "cpu")
    assert (code in (0, 3), error) == (True, "")
    report = json.loads(out.read_text())
    assert not {"PA301", "PA310"} & {f["code"] for f in report["findings"]}
    assert report["attack"]["gradients"]["difference_error"] < 1e-3
    assert torch.get_default_dtype() == torch.float32
