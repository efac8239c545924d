"""Speed and scale: the figures of `docs/scale_section.py`.

    python benchmarks/scale.py [--only NAME ...] [--out benchmarks/scale.json]

One torch thread. Every ratio is of two things that alternate in one process (`scale_timing`); all
of its values are kept, and a figure whose values spread by more than 30% is measured once more.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any

import scale_audit as audits
import scale_budget as budget
import scale_cost as cost
import scale_growth as growth
import torch
from common import parser, write

from purify_audit.audit.allocator import hold_freed_memory

DIGITS, CIFAR = "digits-ddpm", "cifar10-ddpm"
FIGURES: dict[str, Callable[[], Any]] = {
    "audit_digits": partial(audits.audits, DIGITS, 64, None, 2),
    "audit_cifar": partial(audits.audits, CIFAR, 64, {"kind": "ddim", "steps": 20}, 2),
    "audit_cifar_shipped": partial(audits.audits, CIFAR, 64, None, 2),
    "allocator": partial(audits.allocator, 4),
    "startup": partial(audits.startup, 7),
    "profile_digits": partial(audits.profile, DIGITS, 16, {"kind": "ddpm", "steps": 10}),
    "gradient_digits": partial(cost.gradient_over_bare, DIGITS, 10, 64, 7),
    "gradient_cifar": partial(cost.gradient_over_bare, CIFAR, 2, 32, 5),
    "serial_rate_digits": partial(cost.serial_rate, DIGITS, 5, (4, 2, 7), 3),
    "serial_rate_cifar": partial(cost.serial_rate, CIFAR, 2, (4, 2, 7), 3),
    "serial_eot_digits": partial(cost.serial_eot, DIGITS, 24, (6, 4, 2), 2),
    "serial_eot_cifar": partial(cost.serial_eot, CIFAR, 8, (4, 2, 1), 2),
    "graphs": partial(cost.graphs, DIGITS, 32, (5, 10, 20, 40), 2),
    "axes": partial(growth.axes, 2),
    "resolutions": partial(growth.resolutions, 5),
    "processes": partial(growth.processes, 64, 60, 2),
    "memory": partial(growth.memory, (100, 1000, 5000, 50000)),
    "dry_run": partial(growth.dry_run, 50000),
    "presets": budget.presets,
    "small_case": partial(budget.small_case, 16, 2, 2),
    "to_reach": partial(budget.to_reach, 64, 4, 8, 10),
    "reached": partial(budget.reached, 10),
    "diffpure": budget.diffpure,
}


def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__, "scale.json")
    flags.add_argument("--only", nargs="+", choices=FIGURES, help="measure these anew, keep others")
    flags.add_argument("--peak", nargs=4, help="print one peak and end")
    flags.add_argument("--pace", nargs=2, help="print one pace and end")
    options = flags.parse_args()
    torch.set_num_threads(1)
    if options.pace:
        return print(audits.own_pace(options.pace[0], held=options.pace[1] == "held"))
    hold_freed_memory()  # as the commands do
    if options.peak:
        which, name, steps, batch = options.peak
        return print(cost.own_peak(which, name, int(steps), int(batch)))
    found: dict[str, Any] = {}
    if options.only and options.out.exists():
        found = json.loads(options.out.read_text(encoding="utf-8"))["figures"]
    about = {
        "command": "python benchmarks/scale.py" + ", in parts (--only)" * bool(options.only),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared; 1 thread",
        "torch": torch.__version__,
    }
    for name in options.only or FIGURES:
        load, begun = os.getloadavg()[0], time.monotonic()
        made = {"figure": FIGURES[name](), "load_before": round(load, 2)}
        made |= {"seconds": round(time.monotonic() - begun, 1), "date": date.today().isoformat()}
        found[name] = made
        print(name, json.dumps(made), flush=True)
        whole = {"seconds": round(sum(f["seconds"] for f in found.values()))}
        write(options.out, about | whole | {"figures": found})


if __name__ == "__main__":
    main()
