"""A few hundred damaged files of every kind; and whether the fuzzer would notice a fault."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import fuzz_cheats
import pytest
import torch
from fuzz_mutations import damage
from safetensors.torch import save, save_file

from purify_audit.core.errors import CheckpointError, ImageError
from purify_audit.images.image_set import load_images
from purify_audit.images.limits import reading
from purify_audit.models.containers.read import read_weights

ROOT = Path(__file__).parents[3]


@pytest.fixture
def fuzz(tmp_path, monkeypatch):
    """Arguments -> (exit code, what was recorded, standard output)."""

    def run(*arguments):
        out = tmp_path / "out.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_formats.py"), *arguments]
        command += ["--write", "--out", str(out), "--keep", str(tmp_path / "kept")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert out.exists(), done.stderr
        return done.returncode, json.loads(out.read_text()), done.stdout

    return run


def test_damaged_files_are_read_or_refused_in_a_sentence(fuzz):
    code, told, output = fuzz("--files", "300", "--seed", "7")
    assert (code, told["faults"]) == (0, []), output
    assert set(told["outcomes"]) <= {
        "read",
        "CheckpointError",
        "CardError",
        "PlanError",
        "ImageError",
    }
    assert sum(told["outcomes"].values()) == told["files"] == 300
    assert told["outcomes"]["read"] > 10
    assert told["outcomes"]["CheckpointError"] > 100
    assert told["outcomes"]["ImageError"] > 50


def test_the_fuzzer_notices(fuzz, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "support"))
    code, told, output = fuzz("--samples", "fuzz_cheats", "--files", "60", "--seconds", "0.2")
    assert code == 1
    found = {}
    for fault in told["faults"]:
        found.setdefault(fault["sample"], fault)
        assert f"seed 0 file {fault['number']} " in output
        assert (tmp_path / "kept" / f"0-{fault['number']}" / "f.bin").exists()
    reasons = {
        "raises": ("KeyError", "KeyError"),
        "hides memory": ("out of memory", "cannot be read"),
        "rambles": ("CheckpointError", "a message that is no sentence"),
        "writes": ("read", "left files"),
        "writes and removes": ("read", "did [\"opened 'x' for writing\""),
        "runs": ("read", "subprocess.Popen"),
        "hangs": ("too long", "took more than 0.2 seconds"),
        "?": ("died", "the process ended with -11"),
    }
    assert set(found) == set(reasons)
    assert set(fuzz_cheats.ACTS) == set(reasons) - {"?"} | {"dies"}
    for name, (outcome, reason) in reasons.items():
        assert found[name]["outcome"] == outcome
        assert reason in found[name]["fault"]
    assert sum(told["outcomes"].values()) == 60


def test_the_same_seed_makes_the_same_damage():
    others = (b"other" * 9, b"")
    damaged = [damage(Random(str(k)), b"content" * 9, others) for k in range(500)]
    assert damaged == [damage(Random(str(k)), b"content" * 9, others) for k in range(500)]
    assert len(set(damaged)) > 450


def test_what_is_inside_containers_is_damaged_too(tmp_path):
    """Checksums and lengths are right again: else nothing behind them would ever be read."""
    value = {"w": torch.arange(9.0), "n": 3}
    torch.save(value, tmp_path / "m.pth")
    save_file({"w": value["w"]}, tmp_path / "m.safetensors")
    opened = Counter()
    for name in ("m.pth", "m.safetensors"):
        content = (tmp_path / name).read_bytes()
        for number in range(300):
            (tmp_path / name).write_bytes(damage(Random(str(number)), content, (b"",)))
            try:
                read_weights(tmp_path / name)
            except CheckpointError as error:
                opened[name, "damaged or truncated at" in str(error)] += 1
                opened[name, "dtype" in str(error) or "bytes" in str(error)] += 1
            else:
                opened[name, "read"] += 1
    assert opened["m.pth", True] > 20
    assert opened["m.safetensors", True] > 20
    assert opened["m.pth", "read"] > 5


# --- what it found ------------------------------------------------------------------------------


def _npy(header, version=1):
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "x.npy",
            _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (9007199254740992, 0, 8)}"),
            "shape [9007199254740992, 1, 0, 8] contains no images",
        ),
        ("x.npy", _npy("{}", version=2), "the header declares 2105213047 bytes of 129: damaged"),
        ("x.safetensors", save({"y" * 5000: torch.ones(1)}), "…"),
    ],
)
def test_images_are_refused_in_a_sentence(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError) as raised:
        load_images(str(tmp_path / name))
    assert str(raised.value).endswith(reason)
    assert len(str(raised.value)) < 600
    assert raised.value.__cause__ is None


def test_a_parser_may_say_what_cannot_be_printed():
    with pytest.raises(ImageError, match=r"^x: cannot be read: type \\x0f$"), reading("x"):
        raise ValueError("type \x0f")
