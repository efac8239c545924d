"""Cost of a gradient, comparison with the baselines, and memory by chain length."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scale_baselines import (
    CPU,
    Linear,
    address,
    batched_changes,
    chain,
    graph_gradient,
    pictures,
    serial_changes,
    serial_gradient,
)
from scale_timing import compared, rounded
from torch import Tensor

from purify_audit.attacks.activation_memory import ActivationMemory
from purify_audit.attacks.objective import Defence, Objective
from purify_audit.compression.measure import measure_compression, random_cells
from purify_audit.images.image_set import ImageSet
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.runner import Runner, deterministic
from purify_audit.spec.audit_plan import AuditPlan

SEED = 0


def aim_at(
    purifier: DiffusionPurifier,
    images: ImageSet,
    draws: int,
    size: int,
    budget: int | None = None,
) -> Objective:
    """The tool's attack objective behind a linear classifier, with a budget of kept graphs."""
    assert images.labels is not None
    graphs = ActivationMemory(budget)
    defence = Defence(purifier, Linear(purifier), CPU, SEED, size, graphs=graphs)
    labels = torch.from_numpy(images.labels.copy())
    aligned = tuple(range(draws))
    return Objective(defence, tuple(images.ids.tolist()), labels, lambda step: aligned)


def climb(objective: Objective, x: Tensor) -> None:
    """One gradient step's look and gradient."""
    with deterministic(gradients=True):
        objective.loss_and_grad(x, 0)


def warm(objective: Objective, x: Tensor) -> partial[None]:
    """A gradient step to be timed, after the first one, which keeps no graphs."""
    climb(objective, x)
    return partial(climb, objective, x)


