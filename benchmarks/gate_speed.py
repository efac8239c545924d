r"""Time and memory of judging and rendering a large report.

    python benchmarks/gate_speed.py REPORT.json [--runs 9] [--out benchmarks/gate_speed.json]

REPORT.json is a report with its rows beside it; the committed numbers are of

    purify-audit attach mnist_lenet5_clntrained.safetensors examples/mnist-lenet5.json \
        lenet5.safetensors
    purify-audit verify identity --attack --data mnist_train_60000.npz --images 10000 \
        --classifier lenet5.safetensors --eps 0.1 --steps 2 --held-out 1 --out large.json

Every command is a process of its own, timed whole; memory is the largest of its resident sets.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import parser, provenance, write

POLICY = """\
[[gate.rule]]
id = "rate"
metric = "compression_rate"
norm = "l2"
probe = "sign"
max = 2.0

[[gate.rule]]
id = "robust"
metric = "aligned_robust_accuracy"
min = 0.0
"""
REGRESSION = '\n[[gate.rule]]\nid = "no-worse"\nmetric = "compression_rate"\nmax_increase = 0.1\n'
PROBE = (
    "import resource, subprocess, sys\n"
    "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
    "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
    "print(done.returncode, peak)\n"
)


def measured(command: list[str], runs: int) -> dict[str, float]:
    """Median and longest wall time of a command, and its largest memory."""
    seconds, peaks = [], []
    for _ in range(runs + 1):
        start = time.monotonic()
        output = subprocess.run(
            [sys.executable, "-c", PROBE, *command], capture_output=True, text=True, check=True
        ).stdout.split()
        seconds.append(time.monotonic() - start)
        peaks.append(int(output[1]) / 1024)
        assert output[0] == "0", f"{command} ended with {output[0]}"
    kept = seconds[1:]  # the first fills the file cache
    return {
        "median_seconds": round(statistics.median(kept), 3),
        "longest_seconds": round(max(kept), 3),
        "peak_mib": round(max(peaks)),
    }


def main() -> None:
    """Measure, print, and write the JSON."""
    flags = parser(__doc__, "gate_speed.json")
    flags.add_argument("report", type=Path)
    flags.add_argument("--runs", type=int, default=9)
    options = flags.parse_args()
    tool, report = [sys.executable, "-m", "purify_audit"], str(options.report)
    with tempfile.TemporaryDirectory() as folder:
        rules, both, html = (Path(folder) / name for name in ("a.toml", "b.toml", "r.html"))
        rules.write_text(POLICY, encoding="utf-8")
        both.write_text(POLICY + REGRESSION, encoding="utf-8")
        judge = [*tool, "gate", report, "--exit-zero", "--policy"]
        commands = {
            "version": [*tool, "--version"],
            "gate": [*judge, str(rules)],
            "gate, baseline": [*judge, str(both), "--baseline", report],
            "report --html": [*tool, "report", report, "--html", str(html)],
        }
        found = {name: measured(command, options.runs) for name, command in commands.items()}
        html_bytes = html.stat().st_size
    body = json.loads(options.report.read_text(encoding="utf-8"))
    command = f"python benchmarks/gate_speed.py large.json --runs {options.runs}"
    about = {
        **provenance(command, f"{platform.machine()}, Python {platform.python_version()}"),
        "images": len(body["data"]["ids"]),
        "attacked": len(body["attack"]["images"]) if body["attack"] else 0,
        "report_bytes": options.report.stat().st_size,
        "html_bytes": html_bytes,
    }
    write(options.out, about | found)
    print(json.dumps(about | found, indent=1))


if __name__ == "__main__":
    main()
