"""An audit against the bare forward passes that it cannot do without."""

import cProfile
import pstats
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scale_rivals import CPU, ROOT, chain, pictures
from scale_timing import SPREAD, figure, rounded, seconds, spread

from purify_audit.aftercheck import check_again
from purify_audit.audit import Outcome, Watch, audit, groups
from purify_audit.compression import padded_rows, rows_per_image
from purify_audit.preflight import preflight
from purify_audit.purifiers.diffusion import DiffusionPurifier
from purify_audit.runtime import Runner, deterministic
from purify_audit.subject import Subject, prepare

SIZES = (16, 32, 64, 128, 256)  # of batches among which the best is looked for
BARE_EVERY = 4  # micro-batches between two looks at the bare network


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
        size; `rows`: the same without preflight and the replay at the end; `fixed`: their time in
        such passes; `padding`: passes made for rows over those that the rows need.
    """
    purifier, times = subject.purifier, {size: list[float]() for size in SIZES}
    assert isinstance(purifier, DiffusionPurifier)
    inside, ticks = [0.0], [0]

    def look(rows: int) -> None:
        ticks[0] += 1
        if ticks[0] % BARE_EVERY:
            return
        start = time.process_time()
        for size in SIZES:
            times[size].append(seconds(partial(bare_pass, purifier, size)) / size)
        inside[0] += time.process_time() - start

    outcomes = list[Outcome]()
    fixed = seconds(partial(_preflight, subject))
    whole = seconds(lambda: outcomes.append(audit(subject, Watch(look), True))) - inside[0]
    fixed += seconds(partial(_replay, subject, outcomes[0]))
    best = min(float(np.mean(values)) for values in times.values())
    needed = len(subject.images) * rows_per_image(subject.plan) * purifier.evaluations
    return {
        "whole": whole / (needed * best),
        "rows": (whole - fixed) / (needed * best),
        "fixed": fixed / best,
        "padding": _made(subject) / needed * purifier.evaluations,
    }


def _made(subject: Subject) -> int:
    """Purifications of an audit, those that only fill a micro-batch included."""
    spans = groups(subject.plan, subject.images.pixels[0].nbytes)
    return sum(padded_rows(subject.plan, len(span)) for span in spans)


def _replay(subject: Subject, outcome: Outcome) -> None:
    assert outcome.samples is not None
    with deterministic():
        check_again(subject, outcome.samples)


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
        asked: dict[str, object] = {"checkpoint": str(ROOT / "models" / f"{name}.safetensors")}
        asked |= {"images": images, "data": source(name, images, Path(folder)), "sampler": sampler}
        subject = prepare(asked, CPU)
        purifier = subject.purifier
        assert isinstance(purifier, DiffusionPurifier)
        _preflight(subject)  # warms up
        for made in range(2 * rounds):
            if made >= rounds and spread([part["whole"] for part in parts]) <= SPREAD:
                break
            parts.append(audit_over_bare(subject))
        bare = {n: figure([1e3 * v for v in vs]) for n, vs in per_image(purifier, 8).items()}
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
        asked: dict[str, object] = {"checkpoint": str(ROOT / "models" / f"{name}.safetensors")}
        asked |= {"images": images, "data": source(name, images, Path(folder)), "microbatch": 64}
        subject = prepare(asked | {"sampler": sampler}, CPU)
        _preflight(subject)
        profiler = cProfile.Profile(time.process_time)
        profiler.runcall(audit, subject, Watch(), True)
    stats: dict[tuple[str, int, str], tuple[int, int, float, float]]
    stats = vars(pstats.Stats(profiler))["stats"]
    parts = {
        "network": ("networks/unet.py", "forward", True),
        "preflight": ("preflight.py", "preflight", False),
        "replay at the end": ("aftercheck.py", "check_again", False),
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
