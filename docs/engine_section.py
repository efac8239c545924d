"""Results of other ways of running the network: time and numerical error."""

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
## 16. Memory layout, compilation and precision of the network

`{s["command"]}` ({s["date"]}, {s["machine"]}, torch {s["torch"]}, {s["seconds"]} s). {s["rows"]} rows; processor time of a purification over that in
float32, measured alternately, medians with minimum and maximum; "off" is the deviation relative to float32's rate. The floor is
preflight's, over ‖δ‖: the rate that rounding alone would give. Nothing here was run on a GPU.

{tables}
Compiling takes {_first_calls(s)} s in the first call of every batch size, and an audit has at least two sizes: it pays off in runs of hours.
**The floor applies to given perturbations.** Power iteration maximises the measured rate, and in a low precision it may converge to
another direction, whose rate the floor does not describe. Measure power rates in float32.
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
