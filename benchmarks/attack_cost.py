"""Cost of an exact gradient: time relative to the bare network, and peak memory by chain length.

    python benchmarks/attack_cost.py [--out benchmarks/attack_cost.json]

Time: exact gradients through the digits DDPM and the classifier, alternating in one process with
what they cannot do without, two forward passes and one backward pass of the bare network for
every step of the chain. Memory: peak resident memory of one gradient in a process of its own.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from common import ROOT, command_line, parser, provenance, torch_machine, write

from purify_audit.attacks.objective import Defence, Objective
from purify_audit.images.image_set import load_images
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.runner import deterministic
from purify_audit.spec.card import DiffusionCard

CPU = torch.device("cpu")
STEPS, BATCHES = (10, 50, 200), (128, 512)


def setting(steps: int, batch: int) -> tuple[Objective, torch.Tensor, DiffusionPurifier]:
    """A chain of so many steps behind the classifier, and so many digits."""
    checkpoint = read_checkpoint(ROOT / "models" / "digits-ddpm.safetensors")
    judge = read_checkpoint(ROOT / "models" / "digits-classifier.safetensors")
    assert isinstance(checkpoint.card, DiffusionCard)
    sampler = {"kind": "ddpm", "steps": steps}
    card = checkpoint.card.model_dump() | {"t_star": 200, "sampler": sampler}
    purifier = load_purifier(checkpoint, CPU, DiffusionCard.model_validate(card))
    assert isinstance(purifier, DiffusionPurifier)
    images = load_images("digits:all")
    assert images.labels is not None
    x = torch.from_numpy(images.pixels[:batch].copy())
    labels = torch.from_numpy(images.labels[:batch].copy())
    defence = Defence(purifier, load_classifier(judge, CPU), CPU, 0, batch)
    ids = tuple(images.ids[:batch].tolist())
    return Objective(defence, ids, labels, lambda step: (0,)), x, purifier


def bare(purifier: DiffusionPurifier, x: torch.Tensor, steps: int) -> None:
    """Two forward passes and one backward pass of the network for every step."""
    time_ = torch.full((len(x),), 7.0)
    one = torch.ones_like(x)
    for _ in range(steps):
        with torch.no_grad():
            purifier.network(x, time_)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(purifier.network(leaf, time_), leaf, one)


def ratios(rounds: int, steps: int, batch: int) -> list[float]:
    """Time of a gradient over that of its bare passes, round by round."""
    objective, x, purifier = setting(steps, batch)
    found = []
    with deterministic(gradients=True):
        for n in range(rounds + 1):
            start = time.perf_counter()
            bare(purifier, x, steps)
            middle = time.perf_counter()
            objective.loss_and_grad(x, 0)
            if n:  # the first round warms up
                found.append((time.perf_counter() - middle) / (middle - start))
    return found


def peak(steps: int, batch: int) -> float:
    """MiB that one gradient adds to the peak of this process after a smaller one."""
    small, x_small, _ = setting(2, 2)
    with deterministic(gradients=True):
        small.loss_and_grad(x_small, 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        objective, x, _ = setting(steps, batch)
        objective.loss_and_grad(x, 0)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Measure and write."""
    flags = parser(__doc__, "attack_cost.json")
    flags.add_argument("--rounds", type=int, default=9)
    flags.add_argument("--peak", nargs=2, type=int, help="print one peak and end")
    options = flags.parse_args()
    if options.peak:
        return print(peak(*options.peak))
    found = ratios(options.rounds, steps=50, batch=64)
    memory = {}
    for batch in BATCHES:
        for steps in STEPS:
            command = [sys.executable, __file__, "--peak", str(steps), str(batch)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            memory[f"{batch} images, {steps} steps"] = round(float(done.stdout), 1)
            print(f"{batch} images, {steps} steps: {done.stdout.strip()} MiB", flush=True)
    result = {
        **provenance(command_line(), torch_machine()),
        "gradient_over_bare_passes": {
            "median": statistics.median(found),
            "all": [round(ratio, 4) for ratio in found],
        },
        "peak_mib": memory,
    }
    write(options.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
