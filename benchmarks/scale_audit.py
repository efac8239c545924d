"""Time of an audit relative to the forward passes that it needs."""

import cProfile
import pstats
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scale_baselines import CPU, ROOT, chain, pictures
from scale_cost import single_thread
from scale_timing import SPREAD, figure, rounded, seconds, spread
from torch import Tensor, nn

from purify_audit.audit.allocator import hold_freed_memory
from purify_audit.audit.compression_run import AuditResult, groups, run_compression
from purify_audit.audit.postchecks import recheck
from purify_audit.audit.result import Progress
from purify_audit.audit.subject import Subject, prepare
from purify_audit.compression.measure import padded_rows, rows_per_image
from purify_audit.compression.preflight import preflight
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.runner import Runner, deterministic

SIZES = (16, 32, 64, 128, 256)  # of batches among which the best is looked for
EVERY = 20  # calls of the network between two looks at the bare one


class Sampled(nn.Module):
    """A network between whose calls bare passes are made, whose time is kept apart.

    Attributes:
        network: what is called.
        sizes: of the batches of bare passes.
        times: seconds of a bare pass for one image, by size.
        inside: seconds of all bare passes.
    """

    def __init__(self, network: nn.Module, sizes: tuple[int, ...]) -> None:
        """Nothing is measured yet."""
        super().__init__()
        self.network, self.sizes = network, sizes
        self.times: dict[int, list[float]] = {size: [] for size in sizes}
        self.inside, self._calls = 0.0, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The network; after every so many calls, a bare pass of each size."""
        y: Tensor = self.network(x, t)
        self._calls += 1
        if self._calls % EVERY == 0:
            begun = time.process_time()
            for size in self.sizes:
                some = x[:1].expand(size, *x.shape[1:]).contiguous()
                told = t[:1].expand(size).contiguous()
                self.times[size].append(seconds(partial(self.network, some, told)) / size)
            self.inside += time.process_time() - begun
        return y


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


def audit_over_bare(subject: Subject, best: int) -> dict[str, float]:
    """One audit, with bare passes made between those of its network and taken out of its time.

    Args:
        subject: what is audited.
        best: the batch size at which the bare network is quickest; it is tried beside the audit's.

    Returns:
        `whole`: time of the audit over that of the bare passes it must make, at the better size;
        `rows`: the same without preflight and the replay at the end; `fixed`: their time in
        such passes; `padding`: passes made for rows over those that the rows need.
    """
    purifier = subject.purifier
    assert isinstance(purifier, DiffusionPurifier)
    sampled = Sampled(purifier.network, tuple({best, subject.plan.microbatch}))
    watched = replace(subject, purifier=replace(purifier, network=sampled))
    outcomes = list[AuditResult]()
    fixed = seconds(partial(_preflight, subject))
    whole = (
        seconds(lambda: outcomes.append(run_compression(watched, Progress(), measure_anyway=True)))
        - sampled.inside
    )
    fixed += seconds(partial(_replay, subject, outcomes[0]))
    pace = min(float(np.mean(values)) for values in sampled.times.values())
    needed = len(subject.images) * rows_per_image(subject.plan) * purifier.evaluations
    return {
        "whole": whole / (needed * pace),
        "rows": (whole - fixed) / (needed * pace),
        "fixed": fixed / pace,
        "padding": _made(subject) / needed * purifier.evaluations,
    }


def _made(subject: Subject) -> int:
    """Purifications of an audit, those that only fill a micro-batch included."""
    spans = groups(subject.plan, subject.images.image_bytes)
    return sum(padded_rows(subject.plan, len(span)) for span in spans)


def _replay(subject: Subject, outcome: AuditResult) -> None:
    assert outcome.samples is not None
    with deterministic():
        recheck(subject, outcome.samples)


def _preflight(subject: Subject) -> None:
    with deterministic():
        runner = Runner(subject.purifier, CPU, subject.plan.seed, subject.plan.microbatch)
        preflight(runner, subject.images)


def audits(
    name: str, images: int, sampler: dict[str, object] | None, rounds: int
) -> dict[str, Any]:
    """`audit_over_bare` with all defaults but the images, and the sampler where one is given."""
    parts = list[dict[str, float]]()
    with tempfile.TemporaryDirectory() as folder:
        plan_options: dict[str, object] = {
            "checkpoint": str(ROOT / "models" / f"{name}.safetensors")
        }
        plan_options |= {
            "images": images,
            "data": source(name, images, Path(folder)),
            "sampler": sampler,
        }
        subject = prepare(plan_options, CPU)
        purifier = subject.purifier
        assert isinstance(purifier, DiffusionPurifier)
        _preflight(subject)  # warms up
        bare = {n: figure([1e3 * v for v in vs]) for n, vs in per_image(purifier, 8).items()}
        best = min(bare, key=lambda size: float(bare[size]["median"]))
        for made in range(2 * rounds):
            if made >= rounds and spread([part["whole"] for part in parts]) <= SPREAD:
                break
            parts.append(audit_over_bare(subject, best))
    return {
        "images": images,
        "microbatch": subject.plan.microbatch,
        "chain": purifier.evaluations,
        "passes": images * rows_per_image(subject.plan) * purifier.evaluations,
        "bare_ms": bare,
    } | {part: figure([p[part] for p in parts]) for part in parts[0]}


def profile(name: str, images: int, sampler: dict[str, object]) -> dict[str, float]:
    """Shares of an audit's processor time by part, each with everything it calls."""
    with tempfile.TemporaryDirectory() as folder:
        plan_options: dict[str, object] = {
            "checkpoint": str(ROOT / "models" / f"{name}.safetensors")
        }
        plan_options |= {
            "images": images,
            "data": source(name, images, Path(folder)),
            "microbatch": 64,
        }
        subject = prepare(plan_options | {"sampler": sampler}, CPU)
        _preflight(subject)
        profiler = cProfile.Profile(time.process_time)
        profiler.runcall(run_compression, subject, Progress(), measure_anyway=True)
    stats: dict[tuple[str, int, str], tuple[int, int, float, float]]
    stats = vars(pstats.Stats(profiler))["stats"]
    parts = {
        "network": ("networks/unet.py", "forward", True),
        "preflight": ("preflight.py", "preflight", False),
        "replay at the end": ("postchecks.py", "recheck", False),
        "noise": ("noise.py", "normals", False),
    }
    whole = sum(timing[2] for timing in stats.values())
    shares = {}
    for part, (file, function, largest) in parts.items():
        times = [v[3] for k, v in stats.items() if k[0].endswith(file) and k[2] == function]
        shares[part] = rounded((max(times) if largest else sum(times)) / whole)
    return shares


