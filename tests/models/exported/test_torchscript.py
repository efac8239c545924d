"""TorchScript archives: run only with consent, which is recorded."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graph_files import CPU, Plain, graph_card, images, noise, read

from purify_audit.core.errors import CheckpointError, PlanError
from purify_audit.models.exported.read import graph_container
from purify_audit.models.load import load_purifier

CLASSIFIER = Path(__file__).parents[3] / "models" / "digits-classifier.safetensors"
NONE = graph_card("torchscript")
ANSWERS = {"family": "graph", "image": "1x8x8", "data_range": "0,1"}


@pytest.fixture
def scripted(tmp_path):
    """A module and its card -> its file."""

    def save(module, card=None):
        path = tmp_path / "script.pt"
        extra = {} if card is None else {"purify_audit.json": json.dumps(card)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.script(module), path, _extra_files=extra)
        return path

    return save


def test_it_is_run_only_with_consent_which_is_recorded(scripted):
    path = scripted(Plain(), NONE)
    assert graph_container(path) == "torchscript"
    with pytest.raises(CheckpointError, match=r"is TorchScript, a program that runs when it is"):
        read(path)
    found = read(path, allow_pickle=True)
    assert (found.recognised.format, found.recognised.unpickled) == ("TorchScript", True)
    forgotten = found.recognised.model_copy(update={"unpickled": False})
    with pytest.raises(CheckpointError, match="loading it runs code in the file"):
        load_purifier(replace(found, recognised=forgotten), CPU)


def test_it_gives_what_the_module_gives_and_its_gradient(scripted):
    purifier = load_purifier(read(scripted(Plain(), NONE), allow_pickle=True), CPU)
    x = images(3).requires_grad_()
    made, eager = purifier(x, noise(3)), Plain()(x)
    assert torch.allclose(made, eager, atol=1e-6)
    g, h = (torch.autograd.grad(y.square().sum(), x)[0] for y in (made, eager))
    assert torch.allclose(g, h, atol=1e-5)
    wide = purifier(images(3).double(), noise(3))
    assert wide.dtype == torch.float64
    with torch.no_grad():
        assert float((wide - Plain().double()(images(3).double())).abs().max()) < 1e-7


class _Drawing(torch.nn.Module):
    def forward(self, x):
        return x / 2 + 0.1 * torch.randn_like(x)


def test_what_it_draws_is_captured(scripted):
    card = graph_card("torchscript", noise="captured", clamp=False)
    purifier = load_purifier(read(scripted(_Drawing(), card), allow_pickle=True), CPU)
    together = purifier(images(3), noise(3))
    alone = purifier(images(3)[2:], noise(3)[2:])
    assert torch.allclose(together[2:], alone, atol=1e-6)
    z = noise(3).normal(0, (1, 8, 8))
    assert torch.allclose(together, images(3) / 2 + 0.1 * z, atol=1e-6)
    assert not torch.allclose(together, purifier(images(3), noise(3, seed=9)), atol=1e-2)


def test_without_a_card_everything_is_asked_for(scripted):
    path = scripted(Plain())
    with pytest.raises(PlanError, match="give --assume family=graph for a purifier or family=cl"):
        read(path, allow_pickle=True)
    with pytest.raises(PlanError, match=r"give --assume image=.*data_range=.*noise=inputs if"):
        read(path, allow_pickle=True, assume={"family": "graph"})
    with pytest.raises(PlanError, match="give --assume family=graph for a purifier"):
        read(path, allow_pickle=True, assume=ANSWERS | {"noise": "none", "family": "transform"})
    found = read(path, allow_pickle=True, assume=ANSWERS | {"noise": "none"})
    assert torch.allclose(load_purifier(found, CPU)(images(1), noise(1)), Plain()(images(1)))


class _Wrong(torch.nn.Module):
    def forward(self, x):
        return [x]


class _Fails(torch.nn.Module):
    def forward(self, x):
        return x.reshape(7, -1)


@pytest.mark.parametrize(
    ("module", "message"),
    [(_Wrong(), "returned a list, not a tensor"), (_Fails(), "cannot compute: ")],
)
def test_what_it_does_wrong_is_one_sentence(scripted, module, message):
    purifier = load_purifier(read(scripted(module, NONE), allow_pickle=True), CPU)
    with pytest.raises(CheckpointError, match=rf"script.pt: {message}"):
        purifier(images(2), noise(2))


class _Stubborn(torch.nn.Module):
    """Asks for float32 by name, so that it does not run in float64."""

    def __init__(self, false):
        super().__init__()
        self.false: bool = false
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        narrow = x.to(torch.float32)
        smooth = narrow + 0.1 * self.conv(narrow)
        if self.false:
            smooth = smooth - 0.5 * narrow + (0.5 * narrow).detach()
        return smooth.clamp(0.0, 1.0)


@pytest.mark.parametrize(("false", "severity"), [(False, "warning"), (True, "error")])
def test_a_gradient_that_cannot_be_had_in_float64_is_checked_in_float32(
    scripted, run_cli, tmp_path, false, severity
):
    torch.manual_seed(0)
    path, out = scripted(_Stubborn(false), NONE), tmp_path / "verify.json"
    small = ("--images", 4, "--steps", 2, "--draws", 1, "--held-out", 1, "--quiet")
    command = ("verify", path, "--allow-pickle", "--attack", *small, "--out", out)
    _, _, error = run_cli(*command, "--classifier", CLASSIFIER)
    assert error == ""
    report = json.loads(out.read_text())
    (found,) = (f for f in report["findings"] if f["code"] == "PA301")
    assert found["severity"] == severity
    if not false:
        assert "in float32 only" in found["sentence"]
