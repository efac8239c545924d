"""Time and error of lower precision, compilation and channels-last memory layout.

    OMP_NUM_THREADS=1 python benchmarks/engines.py [--device cpu] [--rounds 5]

Of each shipped diffusion model. Time: one purification of a micro-batch of noise images, every
engine after another in each round, as a ratio of the plain one's time in that round; the median,
the lowest and the highest over rounds; on the CPU it is the processor's time, in which other
programs have no share. The first call of each engine, which compiles, is not among
them. Output: the largest difference from the plain engine's, and the mean l2 distance over images.
Rates: of a small audit of the same images under the same draws, with the floor that preflight
measured as a rate of each probe, beside the relative difference from the plain engine's rate.
Freed memory is held, as in the commands (`purify_audit/audit/allocator.py`).
CPUs compute float16 slowly: there it purifies once, by the smaller model, and is not audited.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, parser, provenance, write

from purify_audit.audit.allocator import hold_freed_memory
from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.result import Progress
from purify_audit.audit.subject import Subject, prepare
from purify_audit.core.noise import Noise, Stream
from purify_audit.models.runner import Runner, deterministic
from purify_audit.spec.engine import PLAIN, Engine

ENGINES = {
    "float32": PLAIN,
    "channels_last": Engine(channels_last=True),
    "compile": Engine(compile=True),
    "compile+channels_last": Engine(compile=True, channels_last=True),
    "bfloat16": Engine(precision="bfloat16"),
    "bfloat16+channels_last": Engine(precision="bfloat16", channels_last=True),
    "tf32": Engine(precision="tf32"),
    "float16": Engine(precision="float16"),
}
SEED, ROWS = 0, 32
MODELS: dict[str, dict[str, Any]] = {
    "digits-ddpm": {"eps": (1.0,), "images": 8, "draws": 1, "directions": 4},
    "cifar10-ddpm": {"eps": (0.5,), "images": 8, "draws": 1, "directions": 2},
}
POWER = {"kind": "power", "block": 1, "iterations": 4}


def noise_images(shape: tuple[int, ...], device: torch.device, rows: int = ROWS) -> np.ndarray:
    """Images of uniform pixels, from addressed numbers."""
    numbers = Noise(SEED, tuple(range(rows)), (0,) * rows, Stream.START, device)
    return np.asarray(numbers.uniform(0, shape).float().cpu().numpy())


def subjects(model: str, device: torch.device, folder: Path) -> dict[str, Subject]:
    """The model behind every engine that is measured here."""
    checkpoint = ROOT / "models" / f"{model}.safetensors"
    plan_options = MODELS[model] | {"checkpoint": str(checkpoint), "norm": "l2", "microbatch": ROWS}
    plan_options["probes"] = [{"kind": "sign"}, POWER]
    if model.startswith("cifar10"):
        x = noise_images((3, 32, 32), device)
        np.savez(folder / "noise.npz", images=(255 * x).astype(np.uint8).transpose(0, 2, 3, 1))
        plan_options["data"] = str(folder / "noise.npz")
    names = [name for name in ENGINES if name != "tf32" or device.type == "cuda"]
    if device.type == "cpu" and model != "digits-ddpm":
        names.remove("float16")
    return {name: prepare(plan_options | {"engine": ENGINES[name]}, device) for name in names}


def purified(
    subject: Subject, clock: Callable[[], float] = time.perf_counter
) -> tuple[np.ndarray, float]:
    """A micro-batch of purified noise images, and the seconds it took."""
    shape, rows = subject.purifier.image.shape, np.arange(ROWS)
    runner = Runner(subject.purifier, subject.device, SEED, ROWS)
    x = noise_images(shape, subject.device)
    with deterministic():
        start = clock()
        y = runner.batch(x, rows, np.zeros(ROWS, np.int64))  # back on the CPU: it is finished
        return y, clock() - start


def is_slow(name: str, subject: Subject) -> bool:
    """Whether an engine is run only once."""
    return name == "float16" and subject.device.type == "cpu"


def timed(loaded: dict[str, Subject], rounds: int) -> dict[str, dict[str, Any]]:
    """Ratios of times to the plain engine's, and differences from its output."""
    first = {name: purified(subject) for name, subject in loaded.items()}
    seconds: dict[str, list[float]] = {name: [] for name in loaded}
    same = dict.fromkeys(loaded, True)
    cuda = loaded["float32"].device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    for _ in range(rounds):
        for name, subject in loaded.items():
            y, took = first[name] if is_slow(name, subject) else purified(subject, clock)
            seconds[name].append(took)
            same[name] &= np.array_equal(y, first[name][0])
    results = {}
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds["float32"], strict=True)]
        gap = (first[name][0].astype(np.float64) - first["float32"][0]).reshape(ROWS, -1)
        results[name] = {
            "seconds": round(statistics.median(own), 4),
            "first_call_seconds": round(first[name][1], 2),
            "ratio_median": round(statistics.median(ratios), 3),
            "ratio_lowest": round(min(ratios), 3),
            "ratio_highest": round(max(ratios), 3),
            "largest_difference": float(f"{np.abs(gap).max():.3g}"),
            "l2_difference": float(f"{np.sqrt((gap**2).sum(1)).mean():.3g}"),
            "same_bits_again": same[name],
        }
    return results


def rates(subject: Subject) -> dict[str, dict[str, float]]:
    """The l2 rate of every probe of a small audit, and the floor as such a rate."""
    report = run_compression(subject, Progress(), measure_anyway=True).report  # noise is no digit
    results = {}
    for e in report.estimates:
        if e.metric == "compression_rate" and e.norm == "l2":
            size = report.find("distance_delta", "l2", e)
            assert size is not None, "every probe has both"
            floor = report.numeric_floor["l2"] / size.value
            results[str(e.probe)] = {"rate": e.value, "floor": floor}
    return results


def measured(loaded: dict[str, Subject], rounds: int) -> dict[str, dict[str, Any]]:
    """Everything about one model, by engine."""
    results, exact = timed(loaded, rounds), rates(loaded["float32"])
    for name, subject in loaded.items():
        if is_slow(name, subject):
            continue
        found = exact if name == "float32" else rates(subject)
        for probe, own in found.items():
            off = own["rate"] / exact[probe]["rate"] - 1.0
            results[name][f"rate_{probe}"] = round(own["rate"], 5)
            results[name][f"rate_{probe}_off"] = float(f"{off:.3g}")
            results[name][f"floor_{probe}"] = float(f"{own['floor']:.3g}")
        print(name, json.dumps(results[name]), flush=True)
    return results


def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__, "engines.json")
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--rounds", type=int, default=5)
    options = flags.parse_args()
    hold_freed_memory()  # as the commands do
    device, start = torch.device(options.device), time.monotonic()
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing is compiled yet
        for model in MODELS:
            models[model] = measured(subjects(model, device, Path(folder)), options.rounds)
    threads = torch.get_num_threads()
    command = f"OMP_NUM_THREADS={threads} python benchmarks/engines.py"
    command += f" --device {options.device} --rounds {options.rounds}"
    machine = f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}"
    result = {
        **provenance(command, machine, start),
        "torch": torch.__version__,
        "rows": ROWS,
        "models": models,
    }
    write(options.out, result)


if __name__ == "__main__":
    main()