def source(name: str, images: int, folder: Path) -> str:
    """Images for a model: the bundled ones, or a file of grey noise."""
    purifier = chain(name, 20, 1)
    if purifier.image.shape == (1, 8, 8):
        return "digits"
    path = folder / "images.npz"
    np.savez(path, x=np.moveaxis(pictures(purifier, images).pixels, 1, 3))
    return str(path)


def allocator(rounds: int) -> dict[str, Any]:
    """Time of a purification without freed memory held over that with it, in processes in turn."""
    found = {}
    for name in ("digits-ddpm", "cifar10-ddpm"):
        ratios, paces = list[float](), list[list[float]]()
        for _ in range(rounds):
            paces.append([_pace(name, how) for how in ("plain", "held")])
            ratios.append(paces[-1][0] / paces[-1][1])
        found[name] = figure(ratios) | {"ms_per_pass": paces}
    return found


def _pace(name: str, how: str) -> float:
    command = [sys.executable, str(Path(__file__).with_name("scale.py")), "--pace", name, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=single_thread())
    return rounded(float(done.stdout))


def own_pace(name: str, held: bool) -> float:
    """Milliseconds of processor time of this process for one network evaluation of one row."""
    if held:
        assert hold_freed_memory(), "on glibc only"
    purifier = chain(name, 60, 10 if name.startswith("digits") else 2)
    images = pictures(purifier, 64 if name.startswith("digits") else 8)
    plan_options: dict[str, object] = {"checkpoint": str(ROOT / "models" / f"{name}.safetensors")}
    with tempfile.TemporaryDirectory() as folder:
        plan_options |= {"images": len(images), "data": source(name, len(images), Path(folder))}
        size = prepare(plan_options, CPU).plan.microbatch
    runner = Runner(purifier, CPU, 0, size)
    rows = np.arange(4 * size) % len(images)
    x, ids, draws = images.pixels[rows], images.ids[rows], np.zeros(len(rows), np.int64)
    times = []
    with deterministic():
        for _ in range(3):
            times.append(seconds(partial(runner, x, ids, draws)))
    return 1e3 * min(times) / (len(rows) * purifier.evaluations)


def startup(rounds: int) -> dict[str, Any]:
    """Wall time from the start of a process to what it tells first: its first line."""
    program = str(Path(sys.executable).with_name("purify-audit"))
    small = ["compress", str(ROOT / "models" / "digits-ddpm.safetensors"), "--images", "1"]
    with tempfile.TemporaryDirectory() as folder:
        report = str(Path(folder) / "report.json")
        quick = [*small, "--probe", "sign", "--sampler", "one-step", "--out", report]
        commands = {
            "--help": ["--help"],
            "compress": quick,
            "report": ["report", report],
            "gate": ["gate", report, "--policy", str(ROOT / "docs" / "example-policy.toml")],
        }
        subprocess.run([program, *quick], capture_output=True, check=True)
        found = {
            name: figure([_first_line([program, *command]) for _ in range(rounds)])
            for name, command in commands.items()
        }
    return found


def _first_line(command: list[str]) -> float:
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    line = process.stdout.readline()
    taken = time.perf_counter() - begun
    process.communicate()
    assert line.strip() or process.returncode == 0, "it tells something"
    return taken
