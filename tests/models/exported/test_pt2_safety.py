"""Exported programs that would run code when PyTorch loads them, and do not run it here."""

import contextlib

import pytest
import torch
from graph_files import (
    CALL,
    CPU,
    WEIGHTS,
    Plain,
    graph_card,
    images,
    load,
    noise,
    pickled,
    read,
    rewritten,
    save_pt2,
    target,
)

from purify_audit.core.errors import CheckpointError
from purify_audit.models.load import load_purifier


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "plain.pt2"
    return save_pt2(path, Plain(), images(3), card=graph_card())


def _text_of_a_size(marker):
    def change(program):
        values = program["graph_module"]["graph"]["tensor_values"]
        expression = f"Symbol('s0') * (1 if open({str(marker)!r}, 'w').close() else 1)"
        for meta in values.values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = expression

    return change


def _guard(marker):
    def change(program):
        program["guards_code"] = [f"open({str(marker)!r}, 'w').close() or True"]

    return change


@pytest.mark.parametrize("route", ["sample inputs", "text of a size", "guard"])
def test_loading_runs_nothing_where_torch_would(plain, tmp_path, route):
    marker = tmp_path / "ran"
    changes = {
        "sample inputs": {"data/sample_inputs/model.pt": pickled(marker)},
        "text of a size": {CALL: _text_of_a_size(marker)},
        "guard": {CALL: _guard(marker)},
    }
    path = rewritten(plain, tmp_path / "bad.pt2", changes[route])
    if route == "text of a size":
        with pytest.raises(CheckpointError, match=r"takes 'x' with a first axis of length Symbol"):
            read(path)
    else:  # what is not looked at does no harm
        assert torch.equal(load(path)(images(2), noise(2)), load(plain)(images(2), noise(2)))
    assert not marker.exists()
    with contextlib.suppress(Exception):  # whatever becomes of it
        torch.export.load(path).module()(images(2))
    assert marker.exists(), "the file of this test runs no code in torch either"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {CALL: target("torch.os.system")},
            "calls 'torch.os.system', so it can only be loaded by",
        ),
        (
            {CALL: target("torch.ops.mylib.f.default")},
            r"torch.export.load, .* give --allow-pickle",
        ),
    ],
)
def test_what_is_not_arithmetic_needs_consent(plain, tmp_path, change, message):
    path = rewritten(plain, tmp_path / "bad.pt2", change)
    with pytest.raises(CheckpointError, match=message):
        read(path)


def test_a_pickled_weight_needs_consent(plain, tmp_path):
    marker = tmp_path / "ran"

    def as_pickle(index):
        index["config"]["conv.weight"]["use_pickle"] = True

    changes = {WEIGHTS: as_pickle, "data/weights/weight_0": pickled(marker)}
    path = rewritten(plain, tmp_path / "bad.pt2", changes)
    with pytest.raises(CheckpointError, match=r"keeps 'conv.weight' as a pickle, so it can only"):
        read(path)
    assert not marker.exists()


def test_a_few_bytes_cannot_become_any_amount_of_memory(plain, tmp_path):
    def stretch(index):
        meta = index["config"]["conv.weight"]["tensor_meta"]
        meta["sizes"] = [{"as_int": 2**40}]
        meta["strides"] = [{"as_int": 0}]

    path = rewritten(plain, tmp_path / "bad.pt2", {WEIGHTS: stretch})
    with pytest.raises(CheckpointError, match=r"36 bytes are too few for shape \[1099511627776\]"):
        load(path)


def test_a_value_that_nothing_makes_is_found_at_once(plain, tmp_path):
    def cut(program):
        del program["graph_module"]["graph"]["nodes"][-1]

    path = rewritten(plain, tmp_path / "bad.pt2", {CALL: cut})
    with pytest.raises(
        CheckpointError, match="no operator produces the value 'clamp', which others"
    ):
        load(path)


def test_text_for_an_operator_that_could_open_a_file_is_refused(plain, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))

    def change(program):
        nodes = program["graph_module"]["graph"]["nodes"]
        node = next(n for n in nodes if n["target"].endswith("clamp.default"))
        node["target"] = "torch.ops.aten.from_file.default"
        node["inputs"] = [{"name": "filename", "arg": {"as_string": str(secret)}, "kind": 1}]

    path = rewritten(plain, tmp_path / "bad.pt2", {CALL: change})
    with pytest.raises(CheckpointError, match=r"gives text to .*from_file.*name of a file"):
        load(path)


class _Quiet(Plain):
    def forward(self, x):
        with torch.no_grad():
            base = super().forward(x)
        return base + 0.1 * x


def test_with_consent_torch_loads_the_rest(tmp_path):
    path = save_pt2(tmp_path / "quiet.pt2", _Quiet(), images(3), card=graph_card())
    with pytest.raises(CheckpointError, match=r"calls 'torch.ops.higher_order.wrap_with_set_grad"):
        read(path)
    found = read(path, allow_pickle=True)
    assert found.recognised.unpickled
    purifier = load_purifier(found, CPU)
    x = images(3).requires_grad_()
    made = purifier(x, noise(3))
    assert torch.allclose(made, _Quiet()(x).clamp(0, 1), atol=1e-6)
    (g,) = torch.autograd.grad(made.sum(), x)
    assert torch.allclose(g, torch.full_like(g, 0.1) * (g != 0))
    assert 0 < (g != 0).float().mean() <= 1
