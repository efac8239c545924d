"""Every format with every command, through the command line: what docs/formats.md states.

With `PURIFY_AUDIT_WRITE_MATRIX=1` set, and `-m "slow or not slow"`, it writes the table.
"""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_files import Plain, graph_card, images, save_pt2
from published import LAYOUTS

from purify_audit.models.checkpoint import save_checkpoint
from purify_audit.models.networks import build_network
from purify_audit.report.schema import read_report
from purify_audit.spec.card import parse_card

TABLE = Path(__file__).parents[2] / "docs" / "format_matrix.json"
MODELS = Path(__file__).parents[2] / "models"
COMMANDS = ("inspect", "convert", "compress", "verify")
COMPRESS = "--images 2 --draws 1 --directions 2 --probe sign --eps 0.05 --microbatch 4 --quiet"
VERIFY = "--images 2 --draws 1 --held-out 1 --steps 1 --eps 0.05 --microbatch 4 --quiet --attack"
WRITING = "PURIFY_AUDIT_WRITE_MATRIX" in os.environ


def native(folder):
    return MODELS / "digits-autoencoder.safetensors", "purifier", []


def transformation(folder):
    return "jpeg:quality=75", "purifier", []


def exported(folder):
    return save_pt2(folder / "plain.pt2", Plain(), images(3), card=graph_card()), "purifier", []


def onnx(folder):
    onnx_files = pytest.importorskip("onnx", reason="onnx is an extra")
    pytest.importorskip("onnxruntime", reason="onnxruntime is an extra")
    helper, kind = onnx_files.helper, onnx_files.TensorProto.FLOAT
    half = helper.make_tensor("half", kind, [], [0.5])
    node = helper.make_node("Mul", ["x", "half"], ["y"])
    x, y = (helper.make_tensor_value_info(n, kind, ["n", 1, 8, 8]) for n in "xy")
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [half]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx_files.save(model, folder / "half.onnx")
    return folder / "half.onnx", "purifier", ["--assume", "data_range=0,1"]


def torchscript(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.trace(torch.nn.Conv2d(1, 1, 3, padding=1), images(2))
        torch.jit.save(script, folder / "script.pt")
    said = ("family=graph", "data_range=0,1", "image=1x8x8", "noise=none")
    options = [option for each in said for option in ("--assume", each)]
    return folder / "script.pt", "purifier", ["--allow-pickle", *options]


def code(folder):
    (folder / "matrix_code.py").write_text(
        "import torch\n\n\ndef purify(x):\n    return 0.5 * x + 0.1 * torch.rand_like(x)\n\n\n"
        "def make():\n    purify.image_shape = (1, 8, 8)\n    return purify\n"
    )
    return f"{folder / 'matrix_code.py'}:make", "purifier", []


OURS = {
    "native (.safetensors with a card)": native,
    "input transformation": transformation,
    "torch.export (.pt2)": exported,
    "ONNX": onnx,
    "TorchScript": torchscript,
    "code (module:factory)": code,
}


def answers_of(answers):
    """`LoadOptions` as options."""
    options = ["--as", answers["preset"]] if "preset" in answers else []
    options += ["--weights", answers["weights"]] if "weights" in answers else []
    for name, value in answers.get("assume", {}).items():
        options += ["--assume", f"{name}={value}"]
    return options


def made(layout, folder):
    """What a person would name, whether it is a purifier or a classifier, and the options."""
    if layout in OURS:
        return OURS[layout](folder)
    found = LAYOUTS[layout](folder)
    return found.path, found.card.get("family", "purifier"), answers_of(found.answers)


def judge(folder, shape):
    """A small classifier of images of a shape."""
    card = {
        "name": "judge",
        "family": "classifier",
        "image": dict(zip(("channels", "height", "width"), shape, strict=True)),
        "provenance": {"data": "none", "command": "none", "licence": "Apache-2.0"},
        "network": {"arch": "cnn", "widths": [4], "hidden": 4},
        "classes": 10,
        "mean": [0.5] * shape[0],
        "std": [0.5] * shape[0],
    }
    card = parse_card(json.dumps(card), "judge")
    torch.manual_seed(0)
    save_checkpoint(folder / "judge.safetensors", card, build_network(card).state_dict())
    return folder / "judge.safetensors"


def outcome(command, layout, folder, run_cli):
    """`yes`, or the sentence with which a command refuses."""
    subject, family, options = made(layout, folder)
    shape = (1, 8, 8) if layout in OURS else image_of(layout, folder)
    if family == "classifier" and command in ("compress", "verify"):
        options = [option.replace("--as", "--classifier-as") for option in options[:2]]
        options = ["--classifier", subject, *options]
        subject, shape = "median:size=3", (3, 32, 32)  # the presets' size
    values = np.random.default_rng(0).random((4, *shape), dtype=np.float32)
    np.savez(folder / "images.npz", x=values, y=np.array([0, 1, 2, 3]))
    out = folder / "out.json"
    tiny = [*(COMPRESS if command == "compress" else VERIFY).split(), "--measure-anyway"]
    tiny += ["--data", folder / "images.npz", "--out", out]
    if command == "verify" and "--classifier" not in options:
        tiny += ["--classifier", judge(folder, shape)]
    rest = {"inspect": [], "convert": [folder / "out.safetensors"]}.get(command, tiny)
    code, _, err = run_cli(command, subject, *rest, *options)
    if code == 2:
        told = err.removeprefix("purify-audit: ").strip().replace(f"{folder}/", "")
        return f"refused: {told}"
    assert code in (0, 3), err
    if command in ("compress", "verify"):
        report = read_report(out)
        assert any(e.metric == "compression_rate" for e in report.estimates)
        assert (report.attack is not None) == (command == "verify")
    return "yes"


def image_of(layout, folder):
    from purify_audit.models.open import open_checkpoint
    from purify_audit.spec.load_options import LoadOptions

    found = LAYOUTS[layout](folder)
    return open_checkpoint(str(found.path), None, LoadOptions(**found.answers)).card.image.shape


CELLS = [(layout, command) for layout in (*OURS, *LAYOUTS) for command in COMMANDS]
SLOW = {(layout, "verify") for layout in LAYOUTS}


@pytest.mark.parametrize(
    ("layout", "command"),
    [pytest.param(*cell, marks=[pytest.mark.slow] if cell in SLOW else []) for cell in CELLS],
)
def test_what_the_table_says_is_what_happens(layout, command, tmp_path, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = outcome(command, layout, tmp_path, run_cli)
    if WRITING:
        table = json.loads(TABLE.read_text())
        table.setdefault(layout, {})[command] = found
        TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    else:
        assert found == json.loads(TABLE.read_text())[layout][command]


def test_the_table_has_every_format():
    assert list(json.loads(TABLE.read_text())) == [*OURS, *LAYOUTS]
