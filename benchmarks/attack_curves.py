"""Robust accuracy by network evaluations: the portfolio, single runs of PGD, and other libraries.

    python benchmarks/attack_curves.py FOLDER [--out benchmarks/attack_curves.json]

FOLDER holds the images and weights of `third_party.py`; without it only the shipped digits models
are attacked. The purifiers, images and draw are those of `rival_attacks.py`, whose results
`docs/generate.py` draws in the same picture. A run adds what the output file lacks. An independent
attack (`independent`), written without the package's optimisers, then looks for images that the
portfolio left.
"""

import tempfile
import time
from json import loads
from pathlib import Path
from typing import Any

import torch
from common import command_line, parser, provenance, torch_machine, write
from rival_victims import AUTOENCODER, CIFAR_DDPM, DIGITS, MNIST_DDPM, AlignedModel, Victim, victim
from torch import Tensor

from purify_audit.attacks.attack import Targets, attack, attack_objective, easier
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.objective import Defence
from purify_audit.attacks.portfolio import Standing, schedule
from purify_audit.core.noise import Noise, Stream
from purify_audit.models.runner import deterministic
from purify_audit.spec.attack_plan import AttackPlan

STEPS = 400  # of the portfolio; its curve is that of every smaller budget
OLD_STEPS = (20, 100)  # of PGD with two restarts, the former default
BATCH = 16
TARGETED_STEPS = 10


class Counter:
    """Network evaluations so far."""

    def __init__(self) -> None:
        """From zero."""
        self.total = 0

    def __call__(self, evaluations: int) -> None:
        """Count."""
        self.total += evaluations


def counted(target: Victim, counter: Counter) -> Defence:
    """The victim's defence in small micro-batches, counting."""
    old = target.defence
    return Defence(old.purifier, old.classifier, old.device, old.seed, BATCH, counter)


def plan_of(target: Victim, **changes: Any) -> AttackPlan:
    """An attack on the victim."""
    budget = {"draws": 1, "restarts": 1, "held_out": 1, "square_queries": 1, "microbatch": BATCH}
    settings = {"norm": "linf", "eps": (target.eps,), "steps": STEPS} | budget | changes
    return AttackPlan.model_validate(settings)


def point(name: str, evaluations: int, robust: Tensor) -> dict[str, Any]:
    """One point of a curve: evaluations of an image, and which images stand."""
    return {
        "attack": name,
        "evaluations_per_image": evaluations / len(robust),
        "robust_accuracy": float(robust.double().mean()),
        "robust": robust.int().tolist(),
    }


def portfolio_curve(target: Victim) -> tuple[list[dict[str, Any]], Tensor]:
    """The portfolio after every run; and its images."""
    counter, plan = Counter(), plan_of(target)
    on = Targets(target.x, target.labels, target.ids)
    objective = attack_objective(counted(target, counter), on, plan, "linf", target.eps)
    short, points = easier(objective, plan), list[dict[str, Any]]()
    standing = Standing(objective, Ball(target.x, "linf", target.eps), plan.targets)
    for run in schedule(plan.steps, standing.targets, cheaper=short is not None):
        standing.run(run, short)
        robust = (standing.best.best_margins() > 0).all(1)
        points.append(point("portfolio", counter.total, robust) | {"run": run.name})
    return points, standing.result().x


def old_curve(target: Victim) -> list[dict[str, Any]]:
    """The former default: PGD from a warm start and from the image, at several budgets."""
    points = []
    for steps in OLD_STEPS:
        counter, plan = Counter(), plan_of(target, optimiser="pgd", steps=steps, restarts=2)
        on = Targets(target.x, target.labels, target.ids)
        objective = attack_objective(counted(target, counter), on, plan, "linf", target.eps)
        output = attack(objective, Ball(target.x, "linf", target.eps), plan)
        robust = (output.margins > 0).all(1)
        points.append(point("PGD, two restarts", counter.total, robust) | {"steps": steps})
    return points


def independent(target: Victim) -> Tensor:
    """Which images stand, bool [n], under signed steps towards every other class.

    From a random point, 10 steps of a fixed size and 10 of a fifth of it, on the difference of
    logits; unlike the package's attacks in its loss schedule, its starts and its order of classes.
    """
    model, n = AlignedModel(target), len(target.x)
    standing = target.correct(target.x)
    noise = Noise(1, target.ids, (0,) * n, Stream.START)
    classes = target.defence.classifier.classes
    for other in range(1, classes):
        goal = (target.labels + other) % classes
        spread = 2 * noise.uniform(other, tuple(target.x.shape[1:])) - 1
        z = target.x + target.eps * spread
        for step in range(2 * TARGETED_STEPS):
            leaf = z.clamp(0, 1).requires_grad_()
            with torch.enable_grad():
                logits = model(leaf)
                own, wanted = logits[range(n), target.labels], logits[range(n), goal]
                rise = (wanted - own).sum()
            (gradient,) = torch.autograd.grad(rise, leaf)
            standing &= logits.argmax(1) == target.labels
            size = target.eps / (4 if step < TARGETED_STEPS else 20)
            z = torch.clamp(
                leaf.detach() + size * gradient.sign(), target.x - target.eps, target.x + target.eps
            )
        standing &= target.correct(z.clamp(0, 1))
    return standing


def measured(name: str, target: Victim) -> dict[str, Any]:
    """All curves of a victim."""
    points, x = portfolio_curve(target)
    assert bool((Ball(target.x, "linf", target.eps).size(x) <= target.eps + 1e-6).all())
    ours, other = target.correct(x) & target.correct(target.x), independent(target)
    return {
        "name": name,
        "eps": target.eps,
        "images": len(target.x),
        "network_evaluations": target.defence.purifier.evaluations,
        "points": points + old_curve(target),
        "independent": {
            "robust_accuracy": float(other.double().mean()),
            "broke_of_ours": int((ours & ~other).sum()),
            "ours_broke_of_its": int((other & ~ours).sum()),
        },
    }


def main() -> None:
    """Attack and write, purifier by purifier."""
    flags = parser(__doc__, "attack_curves.json")
    flags.add_argument("folder", type=Path, nargs="?")
    options = flags.parse_args()
    start, names = time.monotonic(), [*DIGITS, AUTOENCODER]
    names += [] if options.folder is None else [MNIST_DDPM, CIFAR_DDPM]
    before = loads(options.out.read_text()) if options.out.exists() else {"purifiers": []}
    results: list[dict[str, Any]] = before["purifiers"]
    names = [n for n in names if n not in {r["name"] for r in results}]
    spent = before.get("seconds", 0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work, deterministic(gradients=True):
        for name in names:
            results.append(measured(name, victim(name, options.folder or Path(), Path(work))))
            last = [p for p in results[-1]["points"] if p["attack"] == "portfolio"][-1]
            line = {k: last[k] for k in ("evaluations_per_image", "robust_accuracy")}
            print(name, line, results[-1]["independent"], flush=True)
            origin = provenance(command_line(), torch_machine(), start - spent)
            write(options.out, {**origin, "steps": STEPS, "purifiers": results})


if __name__ == "__main__":
    main()
