"""Time against the bare network and against what people do today; memory against the chain."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scale_rivals import (
    CPU,
    ROOT,
    Linear,
    address,
    batched_changes,
    chain,
    graph_gradient,
    pictures,
    serial_changes,
    serial_gradient,
)
from scale_timing import compared, figure, rounded, seconds, spread
from torch import Tensor

from purify_audit.attack.objective import Defence, Objective
from purify_audit.audit import Watch, audit
from purify_audit.compression import measure_compression, random_cells, rows_per_image
from purify_audit.images import ImageSet
from purify_audit.plan import AuditPlan
from purify_audit.preflight import preflight
from purify_audit.purifiers.diffusion import DiffusionPurifier
from purify_audit.runtime import Runner, deterministic
from purify_audit.subject import Subject, prepare

SIZES = (32, 64, 128)  # of batches among which the best is looked for
BARE_EVERY = 4  # micro-batches between two looks at the bare network
SEED = 0


def bare_pass(purifier: DiffusionPurifier, batch: int) -> None:
    """One forward pass of the network."""
    x = torch.full((batch, *purifier.image.shape), 0.3)
    with torch.inference_mode():
        purifier.network(x, torch.full((batch,), 30.0))


def per_image(purifier: DiffusionPurifier, rounds: int) -> dict[int, list[float]]:
    """Seconds of a forward pass for one image by batch size, the sizes taking turns."""
    found: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            passes = max(SIZES) // size
            taken = sum(seconds(partial(bare_pass, purifier, size)) for _ in range(passes))
            found[size].append(taken / max(SIZES))
    return {size: values[1:] for size, values in found.items()}


def audit_over_bare(subject: Subject) -> dict[str, float]:
    """One audit, with bare passes made between its micro-batches and taken out of its time.

    Returns:
        `whole`: time of the audit over that of the bare passes it must make, at their best batch
        size; `rows`: the same without preflight; `preflight`: its time in such passes.
    """
    purifier, times = subject.purifier, {size: list[float]() for size in SIZES}
    assert isinstance(purifier, DiffusionPurifier)
    inside, ticks = [0.0], [0]

    def look(rows: int) -> None:
        ticks[0] += 1
        if ticks[0] % BARE_EVERY:
            return
        start = time.perf_counter()
        for size in SIZES:
            times[size].append(seconds(partial(bare_pass, purifier, size)) / size)
        inside[0] += time.perf_counter() - start

    before = seconds(partial(_preflight, subject))
    whole = seconds(partial(audit, subject, Watch(look), True)) - inside[0]
    best = min(float(np.mean(values)) for values in times.values())
    needed = len(subject.images) * rows_per_image(subject.plan) * purifier.evaluations
    return {
        "whole": whole / (needed * best),
        "rows": (whole - before) / (needed * best),
        "preflight": before / best,
    }


def _preflight(subject: Subject) -> None:
    with deterministic():
        runner = Runner(subject.purifier, CPU, subject.plan.seed, subject.plan.microbatch)
        preflight(runner, subject.images)


def audits(name: str, images: int, sampler: dict[str, object], rounds: int) -> dict[str, Any]:
    """`audit_over_bare` with the default probes, at the default micro-batch and at half of it."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        asked: dict[str, object] = {"checkpoint": str(ROOT / "models" / f"{name}.safetensors")}
        asked |= {"images": images, "data": source(name, images, Path(folder)), "sampler": sampler}
        subjects = {b: prepare(asked | {"microbatch": b}, CPU) for b in (128, 64)}
        purifier = subjects[64].purifier
        assert isinstance(purifier, DiffusionPurifier)
        parts: dict[int, list[dict[str, float]]] = {size: [] for size in subjects}
        for made in range(2 * rounds):
            wide = any(spread([p["whole"] for p in ps]) > 0.3 for ps in parts.values() if ps)
            if made >= rounds and not wide:
                break
            for size, subject in subjects.items():
                parts[size].append(audit_over_bare(subject))
        for size, made_ in parts.items():
            columns = {part: figure([m[part] for m in made_]) for part in made_[0]}
            found[f"microbatch {size}"] = columns
        each = rows_per_image(subjects[64].plan) * purifier.evaluations
        bare = {n: figure([1e3 * v for v in vs]) for n, vs in per_image(purifier, 8).items()}
    about = {"images": images, "sampler": sampler, "passes_per_image": each, "bare_ms": bare}
    return about | found


