"""Audits of third-party purifiers, and of the shipped ones for CIFAR-10.

    python benchmarks/third_party.py FOLDER [NAME ...] [--out benchmarks/third_party.json]

FOLDER holds the images and weights; none of them is part of this repository. A run of some names
replaces their rows and keeps the others.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from common import ROOT, interval, parser, torch_machine, write

from purify_audit.report.schema import Report, read_report

CIFAR = ("cifar10_test_lossless_1178.npz", "8/255", "0:1000")
MNIST = ("mnist_t10k-images-idx3-ubyte.gz", "0.3", "0:10000")


@dataclass(frozen=True)
class Audit:
    """A purifier before a classifier.

    Attributes:
        purifier: weights in FOLDER with the card to attach, a shipped model, or code.
        classifier: weights in FOLDER with the card to attach.
        images: source, radius (l-inf) and ids.
        options: of `verify`.
    """

    purifier: tuple[str, ...]
    classifier: tuple[str, str]
    images: tuple[str, str, str]
    options: tuple[str, ...] = ()


RESNET20 = ("cifar10_resnet20.safetensors", "cifar10-resnet20.json")
RESNET56 = ("cifar10_resnet56.safetensors", "cifar10-resnet56.json")
LENET = ("mnist_lenet5_clntrained.safetensors", "mnist-lenet5.json")
DDPM_MNIST = "ddpm_mnist.safetensors"

AUDITS = {
    "autoencoder": Audit(
        ("cifar10_autoencoder_chenjie.safetensors", "cifar10-autoencoder.json"), RESNET20, CIFAR
    ),
    "dncnn": Audit(
        ("dncnn_25_gray.safetensors", "dncnn-25-gray-cifar10.json"),
        RESNET20,
        CIFAR,
        ("--images", "32", "--steps", "5"),
    ),
    "mnist-ddpm": Audit(
        (
            "--purifier",
            "examples/mnist_ddpm.py:purifier",
            "--arg",
            f"weights={DDPM_MNIST}",
            "--arg",
            "t_star=200",
            "--arg",
            "steps=10",
        ),
        LENET,
        MNIST,
    ),
    "our-autoencoder": Audit(("cifar10-autoencoder.safetensors",), RESNET56, CIFAR),
    "our-ddpm": Audit(
        ("cifar10-ddpm.safetensors",), RESNET56, CIFAR, ("--images", "32", "--steps", "5")
    ),
}


def run(name: str, folder: Path, work: Path) -> dict[str, object]:
    """Audit one purifier with the command line, and keep what its report says."""
    audit, out = AUDITS[name], work / f"{name}.json"
    judge = attach(audit.classifier, folder, work)
    source, eps, ids = audit.images
    command = ["verify", *purifier(audit, folder, work), "--attack", "--classifier", judge]
    command += ["--data", str(folder / source), "--ids", ids, "--eps", eps, *audit.options]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "purify_audit", *command, "--out", str(out), "--quiet"],
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    if done.returncode not in (0, 3):
        sys.exit(f"{name}: exit code {done.returncode}")
    told = (
        " ".join(command).replace(f"{folder}/", "").replace(f"{work}/", "").replace(f"{ROOT}/", "")
    )
    row = {"name": name, "command": f"purify-audit {told}", "date": date.today().isoformat()}
    return row | {"seconds": round(time.monotonic() - start)} | numbers(read_report(out))


def purifier(audit: Audit, folder: Path, work: Path) -> list[str]:
    """The purifier as `verify` takes it."""
    first, *rest = audit.purifier
    if first.startswith("-"):
        return [text.replace(DDPM_MNIST, str(folder / DDPM_MNIST)) for text in audit.purifier]
    return [attach((first, rest[0]), folder, work)] if rest else [str(ROOT / "models" / first)]


def attach(model: tuple[str, str], folder: Path, work: Path) -> str:
    """The native checkpoint of weights and a card."""
    weights, card = model
    out = work / weights
    if not out.exists():
        subprocess.run(
            [
                *(sys.executable, "-m", "purify_audit", "attach", str(folder / weights)),
                *(str(ROOT / "examples" / card), str(out)),
            ],
            check=True,
        )
    return str(out)


def numbers(report: Report) -> dict[str, object]:
    """What the table shows: value and interval of each estimate it names."""
    rates = {e.probe: e for e in report.estimates if e.metric == "compression_rate"}
    fields: dict[str, object] = {
        "images": len(report.data.ids),
        "evaluations": None if report.run is None else report.run.evaluations,
        "findings": [f.code for f in report.findings],
    }
    for e in report.estimates:
        if e.probe in ("aligned", "fresh", "bare"):
            fields[f"{e.probe}/{e.metric}"] = interval(e)
        elif e.metric in ("anchor_accuracy", "clean_accuracy"):
            fields[e.metric] = interval(e)
    for metric in ("compression_rate", "unaligned_ratio", "randomness_share"):
        for probe, at in rates.items():
            if (e := report.find(metric, "l2", at)) is not None:
                fields[f"{metric}_{probe}"] = interval(e)
    return fields


def main() -> None:
    """Audit and write."""
    flags = parser(__doc__, "third_party.json")
    flags.add_argument("folder", type=Path)
    flags.add_argument("names", nargs="*", default=list(AUDITS))
    options = flags.parse_args()
    kept = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = {row["name"]: row for row in kept}
    machine = torch_machine()
    with tempfile.TemporaryDirectory() as work:
        for name in options.names:
            rows[name] = run(name, options.folder.resolve(), Path(work)) | {"machine": machine}
            ordered = [rows[n] for n in AUDITS if n in rows]
            write(options.out, {"rows": ordered})
            print(json.dumps(rows[name], indent=1), flush=True)


if __name__ == "__main__":
    main()
