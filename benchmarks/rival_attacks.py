"""Attacks of other libraries on aligned purifiers: robust accuracy by network evaluations.

    python -m venv .venv-rivals
    .venv-rivals/bin/pip install --no-deps -r benchmarks/rivals-constraints.txt  # see there
    PYTHONPATH=. .venv-rivals/bin/python benchmarks/rival_attacks.py FOLDER [--seconds N]

FOLDER holds the images and weights of `third_party.py`. A run adds what the output file lacks.

The libraries see the deterministic model of `rival_victims.py`, which counts evaluations. An image
is robust if the defence classifies both it and the library's image correctly under draw 0.
"""

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from json import loads
from pathlib import Path
from typing import Any

import torch
from common import command_line, parser, provenance, torch_machine, write
from rival_victims import (
    AUTOENCODER,
    CIFAR_DDPM,
    DIGITS,
    MNIST_DDPM,
    AlignedModel,
    Victim,
    check,
    victim,
)
from torch import Tensor

from purify_audit.attacks.ball import Ball

LIBRARIES = ("adv-lib", "torchattacks", "foolbox", "pyautoattack", "torch")
Attack = Callable[["AlignedModel", Tensor, Tensor, float, int], Tensor]
Job = tuple[str, tuple[int, ...]]
"""An attack and its numbers of steps; 0: the library's own."""

FIRST: tuple[Job, ...] = (
    ("adv-lib APGD ce", (10, 20, 50, 100)),
    ("adv-lib APGD dlr", (10, 20, 50)),
    ("adv-lib APGD targeted", (10, 20, 50)),
    ("torchattacks APGD ce", (50,)),
    ("torchattacks APGD dlr", (50,)),
    ("torchattacks APGDT", (20,)),
    ("torchattacks PGD", (20, 50)),
    ("foolbox LinfPGD", (20, 40)),
)
SECOND: tuple[Job, ...] = (("AutoAttack standard", (0,)),)
THIRD: tuple[Job, ...] = (
    ("torchattacks AutoAttack standard", (0,)),
    ("adv-lib APGD targeted", (100,)),
    ("adv-lib APGD dlr", (100,)),
    ("adv-lib FMN", (50, 100)),
    ("torchattacks APGD ce", (10, 20, 100)),
    ("torchattacks APGD dlr", (10, 20, 100)),
    ("torchattacks APGDT", (10, 50, 100)),
    ("torchattacks PGD", (10, 100)),
    ("foolbox LinfPGD", (10, 100)),
)
REDUCED: tuple[Job, ...] = (
    ("adv-lib APGD ce", (5, 10, 20)),
    ("adv-lib APGD dlr", (10,)),
    ("adv-lib APGD targeted", (10,)),
    ("torchattacks APGD ce", (10,)),
    ("torchattacks PGD", (10,)),
    ("foolbox LinfPGD", (10,)),
)


