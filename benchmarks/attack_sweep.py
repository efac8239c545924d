"""All evaluation protocols for the digits DDPM over t*, with DDPM and DDIM sampling.

    python benchmarks/attack_sweep.py [--images 32] [--out benchmarks/attack_sweep.json]

Writes the numbers from which `make docs` generates docs/results.md.
"""

import time
from collections import Counter

import torch
from common import ROOT, command_line, interval, parser, provenance, torch_machine, write

from purify_audit.audit.sweep import run_sweep, settings, subjects
from purify_audit.report.schema import Report

T_STARS = (20, 100, 200)
SAMPLERS = ("ddpm:steps=10", "ddim:steps=10")
PROTOCOLS = ("aligned", "heldout", "mean", "worst_of_k", "vote")


def row(report: Report) -> dict[str, object]:
    """One row of the tables: value, lower and upper limit of each estimate."""
    fields: dict[str, object] = {}
    for e in report.estimates:
        if e.probe in ("aligned", "fresh", "bare"):
            fields[f"{e.probe}/{e.metric}"] = interval(e)
        elif e.metric in ("anchor_accuracy", "clean_accuracy"):
            fields[e.metric] = interval(e)
        elif e.metric == "compression_rate" and e.norm == "l2":
            fields[f"rate/{e.probe}"] = interval(e)
    fields["findings"] = [f"{f.code} {f.sentence}" for f in report.findings]
    assert report.attack is not None
    fields["gradients"] = report.attack.gradients
    fields["caps"] = [point.model_dump() for point in report.attack.caps]
    fields["fuzziness"] = [f.model_dump() for f in report.attack.fuzziness]
    fields["evaluations"] = report.attack.evaluations
    if report.attack.convergence is not None:
        fields["convergence"] = report.attack.convergence.model_dump()
    runs = Counter(str(image.broken_by) for image in report.attack.images)
    fields["broken_by"] = dict(runs.most_common())
    return fields


def main() -> None:
    """Attack and write."""
    flags = parser(__doc__, "attack_sweep.json")
    flags.add_argument("--images", type=int, default=32)
    flags.add_argument("--steps", type=int, default=60)
    flags.add_argument("--fresh-draws", type=int, default=16)
    flags.add_argument("--fresh-steps", type=int, default=16)
    flags.add_argument("--eps", type=float, default=0.15)
    flags.add_argument("--held-out", type=int, default=16)
    flags.add_argument("--device", default="cpu")
    options = flags.parse_args()
    attack = {"steps": options.steps, "draws": 1, "restarts": 1, "square_queries": 100}
    attack |= {"fresh_draws": options.fresh_draws, "fresh_steps": options.fresh_steps}
    common_options = {
        "checkpoint": str(ROOT / "models" / "digits-ddpm.safetensors"),
        "classifier": str(ROOT / "models" / "digits-classifier.safetensors"),
        "preset_images": options.images,
        "draws": 2,
        "directions": 4,
        "eps": (options.eps,),
        "attack": attack | {"held_out": options.held_out},
    }
    start, rows = time.monotonic(), []
    points = subjects(common_options, settings(T_STARS, SAMPLERS, ()), torch.device(options.device))
    for point, result in run_sweep(points):
        rows.append({"sampler": point.sampler, "t_star": point.t_star, **row(result.report)})
        print(f"{time.monotonic() - start:.0f} s {point.title}: {rows[-1]}", flush=True)
    output = {
        **provenance(command_line(), torch_machine(), start),
        "eps_linf": options.eps,
        "images": options.images,
        "attack": common_options["attack"],
        "rows": rows,
    }
    write(options.out, output)
    print("run `make docs` to update docs/results.md")


if __name__ == "__main__":
    main()
