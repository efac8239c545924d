"""Native purifiers written as graphs: the same purifier under the same addresses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graph_files import CALL, CPU, images, load, noise, read, rewritten

from purify_audit.attacks.gradient_checks import in_float64
from purify_audit.core.errors import CheckpointError, PlanError
from purify_audit.models import export as exporting
from purify_audit.models.checkpoint import read_checkpoint, transform_checkpoint
from purify_audit.models.export import export_purifier
from purify_audit.models.load import load_purifier

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def steps(make_card):
    """Changes of a diffusion card's sampler -> the checkpoint's own card with them."""

    def change(checkpoint, **changes):
        sampler = checkpoint.card.sampler.model_copy(update=changes)
        return checkpoint.card.model_copy(update={"sampler": sampler})

    return change


@pytest.mark.parametrize(
    ("sampler", "draws"),
    [
        ({"kind": "ddpm", "steps": 3}, 3),  # forward, and two of three reverse steps
        ({"kind": "ddpm", "steps": 2, "rounds": 2}, 5),  # step 2 of the first round is not read
        ({"kind": "ddim", "steps": 2, "eta": 0.0}, 1),
        ({"kind": "vp-sde", "steps": 2, "clamp": False}, 3),
    ],
)
def test_a_diffusion_purifier_is_the_same_as_a_graph(stored, tmp_path, sampler, draws):
    path = stored("diffusion", sampler=sampler)
    checkpoint = read_checkpoint(path)
    out = tmp_path / "graph.pt2"
    export_purifier(checkpoint, out)
    native, graph = load_purifier(checkpoint, CPU), load(out)
    assert list(graph.card.noise_inputs) == [f"z_{k}" for k in range(draws)]
    assert (graph.evaluations, graph.randomised) == (native.evaluations, True)
    assert graph.card.provenance == native.card.provenance
    for n in (1, 4):
        x = images(n).requires_grad_()
        ours, theirs = graph(x, noise(n)), native(x, noise(n))
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
        g, h = (torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs))
        assert torch.allclose(g, h, rtol=1e-4, atol=1e-5 * float(h.abs().max()))
    wide = images(2).double()
    gap = graph(wide, noise(2)) - in_float64(native)(wide, noise(2))
    assert float(gap.abs().max()) < 1e-9
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_the_shipped_diffusion_model_is_the_same_as_a_graph(tmp_path, steps):
    checkpoint = read_checkpoint(MODELS / "digits-ddpm.safetensors")
    card = steps(checkpoint, steps=2)
    export_purifier(checkpoint, tmp_path / "digits.pt2", card)
    native, graph = load_purifier(checkpoint, CPU, card), load(tmp_path / "digits.pt2")
    x = images(5)
    assert torch.allclose(graph(x, noise(5)), native(x, noise(5)), rtol=0, atol=1e-5)
    other = replace(noise(5), draws=(0,) * 5)
    assert not torch.allclose(graph(x, other), native(x, noise(5)), atol=1e-2)


@pytest.mark.parametrize(("sigma", "inputs"), [(0.0, []), (0.2, ["z_0"])])
def test_the_shipped_autoencoder_is_the_same_as_a_graph(tmp_path, sigma, inputs):
    checkpoint = read_checkpoint(MODELS / "digits-autoencoder.safetensors")
    card = checkpoint.card.model_copy(update={"sigma": sigma})
    export_purifier(checkpoint, tmp_path / "auto.pt2", card)
    native, graph = load_purifier(checkpoint, CPU, card), load(tmp_path / "auto.pt2")
    assert list(graph.card.noise_inputs) == inputs
    assert graph.randomised == native.randomised
    x = images(3)
    assert torch.allclose(graph(x, noise(3)), native(x, noise(3)), rtol=0, atol=1e-5)
    assert read(tmp_path / "auto.pt2").parameters == checkpoint.parameters


def test_an_audit_of_the_graph_is_that_of_the_purifier(tmp_path, stored, run_cli):
    native, graph = stored("diffusion"), tmp_path / "graph.pt2"
    code, out, _ = run_cli("export", native, graph)
    assert (code, out) == (0, f"{graph}: written\n")
    values = []
    for path in (native, graph):
        report = tmp_path / f"{path.stem}.json"
        small = ("--images", 4, "--draws", 2, "--directions", 2, "--microbatch", 5)
        code, _, error = run_cli(
            "compress", path, *small, "--measure-anyway", "--quiet", "--out", report
        )
        assert (code in (0, 3), error) == (True, "")
        estimates = json.loads(report.read_text())["estimates"]
        values.append({(e["metric"], e["probe"], e["norm"]): e["value"] for e in estimates})
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_a_graph_from_another_device_computes_here(tmp_path, stored):
    export_purifier(read_checkpoint(stored("diffusion")), tmp_path / "cpu.pt2")

    def move(program):
        text = json.dumps(program)
        assert '"type": "cpu"' in text
        return json.loads(text.replace('"type": "cpu"', '"type": "cuda"'))

    moved = rewritten(tmp_path / "cpu.pt2", tmp_path / "cuda.pt2", {CALL: move})
    x = images(2)
    assert torch.equal(load(moved)(x, noise(2)), load(tmp_path / "cpu.pt2")(x, noise(2)))


def test_what_has_no_network_is_not_exported(tmp_path, make_card, stored):
    transform = transform_checkpoint("median", make_card("transform"))
    with pytest.raises(PlanError, match=r"median: has no native network, so there is nothing to"):
        export_purifier(transform, tmp_path / "graph.pt2")
    classifier = read_checkpoint(stored("cnn"))
    with pytest.raises(CheckpointError, match="is a classifier, not a purifier"):
        export_purifier(classifier, tmp_path / "graph.pt2")


def test_what_would_be_too_long_or_go_nowhere_is_refused(tmp_path, stored, steps):
    checkpoint = read_checkpoint(stored("diffusion"))
    card = steps(checkpoint, steps=20, rounds=11)
    with pytest.raises(PlanError, match=r"has 220 network evaluations, .*fewer steps \(--sampler"):
        export_purifier(checkpoint, tmp_path / "graph.pt2", card)
    with pytest.raises(PlanError, match=r"graph.onnx: is not a valid name .* use the suffix .pt2"):
        export_purifier(checkpoint, tmp_path / "graph.onnx")
    checkpoint = read_checkpoint(stored("feedforward"))
    with pytest.raises(CheckpointError, match="cannot be written: No such file or directory"):
        export_purifier(checkpoint, tmp_path / "nowhere" / "graph.pt2")


def test_a_graph_that_differs_is_not_written(tmp_path, stored, monkeypatch):
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    checkpoint = read_checkpoint(stored("feedforward"))
    with pytest.raises(CheckpointError, match="not written, because the graph's pixels differ"):
        export_purifier(checkpoint, tmp_path / "graph.pt2")
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]


def test_a_network_that_is_of_one_batch_size_is_refused(tmp_path, stored, monkeypatch):
    from purify_audit.models.networks.autoencoder import Autoencoder

    whole = Autoencoder.forward
    monkeypatch.setattr(Autoencoder, "forward", lambda self, x: whole(self, x) * len(x))
    checkpoint = read_checkpoint(stored("feedforward"))
    with pytest.raises(CheckpointError, match=r"PyTorch .* cannot export it for any batch size: "):
        export_purifier(checkpoint, tmp_path / "graph.pt2")