def adv_lib(name: str, **options: Any) -> Attack:
    """APGD of Adversarial Library."""

    def run(model: AlignedModel, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        attack = getattr(importlib.import_module("adv_lib.attacks"), name)
        found: Tensor = attack(model, x, y, eps=eps, norm=float("inf"), n_iter=steps, **options)
        return found

    return run


def fmn(model: AlignedModel, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Fast minimum-norm attack of Adversarial Library; the clean image where it needs more."""
    library = importlib.import_module("adv_lib.attacks")
    found: Tensor = library.fmn(model, x, y, norm=float("inf"), steps=steps)
    near = Ball(x, "linf", eps).size(found) <= eps + 1e-6
    return torch.where(near[:, None, None, None], found, x)


def torchattacks(name: str, **options: Any) -> Attack:
    """An attack of torchattacks, with its defaults; PGD with steps of 2.5 eps over their number."""

    def run(model: AlignedModel, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        own = {"steps": steps} if steps else {}
        if name == "PGD":
            own["alpha"] = 2.5 * eps / steps  # type: ignore[assignment]
        attack = getattr(importlib.import_module("torchattacks"), name)
        found: Tensor = attack(model, eps=eps, **own, **options)(x, y)
        return found

    return run


def foolbox(model: AlignedModel, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """LinfPGD of Foolbox with its default step size, eps / 30."""
    library = importlib.import_module("foolbox")
    wrapped = library.PyTorchModel(model.eval(), bounds=(0.0, 1.0), device="cpu")
    found: Tensor = library.attacks.LinfPGD(steps=steps)(wrapped, x, y, epsilons=eps)[1]
    return found


def autoattack(model: AlignedModel, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The standard version: APGD-CE, APGD-T, FAB-T, Square, on what the ones before leave."""
    library = importlib.import_module("pyautoattack.autoattack")
    attack = library.AutoAttack(model, eps=eps, norm="Linf", seed=0, version="standard")
    found: Tensor = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
    return found


ATTACKS: dict[str, Attack] = {
    "adv-lib APGD ce": adv_lib("apgd", loss_function="ce"),
    "adv-lib APGD dlr": adv_lib("apgd", loss_function="dlr"),
    "adv-lib APGD targeted": adv_lib("apgd_targeted", loss_function="dlr", num_targets=9),
    "adv-lib FMN": fmn,
    "torchattacks APGD ce": torchattacks("APGD", loss="ce"),
    "torchattacks APGD dlr": torchattacks("APGD", loss="dlr"),
    "torchattacks APGDT": torchattacks("APGDT"),
    "torchattacks PGD": torchattacks("PGD"),
    "torchattacks AutoAttack standard": torchattacks("AutoAttack", seed=0),
    "foolbox LinfPGD": foolbox,
    "AutoAttack standard": autoattack,
}


def measure(target: Victim, attack: str, steps: int) -> dict[str, object]:
    """One point: an attack of a library with a number of steps."""
    start, model = time.monotonic(), AlignedModel(target)
    torch.manual_seed(0)  # noqa: TID251 - the libraries draw from the global generator
    found = ATTACKS[attack](model, target.x.clone(), target.labels.clone(), target.eps, steps)
    found = found.detach()
    size = Ball(target.x, "linf", target.eps).size(found)
    assert float(size.max()) <= target.eps + 1e-6, f"{attack}: {float(size.max())}"
    assert 0.0 <= float(found.min()) <= float(found.max()) <= 1.0, attack
    robust = target.correct(target.x) & target.correct(found)
    return {
        "attack": attack,
        "steps": steps or None,
        "evaluations_per_image": model.evaluations / len(target.x),
        "robust_accuracy": float(robust.double().mean()),
        "images": len(target.x),
        "unsure_rows": model.unsure,
        "seconds": round(time.monotonic() - start, 1),
        "robust": robust.int().tolist(),
    }


def work_list() -> Iterator[tuple[str, str, int]]:
    """Purifier, attack and steps: first all purifiers, then more attacks, most of them cheap."""
    for jobs, names in (
        (FIRST, (*DIGITS, AUTOENCODER)),
        (REDUCED, (MNIST_DDPM, CIFAR_DDPM)),
        (SECOND, (*DIGITS, AUTOENCODER)),
        (THIRD, (AUTOENCODER, *reversed(DIGITS))),
    ):
        yield from ((name, job, n) for name in names for job, steps in jobs for n in steps)


def main() -> None:
    """Attack as the file lacks, and write it after every attack."""
    flags = parser(__doc__, "rival_attacks.json")
    flags.add_argument("folder", type=Path)
    flags.add_argument("--seconds", type=float, default=float("inf"), help="start nothing later")
    options = flags.parse_args()
    torch.set_num_threads(1)
    start, result, before = time.monotonic(), dict[str, Any](), 0
    with suppress(FileNotFoundError):
        result = loads(options.out.read_text(encoding="utf-8"))
        before = result["seconds"]
    rows: dict[str, Any] = {row["name"]: row for row in result.get("purifiers", [])}
    targets: dict[str, Victim] = {}
    for name, attack, steps in work_list():
        done = rows[name]["points"] if name in rows else []
        if any((p["attack"], p["steps"] or 0) == (attack, steps) for p in done):
            continue
        if time.monotonic() - start > options.seconds:
            break
        if name not in targets:
            with tempfile.TemporaryDirectory() as work:
                targets[name] = victim(name, options.folder, Path(work))
            check(targets[name])
        target, cost = targets[name], targets[name].defence.purifier.evaluations
        if name not in rows:
            clean = float(target.correct(target.x).double().mean())
            rows[name] = {"name": name, "eps": target.eps, "network_evaluations": cost}
            rows[name] |= {"clean_accuracy": clean, "points": []}
        count = (
            len(target.x) if "AutoAttack" not in attack or cost == 1 else 32 if cost <= 5 else 16
        )
        point = measure(target.first(count), attack, steps)
        rows[name]["points"].append(point)
        command = command_line().replace(str(options.folder), "FOLDER")
        origin = provenance(command, torch_machine(), start)
        origin["seconds"] += before
        libraries = {library: version(library) for library in LIBRARIES}
        write(options.out, origin | {"libraries": libraries, "purifiers": list(rows.values())})
        print(name, {key: value for key, value in point.items() if key != "robust"}, flush=True)


if __name__ == "__main__":
    main()
