"""A fixed set of audits whose numbers no change of structure or wording may move.

`python tests/unchanged/audits.py` records their digests in `audits.json`; only a change that is
meant to move numbers may do that, and says so in the changelog. `renamed.json` lists the fields
that were renamed since, old name to new: digests are taken under the old names.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, safe_open

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDED, RENAMED = HERE / "audits.json", HERE / "renamed.json"

_SMALL = ("--t-star", "20", "--sampler", "ddim:steps=2", "--seed", "3")
_ATTACK = ("--attack", "--steps", "3", "--held-out", "3")
AUDITS = {
    "compress": [
        ("compress", "models/digits-ddpm.safetensors", "--t-star", "6", "--images", "4", "--draws",
         "2", "--directions", "2", "--classifier", "models/digits-classifier.safetensors"),
    ],
    "attack": [
        ("verify", "models/digits-ddpm.safetensors", *_ATTACK, *_SMALL, "--images", "6", "--draws",
         "2", "--restarts", "2"),
    ],
    "attack-apgd-l2": [
        ("verify", "models/digits-autoencoder.safetensors", *_ATTACK, "--images", "6", "--norm",
         "l2", "--eps", "0.8,1.2", "--optimiser", "apgd", "--loss", "ce"),
    ],
    "predict": [
        ("verify", "models/digits-ddpm.safetensors", "--predict", "--t-star", "20", "--images",
         "6"),
    ],
    "attack-report": [
        ("compress", "models/digits-ddpm.safetensors", *_SMALL, "--images", "4", "--draws", "2",
         "--out", "first.json"),
        ("verify", "first.json", *_ATTACK, "--leave"),
    ],
    "code": [
        ("verify", "--purifier", "purifier.py:make", *_ATTACK, "--data", "digits", "--images", "5",
         "--draws", "2"),
    ],
    "transform": [
        ("compress", "jpeg:quality=75", "--data", "cifar", "--images", "4", "--eps", "8/255",
         "--probe", "sign", "--probe", "power:iterations=3"),
    ],
    "sweep": [
        ("sweep", "models/digits-ddpm.safetensors", "--t-star", "5,20", "--sampler",
         "ddim:steps=2", "--images", "4", "--steps", "2"),
    ],
    "run": [("run", "--policy", "policy.toml", "--exit-zero")],
    "resume": [
        ("compress", "models/digits-ddpm.safetensors", *_SMALL, "--images", "6", "--directions",
         "4", "--shard", "0/2", "--run-dir", "half.run"),
        ("resume", "half.run", "--out", "resumed.json"),
    ],
}  # fmt: skip
"""Commands of each audit, run one after another in an empty folder."""

_TEXT = {"sentence", "advice", "reference", "used_for", "requirement", "notes", "title"}
"""Prose, which may be worded better."""
_DERIVED = {
    "run", "plan_digest", "rows_sha256", "attacks_sha256", "environment", "schema_version",
    "tool_version", "noise_spec", "report_sha256", "body_sha256", "date", "configuration",
}  # fmt: skip
"""Digests over field names, versions, and what is told of the machine."""


def environment():
    """What the last digits depend on."""
    import torch

    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": _model_name(),
    }


def _model_name():
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return next((x.partition(":")[2].strip() for x in text.splitlines() if "model name" in x), "")


def cifar_batch(folder):
    """Digits as a CIFAR-10 test batch of its binary version."""
    digits = np.load(ROOT / "purify_audit/images/digits/digits.npz")
    pixels, labels = digits["x"][:16], digits["y"][:16]
    grey = np.round(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    wide = np.repeat(grey.repeat(4, 2).repeat(4, 3), 3, 1)
    folder.mkdir()
    records = np.concatenate([labels.astype(np.uint8)[:, None], wide.reshape(16, -1)], 1)
    (folder / "test_batch.bin").write_bytes(records.tobytes())


def in_own_process(folder, *command):
    """Run a command in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "purify_audit", *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def run_audit(name, folder, run=in_own_process):
    """Run an audit in an empty folder.

    Returns:
        Digests of every section of every file that it leaves; and the compression estimates.
    """
    (folder / "models").symlink_to(ROOT / "models")
    for file in ("purifier.py", "policy.toml"):
        shutil.copy(HERE / file, folder)
    cifar_batch(folder / "cifar")
    before = set(folder.rglob("*"))
    for command in AUDITS[name]:
        done = run(folder, *command, "--quiet")
        assert done.returncode in (0, 3), f"{command}: {done.stdout}{done.stderr}"
    sections, rates = {}, {}
    for path in sorted(set(folder.rglob("*")) - before):
        told = path.relative_to(folder).as_posix()
        if path.suffix == ".json" and ".run/" not in told:
            sections |= {f"{told} {k}": v for k, v in _json_sections(path, folder).items()}
            rates[told] = _rates(path)
        if path.suffix == ".safetensors" and ".run/" not in told:
            sections |= {f"{told} {k}": v for k, v in _array_sections(path).items()}
    return sections, {told: values for told, values in rates.items() if values}


def _rates(path):
    """Estimates that no gradient helped to make, to six digits."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    found = whole.get("estimates", ()) if isinstance(whole, dict) else ()
    measured = (
        e for e in found if "accuracy" not in e["metric"] and "inflation" not in e["metric"]
    )
    return [float(f"{e['value']:.6g}") for e in measured]


def old_names():
    """New name -> old name, of fields and of values that are names."""
    listed = json.loads(RENAMED.read_text(encoding="utf-8"))
    return {new: old for old, new in listed["fields"].items()}, {
        new: old for old, new in listed["values"].items()
    }


def _as_before(value, folder):
    fields, values = old_names()
    if isinstance(value, dict):
        return {
            fields.get(key, key): _as_before(v, folder)
            for key, v in sorted(value.items(), key=lambda item: fields.get(item[0], item[0]))
            if fields.get(key, key) not in _TEXT | _DERIVED
        }
    if isinstance(value, list):
        return [_as_before(v, folder) for v in value]
    if isinstance(value, str):
        for place in (f"{ROOT}/", f"{folder.resolve()}/"):
            value = value.replace(place, "")
        return values.get(value, value)
    return value


def _json_sections(path, folder):
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole = whole if isinstance(whole, dict) else {"list": whole}
    told = {k: json.dumps(v, sort_keys=True) for k, v in _as_before(whole, folder).items()}
    return {name: _short(text.encode()) for name, text in told.items()}


def _array_sections(path):
    fields, values = old_names()
    sections = {}
    for name, array in load_file(path).items():
        parts = [fields.get(part, values.get(part, part)) for part in name.split(".")]
        content = f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
        sections[".".join(parts)] = _short(content)
    with safe_open(path, "np") as file:
        for key, text in (file.metadata() or {}).items():
            told = (
                text if not text.startswith("[") else json.dumps(_as_before(json.loads(text), path))
            )
            sections[f"metadata {fields.get(key, key)}"] = _short(told.encode())
    return sections


def _short(content):
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    made = {}
    for name in AUDITS:
        with tempfile.TemporaryDirectory() as scratch:
            digests, rates = run_audit(name, Path(scratch))
        made[name] = {"digests": digests, "rates": rates}
        print(name, len(digests), sum(map(len, rates.values())))
    text = json.dumps({"environment": environment(), "audits": made}, indent=1)
    RECORDED.write_text(text + "\n", encoding="utf-8")
