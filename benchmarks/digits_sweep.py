"""The digits DDPM at t* 20, 60, 100, 200, 300 with DDPM and DDIM sampling.

    python benchmarks/digits_sweep.py [--images 64] [--out benchmarks/digits_sweep.json]

Writes the numbers from which `make docs` generates docs/results.md.
"""

import time

import torch
from common import ROOT, command_line, interval, parser, provenance, torch_machine, write

from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.result import Progress
from purify_audit.audit.subject import prepare
from purify_audit.report.schema import Report
from purify_audit.spec.samplers import parse_sampler

MODEL = ROOT / "models" / "digits-ddpm.safetensors"
CLASSIFIER = ROOT / "models" / "digits-classifier.safetensors"
T_STARS = (20, 60, 100, 200, 300)
SAMPLERS: dict[str, dict[str, str]] = {"ddpm": {}, "ddim": {"steps": "20"}}


def row(report: Report, sampler: str, t_star: int) -> dict[str, object]:
    """One row of the tables: value, lower and upper limit of each estimate."""
    fields: dict[str, object] = {"sampler": sampler, "t_star": t_star}
    at = {e.probe: e for e in report.estimates if e.metric == "compression_rate"}
    wanted = {
        "rate_sign_l2": ("compression_rate", "l2", "sign"),
        "rate_sign_linf": ("compression_rate", "linf", "sign"),
        "rate_lowfreq_l2": ("compression_rate", "l2", "lowfreq"),
        "rate_power_l2": ("compression_rate", "l2", "power"),
        "unaligned_l2": ("unaligned_ratio", "l2", "sign"),
        "randomness_share": ("randomness_share", None, "sign"),
        "delta_l2": ("distance_delta", "l2", "sign"),
        "anchor_l2": ("distance_anchor", "l2", None),
        "purified_l2": ("distance_purified", "l2", "sign"),
        "delta_linf": ("distance_delta", "linf", "sign"),
        "anchor_linf": ("distance_anchor", "linf", None),
        "purified_linf": ("distance_purified", "linf", "sign"),
        "anchor_accuracy": ("anchor_accuracy", None, None),
        "clean_accuracy": ("clean_accuracy", None, None),
    }
    for name, (metric, norm, probe) in wanted.items():
        e = report.find(metric, norm, at[probe] if probe else None)
        assert e is not None, name
        fields[name] = interval(e)
    fields["findings"] = [f.code for f in report.findings]
    return fields


def main() -> None:
    """Audit and write."""
    flags = parser(__doc__, "digits_sweep.json")
    flags.add_argument("--images", type=int, default=64)
    flags.add_argument("--draws", type=int, default=2)
    flags.add_argument("--eps", type=float, default=0.15)
    flags.add_argument("--device", default="cpu")
    options = flags.parse_args()
    device, start, rows = torch.device(options.device), time.monotonic(), []
    for name, settings in SAMPLERS.items():
        for t_star in T_STARS:
            plan_options: dict[str, object] = {
                "checkpoint": str(MODEL),
                "classifier": str(CLASSIFIER),
                "images": options.images,
                "draws": options.draws,
                "eps": (options.eps,),
                "t_star": t_star,
                "sampler": parse_sampler(name, dict(settings)),
            }
            report = run_compression(prepare(plan_options, device), Progress()).report
            rows.append(row(report, name, t_star))
            print(f"{name} {t_star}: {rows[-1]}", flush=True)
    result = {
        **provenance(command_line(), torch_machine(), start),
        "eps_linf": options.eps,
        "images": options.images,
        "draws": options.draws,
        "rows": rows,
    }
    write(options.out, result)
    print("run `make docs` to update docs/results.md")


if __name__ == "__main__":
    main()
