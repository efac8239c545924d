"""Scaling of cost with images, draws, directions, steps, pixels, processes; memory with images."""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scale_baselines import CPU, ROOT, chain, pictures
from scale_cost import single_thread
from scale_timing import figure, rounded, seconds, spread

from purify_audit.compression.measure import measure_compression
from purify_audit.models.networks.unet import UNet
from purify_audit.models.runner import Runner, deterministic
from purify_audit.spec.audit_plan import AuditPlan

BASE = {"images": 8, "draws": 2, "rows": 8, "steps": 5}
AXES = {
    "images": (8, 16, 32, 64),
    "draws": (2, 4, 8, 16),
    "rows": (4, 8, 16, 32),  # a draw's anchor and its directions
    "steps": (5, 10, 20, 40),
}
RESOLUTIONS = (8, 16, 32, 64, 128)
PIXELS = 16384  # in a batch, at every resolution
TOOL = (sys.executable, "-m", "purify_audit")
PROBE = (
    "import resource, subprocess, sys\n"
    "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
    "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
    "print(done.returncode, peak)\n"
)


def slope(x: list[float] | tuple[int, ...], y: list[float]) -> float:
    """Of the straight line through the logarithms: the exponent of a power law."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def axes(rounds: int) -> dict[str, Any]:
    """Time of a compression measurement as each of its counts is doubled, the others fixed."""
    found: dict[str, Any] = {"base": BASE, "microbatch": 64}
    for axis, values in AXES.items():
        runs = [_measurement(BASE | {axis: value}) for value in values]
        evaluations = [int(np.prod(list((BASE | {axis: v}).values()))) for v in values]
        times = _in_turn(runs, rounds)
        medians = [float(np.median(t)) for t in times]
        each = [1e3 * t / e for t, e in zip(medians, evaluations, strict=True)]
        found[axis] = {
            "values": list(values),
            "seconds": [[rounded(t) for t in ts] for ts in times],
            "ms_per_evaluation": [rounded(t) for t in each],
            "slope": rounded(slope(values, medians)),
        }
    return found


def _measurement(of: dict[str, int]) -> "partial[float]":
    purifier = chain("digits-ddpm", 60, of["steps"])
    images = pictures(purifier, of["images"])
    plan = AuditPlan.model_validate(
        {
            **{"checkpoint": "digits-ddpm", "data": "digits", "images": of["images"]},
            **{"norm": "linf", "eps": (0.15,), "probes": ({"kind": "sign"},), "seed": 0},
            **{"draws": of["draws"], "directions": of["rows"] - 1, "microbatch": 64},
        }
    )
    runner = Runner(purifier, CPU, 0, 64)

    def run() -> None:
        with deterministic():
            measure_compression(runner, images, plan)

    return partial(seconds, run)


def _in_turn(runs: "list[partial[float]]", rounds: int) -> list[list[float]]:
    """Times of each, taking turns; twice the rounds where any spreads."""
    for run in runs[:1]:
        run()  # warms up
    times: list[list[float]] = [[] for _ in runs]
    for made in range(2 * rounds):
        if made == rounds and all(spread(t) <= 0.3 for t in times):
            break
        for run, taken in zip(runs, times, strict=True):
            taken.append(run())
    return times


def resolutions(rounds: int) -> dict[str, Any]:
    """Time of a network evaluation of one image by its side; untrained weights of one width."""
    runs = []
    for side in RESOLUTIONS:
        batch = max(1, PIXELS // side**2)
        network = UNet(3, 3, width=32, multipliers=(1, 2), blocks=1, attention=(), groups=8).eval()
        x, t = torch.full((batch, 3, side, side), 0.3), torch.full((batch,), 30.0)
        runs.append(partial(seconds, partial(_passes, network, x, t)))
    times = _in_turn(runs, rounds)
    each = [
        1e3 * float(np.median(ts)) / max(1, PIXELS // side**2) / 4
        for ts, side in zip(times, RESOLUTIONS, strict=True)
    ]
    return {
        "sides": list(RESOLUTIONS),
        "ms_per_evaluation": [rounded(t) for t in each],
        "slope_in_pixels": rounded(slope([float(s * s) for s in RESOLUTIONS], each)),
        "seconds": [[rounded(t) for t in ts] for ts in times],
    }


def _passes(network: UNet, x: torch.Tensor, t: torch.Tensor) -> None:
    with torch.inference_mode():
        for _ in range(4):
            network(x, t)


def processes(images: int, steps: int, rounds: int) -> dict[str, Any]:
    """A run by one process, by two that share its folder, and by two that share nothing.

    The last have half of the images each: what this machine gives two processes. A process that
    only starts and loads tells what no second process can halve.
    """
    one, two, apart, start = (list[float]() for _ in range(4))
    loads = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            loads.append(rounded(os.getloadavg()[0]))
            one.append(_together([(images, place / "one", {})], steps))
            ranks = [{"RANK": str(r), "WORLD_SIZE": "2"} for r in range(2)]
            two.append(_together([(images, place / "two", rank) for rank in ranks], steps))
            apart.append(_together([(images // 2, place / half, {}) for half in "ab"], steps))
            start.append(_together([(1, place / "start", {})], 1))
    told = {"one": one, "two": two, "two, nothing shared": apart, "one image, one step": start}
    whole, measured = list(zip(one, two, strict=True)), list(zip(one, two, start, strict=True))
    return {
        "images": images,
        "steps": steps,
        "load_before": loads,
        "seconds": {name: figure(values) for name, values in told.items()},
        "speed_up": figure([a / b for a, b in whole]),
        "speed_up_without_start": figure([(a - s) / (b - s) for a, b, s in measured]),
        "speed_up_nothing_shared": figure([a / b for a, b in zip(one, apart, strict=True)]),
    }


def _together(runs: list[tuple[int, Path, dict[str, str]]], steps: int) -> float:
    """Wall time until all of these processes have ended; those of one folder share it."""
    begun = time.perf_counter()
    made = []
    for place, (images, folder, part) in enumerate(runs):
        command = [*TOOL, "compress", str(ROOT / "models" / "digits-ddpm.safetensors"), "--quiet"]
        command += ["--images", str(images), "--draws", "4", "--directions", "7", "--probe", "sign"]
        command += ["--sampler", f"ddpm:steps={steps}", "--run-dir", str(folder)]
        command += ["--out", f"{folder}-{place}.json"]
        environment = single_thread() | part
        made.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    ends = [process.wait() for process in made]
    assert not any(ends), f"a process ended with {ends}"
    return time.perf_counter() - begun


def memory(counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Peak resident memory of a whole `compress` process as its images grow, 3×32×32 each.

    The last row tells also what one more image takes, from the last but one to it.
    """
    rows = list[dict[str, Any]]()
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npz"
            values = np.arange(count * 3072, dtype=np.uint32)
            pixels = (values * np.uint32(2654435761) >> np.uint32(24)).astype(np.uint8)
            np.savez(path, x=pixels.reshape(count, 32, 32, 3))
            command = [*TOOL, "compress", "bit-depth:bits=5", "--data", str(path), "--quiet"]
            command += ["--images", str(count), "--probe", "sign", "--directions", "2"]
            command += ["--out", str(Path(folder) / "report.json")]
            begun = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", PROBE, *command],
                env=single_thread(),
                capture_output=True,
                text=True,
                check=True,
            )
            told = done.stdout.split()
            assert told[0] == "0", done.stderr
            mib = rounded(int(told[1]) / 1024)
            report = Path(folder) / "report.json"
            written = sum(p.stat().st_size for p in report.parent.glob("report*"))
            row = {"images": count, "peak_mib": mib, "report_bytes": written}
            rows.append(row | {"seconds": rounded(time.perf_counter() - begun)})
    if len(rows) > 1:
        before, last = rows[-2:]
        more = 1024 * (last["peak_mib"] - before["peak_mib"])
        last["kib_an_image"] = rounded(more / (last["images"] - before["images"]))
    return rows


def dry_run(count: int) -> dict[str, Any]:
    """What `compress --dry-run` tells of so many 32×32 images, and how long that takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, np.zeros((count, 3, 32, 32), np.uint8))
        command = [*TOOL, "compress", str(ROOT / "models" / "cifar10-ddpm.safetensors")]
        command += ["--data", str(path), "--images", str(count), "--dry-run"]
        begun = time.perf_counter()
        done = subprocess.run(
            command, env=single_thread(), capture_output=True, text=True, check=True
        )
        taken = time.perf_counter() - begun
    return {"images": count, "told": done.stdout.strip(), "seconds": rounded(taken)}