def source(name: str, images: int, folder: Path) -> str:
    """Images for a model: the bundled ones, or a file of grey noise."""
    purifier = chain(name, 20, 1)
    if purifier.image.shape == (1, 8, 8):
        return "digits"
    path = folder / "images.npz"
    np.savez(path, x=np.moveaxis(pictures(purifier, images).pixels, 1, 3))
    return str(path)


def aim_at(purifier: DiffusionPurifier, images: ImageSet, draws: int, size: int) -> Objective:
    """The tool's attack objective behind a linear classifier."""
    assert images.labels is not None
    defence = Defence(purifier, Linear(purifier), CPU, SEED, size)
    labels = torch.from_numpy(images.labels.copy())
    aligned = tuple(range(draws))
    return Objective(defence, tuple(images.ids.tolist()), labels, lambda step: aligned)


def climb(aim: Objective, x: Tensor) -> None:
    """One gradient step's look and gradient."""
    with deterministic(gradients=True):
        aim.climb(x, 0)


def gradient_over_bare(name: str, steps: int, batch: int, rounds: int) -> dict[str, Any]:
    """A gradient over two forward passes and one backward pass for every step of the chain."""
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

    aim = aim_at(purifier, images, 1, batch)
    found = compared(rounds, partial(climb, aim, x), bare)
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


def serial_eot(name: str, steps: int, count: tuple[int, int], rounds: int) -> dict[str, Any]:
    """A serial attack step over the tool's, on as many rows as the chain has steps.

    The rival keeps the graph of a whole chain, so one row of it takes the memory of `steps` rows
    of one step: the tool's micro-batch. `draw by draw` takes all images at once, as AutoAttack's
    wrapper does, and `images` times the memory.
    """
    n, draws = count
    purifier = chain(name, 60, steps)
    images = pictures(purifier, n)
    x = torch.from_numpy(images.pixels.copy())
    ours = partial(climb, aim_at(purifier, images, draws, steps), x)
    parts = purifier, Linear(purifier)
    rivals = {
        "row by row, equal memory": partial(serial_gradient, parts, SEED, images, draws),
        "draw by draw, all images": partial(serial_gradient, parts, SEED, images, draws, n),
    }
    found: dict[str, Any] = {"images": n, "draws": draws, "steps": steps}
    found |= {told: compared(rounds, run, ours) for told, run in rivals.items()}
    for told, which in (("ours", "ours"), ("row by row, equal memory", "graph")):
        rows = steps if which == "ours" else 1
        found.setdefault("peak_mib", {})[told] = peak(which, name, steps, rows)
    return found


def graphs(name: str, batch: int, steps: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A graph through the whole chain over the tool's gradient: time, and memory of both."""
    rows = []
    for length in steps:
        purifier = chain(name, 60, length)
        images = pictures(purifier, batch)
        assert images.labels is not None
        on = torch.from_numpy(images.pixels.copy()), torch.from_numpy(images.labels.copy())
        noise = address(SEED, images.ids.tolist(), [0] * batch)
        rival = partial(graph_gradient, purifier, Linear(purifier), on, noise)
        ours = partial(climb, aim_at(purifier, images, 1, batch), on[0])
        mib = {which: peak(which, name, length, batch) for which in ("ours", "graph")}
        found = {"steps": length, "batch": batch, "peak_mib": mib}
        rows.append(found | {"graph_over_ours": compared(rounds, rival, ours)})
    return rows


def peak(which: str, name: str, steps: int, batch: int) -> float:
    """MiB that one gradient adds to the peak of a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("scale.py")), "--peak"]
    command += [which, name, str(steps), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=single_thread())
    return rounded(float(done.stdout))


def own_peak(which: str, name: str, steps: int, batch: int) -> float:
    """MiB that one gradient adds to the peak of this process, after a much smaller one."""
    for length, size in ((1, 1), (steps, batch)):
        purifier = chain(name, 60, length)
        images = pictures(purifier, size)
        before = _resident_peak()
        if which == "ours":
            x = torch.from_numpy(images.pixels.copy())
            climb(aim_at(purifier, images, 1, size), x)
        else:
            serial_gradient((purifier, Linear(purifier)), SEED, images, 1, size)
    return _resident_peak() - before


def _resident_peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def single_thread() -> dict[str, str]:
    """The environment of a child that computes on one thread, with no part of anything."""
    return {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {
        "OMP_NUM_THREADS": "1"
    }
