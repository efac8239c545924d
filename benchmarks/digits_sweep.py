"""The digits DDPM at t* 20, 60, 100, 200, 300 with DDPM and DDIM sampling.

    python benchmarks/digits_sweep.py [--images 64] [--out benchmarks/digits_sweep.json]

Writes the numbers, and prints the table of docs/results.md.
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

from purify_audit.audit import Watch, audit
from purify_audit.plan import parse_sampler
from purify_audit.report.schema import Report
from purify_audit.subject import prepare

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "digits-ddpm.safetensors"
CLASSIFIER = ROOT / "models" / "digits-classifier.safetensors"
T_STARS = (20, 60, 100, 200, 300)
SAMPLERS: dict[str, dict[str, str]] = {"ddpm": {}, "ddim": {"steps": "20"}}


def row(report: Report, sampler: str, t_star: int) -> dict[str, object]:
    """What the table shows of one audit: value, lower, upper."""
    found: dict[str, object] = {"sampler": sampler, "t_star": t_star}
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
        found[name] = [e.value, e.lower, e.upper]
    found["findings"] = [f.code for f in report.findings]
    return found


def table(rows: list[dict[str, object]]) -> str:
    """Markdown."""

    def cell(r: dict[str, object], name: str) -> str:
        value, low, high = r[name]  # type: ignore[misc]
        if name.endswith("accuracy"):
            return f"{value:.1%} ({low:.1%} to {high:.1%})"
        return f"{value:.2f} ± {(high - low) / 2:.2f}"

    columns = {
        "rate l2, sign": "rate_sign_l2",
        "rate l∞, sign": "rate_sign_linf",
        "rate l2, low freq.": "rate_lowfreq_l2",
        "rate l2, power": "rate_power_l2",
        "fresh draw l2": "unaligned_l2",
        "randomness": "randomness_share",
        "anchor accuracy": "anchor_accuracy",
        "‖δ‖ l2": "delta_l2",
        "‖P(x)−x‖ l2": "anchor_l2",
        "‖P(x+δ)−x‖ l2": "purified_l2",
        "‖P(x)−x‖ l∞": "anchor_linf",
        "‖P(x+δ)−x‖ l∞": "purified_linf",
    }
    lines = [
        f"| sampler | t* | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for r in rows:
        cells = " | ".join(cell(r, name) for name in columns.values())
        lines.append(f"| {r['sampler']} | {r['t_star']} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Audit, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--eps", type=float, default=0.15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "digits_sweep.json")
    options = parser.parse_args()
    device, start, rows = torch.device(options.device), time.monotonic(), []
    for name, settings in SAMPLERS.items():
        for t_star in T_STARS:
            asked: dict[str, object] = {
                "checkpoint": str(MODEL),
                "classifier": str(CLASSIFIER),
                "images": options.images,
                "draws": options.draws,
                "eps": (options.eps,),
                "t_star": t_star,
                "sampler": parse_sampler(name, dict(settings)),
            }
            report = audit(prepare(asked, device), Watch()).report
            rows.append(row(report, name, t_star))
            print(f"{name} {t_star}: {rows[-1]}", flush=True)
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch "
        + torch.__version__,
        "seconds": round(time.monotonic() - start),
        "eps_linf": options.eps,
        "images": options.images,
        "draws": options.draws,
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
