"""Ratios of times of two alternating computations, which are meaningful on a shared machine.

Times are processor times of this single-threaded process, which equal wall times on a core of its
own. Wall times, which include the load of the machine, are stored as well.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], object]

SPREAD = 0.3
"""A figure with a larger relative spread is measured once more."""


def seconds(run: Run) -> float:
    """Processor time of one call."""
    return both(run)[0]


def both(run: Run) -> tuple[float, float]:
    """Processor time and wall time of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def compared(rounds: int, top: Run, bottom: Run) -> dict[str, Any]:
    """Time of `top` over that of `bottom`.

    `bottom` runs before and after `top` in every round, and its mean is used, so that a slowdown of
    the machine affects both. A first round warms up. If the values spread by more than `SPREAD`,
    the rounds are repeated once; all are used.
    """
    bottom(), top()
    tops, bottoms = list[tuple[float, float]](), list[tuple[float, float]]()
    ratios, walls = list[float](), list[float]()
    for made in range(2 * rounds):
        if made == rounds and spread(ratios) <= SPREAD:
            break
        before, middle, after = both(bottom), both(top), both(bottom)
        tops.append(middle)
        bottoms.append(((before[0] + after[0]) / 2, (before[1] + after[1]) / 2))
        ratios.append(middle[0] / bottoms[-1][0])
        walls.append(middle[1] / bottoms[-1][1])
    taken = [rounded(statistics.median(v[0] for v in vs)) for vs in (tops, bottoms)]
    return figure(ratios) | {"seconds": taken, "wall": figure(walls)}


def figure(values: list[float]) -> dict[str, Any]:
    """A median with every value it is the median of."""
    return {"median": rounded(statistics.median(values)), "all": [rounded(v) for v in values]}


def spread(values: list[float]) -> float:
    """Range divided by the median."""
    return (max(values) - min(values)) / statistics.median(values)


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
