"""Results about the gate: time, memory, and error rates of its decisions."""

from typing import Any

from attack_pages import markdown

Row = dict[str, Any]

_LEVEL = 0.95


def gate_section(errors: Row, speed: Row) -> str:
    """Sections 10 and 11 of the results."""
    g = speed["gate"]
    return f"""
## 10. Cost of the gate

**Judging the report of {speed["images"]:,} attacked images takes {g["median_seconds"]} s and
{g["peak_mib"]} MiB** (median of 9 processes, the slowest {g["longest_seconds"]} s; starting Python and the command line
alone is {speed["version"]["median_seconds"]} s of it). `{speed["command"]}` ({speed["date"]},
{speed["machine"]}; the report is {speed["report_bytes"] / 1e6:.1f} MB, of LeNet-5 on MNIST without a
purifier, attacked with 2 steps).

{_costs(speed)}

## 11. Error rates of the gate

`{errors["command"]}` ({errors["date"]}, {errors["machine"]}, {errors["seconds"]} s):
{errors["audits"]:,} simulated audits per row, with the threshold exactly at the true value, where errors are most frequent, at
confidence {_LEVEL}. Nominal: PASS and FAIL each in at most {100 * (1 - _LEVEL) / 2:.1f}% of them. Several looks
are at an eighth, a quarter, half and all of the images, from 16 on, and the run stops when it is decided.

{_errors(errors["rows"])}
Shares have at most the nominal error rates throughout (Clopper and Pearson's interval is exact, and conservative for means
over draws), and so do paired outcomes. Rates have them where their distribution is symmetric. **Where a few images have much
larger rates than most, the t interval is too short at its upper end and the gate passes too often**; it adds a note if
the 95% quantile is more than twice as far from the median as the 5% quantile, and more images help only slowly.
"""


def _costs(speed: Row) -> str:
    rows = [["command", "median s", "slowest s", "MiB"]]
    for name in ("gate", "gate, baseline", "report --html"):
        r = speed[name]
        cells = [str(r[key]) for key in ("median_seconds", "longest_seconds", "peak_mib")]
        rows.append([f"`{name}`" if name != "gate, baseline" else "`gate` with a baseline", *cells])
    return markdown(rows)


def _errors(rows: list[Row]) -> str:
    table = [["per-image values", "images", "looks", "wrong PASS", "wrong FAIL"]]
    for r in rows:
        if r["confidence"] == _LEVEL:
            shares = [f"{100 * r[word]:.1f}%" for word in ("pass", "fail")]
            table.append([r["values"], str(r["images"]), str(r["looks"]), *shares])
    return markdown(table)
