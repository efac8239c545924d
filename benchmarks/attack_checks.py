"""Power of the attack's checks: how often they detect a planted weakness, and raise a false alarm.

    python benchmarks/attack_checks.py [--repeats 8] [--images 32] [--out FILE]

Every weakness is planted in whole attacks on 32 digits, `--repeats` times with other images, draws
and random starts. "Detected" is a finding of a warning or an error; "told" includes information.
The cheats are those of `tests/support/cheats.py`.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from common import CLASSIFIER, DDPM, ROOT, command_line, parser, provenance, torch_machine, write

sys.path += [str(ROOT / "tests" / "support")]

import cheats
from subjects import CPU, subject_for

from purify_audit.audit.attack_report import run_attack
from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.result import AuditResult
from purify_audit.audit.subject import Subject
from purify_audit.images.image_set import ImageSet, load_images
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.protocols import Purifier
from purify_audit.spec.card import DiffusionCard

ATTACK = {
    "norm": "linf",
    "eps": (0.2,),
    "steps": 60,
    "draws": 1,
    "restarts": 1,
    "held_out": 2,
    "fresh_draws": 4,
    "fresh_steps": 4,
    "square_queries": 100,
    "microbatch": 16,
}
PLAIN: dict[str, Any] = {"optimiser": "pgd", "warm_start": False}
HONEST = "honest defence, portfolio of 60 steps"

Make = Callable[[], Purifier]


def one_step() -> Purifier:
    """The digits DDPM in one step from t* = 60: an honest purifier without a cheaper version."""
    checkpoint = read_checkpoint(DDPM)
    card = checkpoint.card.model_dump() | {"t_star": 60, "sampler": {"kind": "one-step"}}
    return load_purifier(checkpoint, CPU, DiffusionCard.model_validate(card))


WEAKNESSES: dict[str, tuple[Make, dict[str, Any]]] = {
    HONEST: (one_step, {}),
    "too few steps: PGD-5": (one_step, PLAIN | {"steps": 5}),
    "too few steps: a portfolio of 5": (one_step, {"steps": 5, "targets": 0}),
    "a missing target: PGD-60 without targets": (one_step, PLAIN | {"steps": 60}),
    "steps too small: PGD-60 from 0.005 of the radius": (
        one_step,
        PLAIN | {"steps": 60, "step_size": 0.005},
    ),
    "a weak loss: cross-entropy, PGD-20": (one_step, PLAIN | {"steps": 20, "loss": "ce"}),
    "a detached purifier": (cheats.Detached, {}),
    "a purifier detached by half": (cheats.HalfDetached, {}),
    "quantised output": (cheats.Quantised, {}),
    "a shattered gradient": (cheats.Shattered, {}),
    "a negated gradient": (cheats.NegatedGradient, {}),
    "gradients of another draw": (cheats.OtherInGradMode, {}),
    "a true gradient in float64 only": (cheats.TrueInDouble, {}),
    "a true gradient at values of the pixel grid only": (cheats.TrueOnTheGrid, {}),
    "memory of calls": (cheats.CountsCalls, {}),
}


def subject(make: Make, images: ImageSet, seed: int, changes: dict[str, Any]) -> Subject:
    """An audit of a purifier on some digits."""
    checkpoint = read_checkpoint(CLASSIFIER)
    judge = (checkpoint, load_classifier(checkpoint, CPU))
    attack = ATTACK | changes
    ball = {"eps": attack["eps"], "norm": attack["norm"]}
    settings = {"draws": 2, "directions": 2, "microbatch": 64, "seed": seed} | ball
    return subject_for(make(), images, judge=judge, attack=attack, **settings)


def tried(make: Make, images: ImageSet, seed: int, changes: dict[str, Any]) -> AuditResult:
    """A whole attack, also of what preflight would have stopped."""
    of = subject(make, images, seed, changes)
    return run_attack(of, run_compression(of, measure_anyway=True))


def row(name: str, repeats: int, count: int) -> dict[str, Any]:
    """How often each finding appears."""
    make, changes = WEAKNESSES[name]
    digits, warned, told = load_images("digits"), Counter[str](), Counter[str]()
    main, union, detected = list[float](), list[float](), 0
    for repeat in range(repeats):
        start = 32 * repeat % (len(digits) - count)
        result = tried(make, digits.select(list(range(start, start + count))), repeat, changes)
        found = [f for f in result.report.findings if f.code.startswith("PA3")]
        found = [f for f in found if f.code not in ("PA309", "PA310", "PA312")]
        told.update({f.code for f in found})
        codes = {f.code for f in found if f.severity != "info"}
        warned.update(codes)
        detected += bool(codes)
        attack = result.report.attack
        assert attack is not None, "the attack was run"
        if attack.convergence is not None:
            main.append(attack.convergence.robust_accuracy)
        estimates = (e for e in result.report.estimates if e.probe == "aligned")
        union.append(next(e.value for e in estimates if e.metric == "aligned_robust_accuracy"))
    return {
        "weakness": name,
        "repeats": repeats,
        "detected": detected,
        "warnings": dict(sorted(warned.items())),
        "told": dict(sorted(told.items())),
        "robust_accuracy_of_the_main_attack": sum(main) / max(1, len(main)),
        "robust_accuracy": sum(union) / len(union),
    }


def main() -> None:
    """Plant, attack, and write."""
    flags = parser(__doc__, "attack_checks.json")
    flags.add_argument("--repeats", type=int, default=8)
    flags.add_argument("--images", type=int, default=32)
    options = flags.parse_args()
    torch.set_num_threads(1)
    start, rows = time.monotonic(), []
    for name in WEAKNESSES:
        rows.append(row(name, options.repeats, options.images))
        print(rows[-1], flush=True)
        origin = provenance(command_line(), torch_machine(), start)
        settings = {"attack": ATTACK, "images": options.images, "rows": rows}
        write(options.out, {**origin, **settings})


if __name__ == "__main__":
    main()
