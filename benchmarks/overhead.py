"""Overhead of an audit relative to the network's forward passes, and the cost of its noise.

    python benchmarks/overhead.py [--device cpu] [--rounds 3] [--out benchmarks/overhead.json]

Everything is a ratio of times in this one process: bare forward passes of the network at their
best batch size, then a whole audit with the default settings (preflight, noise, sampler
arithmetic, norms, statistics and replay included), alternating. An audit's necessary passes are
those of its plan; padding, preflight and replay count as overhead.
"""

import json
import platform
import statistics
import time

import torch
from common import ROOT, parser, provenance, write

from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.result import Progress
from purify_audit.audit.subject import Subject, prepare
from purify_audit.compression.measure import rows_per_image
from purify_audit.core.noise import Noise
from purify_audit.models.purifiers.diffusion import DiffusionPurifier

MODEL = ROOT / "models" / "digits-ddpm.safetensors"


def bare_seconds(purifier: DiffusionPurifier, batch: int, device: torch.device) -> float:
    """Seconds of one forward pass of the network for one image, at a batch size."""
    x = torch.full((batch, *purifier.image.shape), 0.5, device=device)
    x += 0.3 * Noise(1, tuple(range(batch)), (0,) * batch, device=device).normal(0, x.shape[1:])
    t = torch.full((batch,), 30.0, device=device)
    passes = max(4, 16384 // batch)
    with torch.inference_mode():
        purifier.network(x, t)
        start = _now(device)
        for _ in range(passes):
            purifier.network(x, t)
        return (_now(device) - start) / (passes * batch)


def noise_seconds(rows: int, device: torch.device) -> float:
    """Seconds of one step's normals for one image, every row with an address of its own."""
    noise = Noise(0, tuple(range(rows)), (0,) * rows, device=device)
    noise.normal(0, (1, 8, 8))
    start = _now(device)
    for step in range(200):
        noise.normal(step, (1, 8, 8))
    return (_now(device) - start) / (200 * rows)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def audit_seconds(subject: Subject) -> float:
    """Seconds of a whole audit, models and images already loaded."""
    start = _now(subject.device)
    run_compression(subject, Progress())
    return _now(subject.device) - start


def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__, "overhead.json")
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--rounds", type=int, default=3)
    options = flags.parse_args()
    device = torch.device(options.device)

    plan_options: dict[str, object] = {"checkpoint": str(MODEL), "eps": (0.15,)}
    purifier = prepare(plan_options, device).purifier
    assert isinstance(purifier, DiffusionPurifier)
    sizes = (64, 128, 256, 512)
    per_size = {n: min(bare_seconds(purifier, n, device) for _ in range(3)) for n in sizes}
    best = min(per_size, key=per_size.__getitem__)
    subject = prepare(plan_options, device)
    passes = len(subject.images) * rows_per_image(subject.plan) * purifier.evaluations
    ratios, noise_shares, shared = [], [], []
    for _ in range(options.rounds):
        before = {n: bare_seconds(purifier, n, device) for n in sizes}
        whole = audit_seconds(subject)  # about as long as the bare passes it holds
        after = {n: bare_seconds(purifier, n, device) for n in sizes}
        bare = min((before[n] + after[n]) / 2 for n in sizes)  # the best size is found each time
        ratios.append(whole / (passes * bare))
        noise_shares.append(noise_seconds(best, device) / bare)
        shared.append(noise_seconds(8, device) * 8 / best / bare)
        print(f"audit / bare passes {ratios[-1]:.3f}; noise / pass {noise_shares[-1]:.3%}")
    command = f"python benchmarks/overhead.py --device {options.device}"
    result = {
        **provenance(command, f"{platform.machine()}, {torch.get_num_threads()} threads"),
        "torch": torch.__version__,
        "milliseconds_per_image_and_pass": {n: round(1e3 * s, 4) for n, s in per_size.items()},
        "best_batch": best,
        "microbatch_of_the_audit": subject.plan.microbatch,
        "network_passes": passes,
        "audit_over_bare": {
            "median": round(statistics.median(ratios), 4),
            "all": [round(r, 4) for r in ratios],
        },
        "noise_over_pass_own_addresses": round(statistics.median(noise_shares), 4),
        "noise_over_pass_shared_by_probes": round(statistics.median(shared), 4),
    }
    write(options.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
