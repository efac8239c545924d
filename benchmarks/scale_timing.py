"""Times of two things that alternate in one process: what a ratio on a shared machine can mean.

Times are the processor's, of this process, which computes on one thread: what wall time is where
the thread has a core to itself. Wall time is kept beside them; it holds other people's work too.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], object]

SPREAD = 0.3
"""A figure whose values spread by more, over their median, is measured once more."""


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

    `bottom` runs before and after `top` in every round, and its mean counts: a machine that slows
    down meanwhile slows both. A first round warms up. Where values spread by more than `SPREAD`, as
    many rounds again are made; none is left out.
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
    """Largest less smallest, over the median."""
    return (max(values) - min(values)) / statistics.median(values)


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
