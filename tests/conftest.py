"""Cards and tiny checkpoints of every family, and the command line run in this process."""

import json
import os
import sys

import hypothesis
import pytest
import torch
from commands import run_in

from purify_audit import cli
from purify_audit.models.checkpoint import save_checkpoint
from purify_audit.models.networks import build_network
from purify_audit.spec.card import parse_card

# Networks here are tiny: more threads only wait for each other. Commands run by tests inherit it.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no fault of the code.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

FAMILIES = ("diffusion", "feedforward", "cnn", "cifar-resnet")


def example_card(family):
    """The JSON of a small card: of one of `FAMILIES`, or `transform`."""
    card = {
        "name": f"tiny {family}",
        "image": {"channels": 1, "height": 8, "width": 8},
        "provenance": {"data": "none", "command": "none", "licence": "Apache-2.0"},
    }
    if family == "diffusion":
        return card | {
            "family": "diffusion",
            "network": {
                "arch": "unet",
                "width": 4,
                "multipliers": [1, 2],
                "blocks": 1,
                "groups": 2,
            },
            "prediction": "eps",
            "time_conditioning": "index",
            "schedule": {"kind": "linear", "steps": 100},
            "data_range": [-1.0, 1.0],
            "t_star": 20,
            "sampler": {"kind": "ddpm", "steps": 3},
        }
    if family == "feedforward":
        return card | {
            "family": "feedforward",
            "network": {"arch": "autoencoder", "widths": [2, 3]},
        }
    if family == "transform":
        return card | {"family": "transform", "transform": {"kind": "median", "size": 3}}
    networks = {
        "cnn": {"arch": "cnn", "widths": [2, 3], "hidden": 4},
        "cifar-resnet": {"arch": "cifar-resnet", "depth": 8},
    }
    classifier = {"family": "classifier", "network": networks[family], "classes": 10}
    return card | classifier | {"mean": [0.5], "std": [0.25]}


def _random_tensors(card, seed=0):
    """Weights for a card's network, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=generator) + 0.1
        if tensor.is_floating_point()
        else tensor
        for name, tensor in build_network(card).state_dict().items()
    }


@pytest.fixture
def card_data():
    """Family -> the JSON of a card, as dicts and lists that a test may change."""
    return example_card


@pytest.fixture
def make_card():
    """(family, **changes) -> a card."""

    def make(family="diffusion", **changes):
        return parse_card(json.dumps(example_card(family) | changes), "test")

    return make


@pytest.fixture
def random_tensors():
    """A card -> float32 weights for its network, none of them zero."""
    return _random_tensors


@pytest.fixture
def stored(tmp_path, make_card):
    """(family, change=None, **changes) -> path of a native checkpoint with random weights.

    `change` gets the tensors and may return others; `changes` are of the card.
    """

    def store(family="diffusion", change=None, **changes):
        card = make_card(family, **changes)
        tensors = _random_tensors(card)
        path = tmp_path / f"{family}.safetensors"
        save_checkpoint(path, card, change(tensors) if change else tensors)
        return path

    return store


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Arguments -> (exit code, standard output, standard error) of `purify-audit`."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["purify-audit", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "10000")  # no line is wrapped
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return (code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run_cli):
    """Arguments -> the one sentence on standard error of a run that must end with exit code 2."""

    def run(*arguments):
        code, out, err = run_cli(*arguments)
        assert (code, out) == (2, ""), f"exit code {code}, output {out!r}, error {err!r}"
        assert err.startswith("purify-audit: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        return err.removeprefix("purify-audit: ").rstrip("\n")

    return run


@pytest.fixture(scope="session")
def cli_in():
    """(folder, *arguments) -> how a command ended, for fixtures that live longer than a test."""
    return run_in
