"""The attack's whole protocol matrix for the digits DDPM over t*, with DDPM and DDIM sampling.

    python benchmarks/attack_sweep.py [--images 96] [--out benchmarks/attack_sweep.json]

Writes the numbers, of which `make docs` makes docs/results.md.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from datetime import date
from pathlib import Path

import torch

from purify_audit.audit.sweep import settings, subjects, sweep
from purify_audit.report.schema import Report

ROOT = Path(__file__).parents[1]
T_STARS = (20, 60, 100, 200, 300)
SAMPLERS = ("ddpm:steps=10", "ddim:steps=10")
PROTOCOLS = ("aligned", "heldout", "mean", "worst_of_k", "vote")


def row(report: Report) -> dict[str, object]:
    """What the tables show of one report: value, lower, upper."""
    found: dict[str, object] = {}
    for e in report.estimates:
        if e.probe in ("aligned", "fresh", "bare"):
            found[f"{e.probe}/{e.metric}"] = [e.value, e.lower, e.upper]
        elif e.metric in ("anchor_accuracy", "clean_accuracy"):
            found[e.metric] = [e.value, e.lower, e.upper]
        elif e.metric == "compression_rate" and e.norm == "l2":
            found[f"rate/{e.probe}"] = [e.value, e.lower, e.upper]
    found["findings"] = [f"{f.code} {f.sentence}" for f in report.findings]
    assert report.attack is not None
    found["gradients"] = report.attack.gradients
    found["caps"] = [point.model_dump() for point in report.attack.caps]
    found["fuzziness"] = [f.model_dump() for f in report.attack.fuzziness]
    found["evaluations"] = report.attack.evaluations
    return found


def main() -> None:
    """Attack and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--eps", type=float, default=0.15)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "attack_sweep.json")
    options = parser.parse_args()
    attack = {"steps": options.steps, "draws": 1, "restarts": 1, "square_queries": 100}
    asked = {
        "checkpoint": str(ROOT / "models" / "digits-ddpm.safetensors"),
        "classifier": str(ROOT / "models" / "digits-classifier.safetensors"),
        "preset_images": options.images,
        "draws": 2,
        "directions": 4,
        "eps": (options.eps,),
        "attack": attack | {"held_out": options.held_out},
    }
    start, rows = time.monotonic(), []
    points = subjects(asked, settings(T_STARS, SAMPLERS, ()), torch.device(options.device))
    for point, made in sweep(points, lambda evaluations: None):
        rows.append({"sampler": point.sampler, "t_star": point.t_star, **row(made.report)})
        print(f"{time.monotonic() - start:.0f} s {point.title}: {rows[-1]}", flush=True)
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch "
        + torch.__version__,
        "seconds": round(time.monotonic() - start),
        "eps_linf": options.eps,
        "images": options.images,
        "attack": asked["attack"],
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("now `make docs` puts them on docs/results.md")


if __name__ == "__main__":
    main()