def gradient_over_bare(name: str, steps: int, batch: int, rounds: int) -> dict[str, Any]:
    """A gradient over two forward passes and one backward pass for every step of the chain.

    Told as it is taken in the memory that is free, and with no graph kept.
    """
    purifier = chain(name, 60, steps)
    images = pictures(purifier, batch)
    x = torch.from_numpy(images.pixels.copy())
    t, one = torch.full((batch,), 7.0), torch.ones_like(x)

    def bare() -> None:
        for _ in range(steps):
            with torch.no_grad():
                purifier.network(x, t)
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(purifier.network(leaf, t), leaf, one)

    def forward() -> None:
        with torch.no_grad():
            for _ in range(steps):
                purifier.network(x, t)

    found = compared(rounds, warm(aim_at(purifier, images, 1, batch), x), bare)
    found["none_kept"] = compared(rounds, warm(aim_at(purifier, images, 1, batch, 0), x), bare)
    forwards = compared(max(2, rounds // 2), bare, forward)
    return found | {"steps": steps, "batch": batch, "bare_over_forward": forwards}


def serial_rate(name: str, steps: int, count: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Rows of a compression rate by serial loops, over the tool's time for the same rows."""
    n, draws, directions = count
    purifier = chain(name, 60, steps)
    images = pictures(purifier, n)
    plan = AuditPlan.model_validate(
        {
            **{"checkpoint": name, "data": images.source, "images": n, "norm": "linf"},
            **{"eps": (0.05,), "probes": ({"kind": "sign"},), "draws": draws},
            **{"directions": directions, "seed": SEED, "microbatch": 64},
        }
    )
    (cell,) = random_cells(images, plan, None)
    runner = Runner(purifier, CPU, SEED, 64)

    def ours() -> None:
        with deterministic():
            measure_compression(runner, images, plan)

    found: dict[str, Any] = {"images": n, "draws": draws, "directions": directions, "steps": steps}
    for told, rival in (("row by row", serial_changes), ("image by image", batched_changes)):
        run = partial(rival, purifier, SEED, images, cell.attacked, draws)
        found[told] = compared(rounds, run, ours)
    return found


def serial_eot(name: str, steps: int, count: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """A serial attack step over the tool's, on as many rows as the chain has steps.

    The rival keeps the graph of a whole chain, so one row of it takes about the memory of `steps`
    rows of one step, the tool's micro-batch, or less; `size` rows at a time make the two equal as
    measured, where the tool keeps no graphs; `graphs kept` is with those that free memory holds.
    `draw by draw` takes all images at once, as AutoAttack's wrapper does, and the memory.

    Args:
        name: of the network.
        steps: of the chain.
        count: images, draws, and rows of the rival at a time.
        rounds: see `compared`.
    """
    n, draws, size = count
    purifier = chain(name, 60, steps)
    images = pictures(purifier, n)
    x = torch.from_numpy(images.pixels.copy())
    none, all_ = (warm(aim_at(purifier, images, draws, steps, b), x) for b in (0, None))
    parts = purifier, Linear(purifier)
    rivals = {
        "serial, equal memory": partial(serial_gradient, parts, SEED, images, draws, size),
        "draw by draw, all images": partial(serial_gradient, parts, SEED, images, draws, n),
    }
    found: dict[str, Any] = {"images": n, "draws": draws, "steps": steps, "rows": size}
    found |= {told: compared(rounds, run, none) for told, run in rivals.items()}
    bare = (
        partial(_bare_passes, purifier, (n * draws, rows), twice)
        for rows, twice in ((size, False), (steps, True))
    )
    found["bare passes alone"] = compared(rounds, *bare)
    found["graphs kept"] = {told: compared(rounds, run, all_) for told, run in rivals.items()}
    found["graphs kept"]["peak_mib"] = peak("kept", name, steps, steps)
    for told, which in (("ours", "ours"), ("serial, equal memory", "graph")):
        rows = steps if which == "ours" else size
        found.setdefault("peak_mib", {})[told] = peak(which, name, steps, rows)
    return found


def _bare_passes(purifier: DiffusionPurifier, rows: tuple[int, int], twice: bool) -> None:
    """Forward and backward pass of one step for so many rows, so many at a time; forward twice."""
    count, size = rows
    t, one = torch.full((size,), 7.0), torch.ones(size, *purifier.image.shape)
    for _ in range(0, count, size):
        if twice:
            with torch.no_grad():
                purifier.network(one, t)
        leaf = one.clone().requires_grad_()
        torch.autograd.grad(purifier.network(leaf, t), leaf, one)


def graphs(name: str, batch: int, steps: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A graph through the whole chain over the tool's gradient: time, and memory of all.

    `ours` keeps no graph, `kept` those that free memory holds.
    """
    rows = []
    for length in steps:
        purifier = chain(name, 60, length)
        images = pictures(purifier, batch)
        assert images.labels is not None
        on = torch.from_numpy(images.pixels.copy()), torch.from_numpy(images.labels.copy())
        noise = address(SEED, images.ids.tolist(), [0] * batch)
        rival = partial(graph_gradient, purifier, Linear(purifier), on, noise)
        ours, kept = (warm(aim_at(purifier, images, 1, batch, b), on[0]) for b in (0, None))
        mib = {which: peak(which, name, length, batch) for which in ("ours", "kept", "graph")}
        found = {"steps": length, "batch": batch, "peak_mib": mib}
        found |= {"graph_over_ours": compared(rounds, rival, ours)}
        rows.append(found | {"graph_over_kept": compared(rounds, rival, kept)})
    return rows


def peak(which: str, name: str, steps: int, batch: int) -> float:
    """MiB that one gradient adds to the peak of a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("scale.py")), "--peak"]
    command += [which, name, str(steps), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=single_thread())
    return rounded(float(done.stdout))


def own_peak(which: str, name: str, steps: int, batch: int) -> float:
    """MiB that one gradient adds to the peak of this process, after a much smaller one."""
    before = 0.0
    for length, size in ((1, 1), (steps, batch)):
        purifier = chain(name, 60, length)
        images = pictures(purifier, size)
        before = _resident_peak()
        if which in ("ours", "kept"):
            x = torch.from_numpy(images.pixels.copy())
            warm(aim_at(purifier, images, 1, size, 0 if which == "ours" else None), x)()
        else:
            serial_gradient((purifier, Linear(purifier)), SEED, images, 1, size)
    return _resident_peak() - before


def _resident_peak() -> float:
    """MiB; not getrusage's, which begins with the peak of the process that forked this one."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def single_thread() -> dict[str, str]:
    """The environment of a child that computes on one thread, with no part of anything."""
    return {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {
        "OMP_NUM_THREADS": "1"
    }
