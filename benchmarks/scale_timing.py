"""Times of two things that alternate in one process: what a ratio on a shared machine can mean."""

import statistics
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], object]

SPREAD = 0.3
"""A figure whose values spread by more, over their median, is measured once more."""


def seconds(run: Run) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compared(rounds: int, top: Run, bottom: Run) -> dict[str, Any]:
    """Time of `top` over that of `bottom`.

    `bottom` runs before and after `top` in every round, and its mean counts: a machine that slows
    down meanwhile slows both. A first round warms up. Where values spread by more than `SPREAD`, as
    many rounds again are made; none is left out.
    """
    ratios, tops, bottoms = list[float](), list[float](), list[float]()
    seconds(bottom), seconds(top)
    for made in range(2 * rounds):
        if made == rounds and spread(ratios) <= SPREAD:
            break
        before, middle, after = seconds(bottom), seconds(top), seconds(bottom)
        tops.append(middle)
        bottoms.append((before + after) / 2)
        ratios.append(tops[-1] / bottoms[-1])
    whole = figure(ratios)
    return whole | {"seconds": [rounded(statistics.median(v)) for v in (tops, bottoms)]}


def figure(values: list[float]) -> dict[str, Any]:
    """A median with every value it is the median of."""
    return {"median": rounded(statistics.median(values)), "all": [rounded(v) for v in values]}


def spread(values: list[float]) -> float:
    """Largest less smallest, over the median."""
    return (max(values) - min(values)) / statistics.median(values)


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
