"""The results of running the network otherwise: time, and what it costs in digits."""

from typing import Any

from attack_pages import markdown

Row = dict[str, Any]


def engine_section(s: Row) -> str:
    """Section 16 of the results.

    Args:
        s: what `benchmarks/engines.py` wrote.
    """
    tables = "\n".join(f"{name}:\n\n{_table(rows)}" for name, rows in s["models"].items())
    return f"""
## 16. The network run otherwise: channels last, compiled, in bfloat16

`{s["command"]}` ({s["date"]}, {s["machine"]}, torch {s["torch"]}, {s["seconds"]} s). {s["rows"]} rows; processor time of a purification over that in
float32, the two alternating, medians with the lowest and the highest value; "off" is relative to float32's rate. The floor is
preflight's, over ‖δ‖: a rate that rounding alone would give. Nothing here was run on a GPU.

{tables}
Compiling takes {_first_calls(s)} s for the first call of every size of batch, and an audit has two sizes at least: it pays in runs of hours.
**The floor speaks of perturbations that are given.** Power iteration follows what it measures, and in a low precision it may end in
another direction: its rate is then of that direction, which no floor tells. Read a power rate in float32.
"""


def _table(rows: dict[str, Row]) -> str:
    head = ["", "time", "largest difference", "sign rate", "off", "floor", "power rate", "off"]
    table = [head]
    for name, r in rows.items():
        time = f"{r['ratio_median']:.2f} [{r['ratio_lowest']:.2f}, {r['ratio_highest']:.2f}]"
        cells = [name, time, f"{r['largest_difference']:.1e}"]
        if r.get("rate_sign") is None:
            table.append([*cells, *("—" for _ in range(5))])
            continue
        for probe in ("sign", "power"):
            cells += [f"{r[f'rate_{probe}']:.4f}", f"{r[f'rate_{probe}_off']:+.2%}"]
            cells += [f"{r['floor_sign']:.1e}"] if probe == "sign" else []
        table.append(cells)
    return markdown(table)


def _first_calls(s: Row) -> str:
    times = [
        r["first_call_seconds"]
        for rows in s["models"].values()
        for name, r in rows.items()
        if name.startswith("compile")
    ]
    return f"{min(times):.0f} to {max(times):.0f}"
