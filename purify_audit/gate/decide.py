"""From an interval and a threshold to PASS, FAIL or INCONCLUSIVE. No judgement rests on a point."""

import math
from statistics import NormalDist
from typing import Literal

from purify_audit.gate.judgement import Decision

Op = Literal["<=", ">="]

_FARTHEST = 100  # 10,000 times as many images: nobody has them
_ROUNDING = 1e-6


def decide(lower: float | None, upper: float | None, op: Op, threshold: float) -> Decision:
    """Where an interval lies: within what is required, beyond it, or across the threshold.

    Written so that anything that is not a number is neither within nor beyond.

    Args:
        lower: end of the interval; none when too few images tell nothing about the spread.
        upper: the other end.
        op: how the quantity must compare with the threshold.
        threshold: itself allowed.
    """
    if lower is None or upper is None or not lower <= upper:
        return "inconclusive"
    if op == ">=":
        lower, upper, threshold = -upper, -lower, -threshold
    if upper <= threshold:
        return "pass"
    return "fail" if lower > threshold else "inconclusive"


def images_that_decide(
    value: float, ends: tuple[float, float], threshold: float, n: int
) -> int | None:
    """About how many more images would decide, if the estimate stayed what it is.

    Intervals shrink like 1/√n, so the end that lies across the threshold reaches it at
    n (length / distance)² images.

    Returns:
        None where the estimate lies on the threshold, or so near that no number is worth saying.
    """
    distance = abs(value - threshold)
    end = ends[1] if value <= threshold else ends[0]
    length = abs(end - value)
    if not distance <= length < _FARTHEST * distance:
        return None
    needed = math.ceil(n * (length / distance) ** 2 - _ROUNDING)
    return max(needed - n, 1)


def images_that_decide_share(value: float, threshold: float, level: float, n: int) -> int | None:
    """The same for a share of images, whose interval shrinks like 1/n near 0 and 1.

    Where the threshold T is the truth, a share has variance T (1 − T) / n, so it is told from T
    at z² T (1 − T) / (share − T)² images (the score test, Wilson 1927), and 1 / |share − T| more
    for the steps that counts make.

    Args:
        value: the share.
        threshold: what it is held against.
        level: of the two-sided interval.
        n: images so far.

    Returns:
        None where the share lies on the threshold, or near it, or no number of images decides.
    """
    distance = abs(value - threshold)
    if not 0 < threshold < 1 or distance * _FARTHEST < 1:
        return None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    needed = math.ceil(z**2 * threshold * (1 - threshold) / distance**2 + 1 / distance)
    return max(needed - n, 1)
