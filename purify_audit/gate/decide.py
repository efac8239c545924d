"""Decide PASS, FAIL or INCONCLUSIVE from an interval and a threshold, never from a point."""

import math
from statistics import NormalDist
from typing import Literal

from purify_audit.gate.judgement import Decision

Op = Literal["<=", ">="]

_FARTHEST = 100  # 10,000 times as many images: not a useful answer
_ROUNDING = 1e-6


def decide(lower: float | None, upper: float | None, op: Op, threshold: float) -> Decision:
    """Whether an interval is inside the required range, outside it, or contains the threshold.

    NaN is inconclusive.

    Args:
        lower: end of the interval; none without an interval.
        upper: the other end.
        op: required relation of the quantity to the threshold.
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
    """About how many more images would decide if the estimate did not change.

    Intervals shrink like 1/√n, so the end beyond the threshold reaches it at
    n (length / distance)² images.

    Returns:
        None if the estimate is on the threshold or too close to it for a useful number.
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

    If the true share is the threshold T, its variance is T (1 − T) / n, so it differs from T
    significantly at z² T (1 − T) / (share − T)² images (the score test, Wilson 1927), plus
    1 / |share − T| because counts are discrete.

    Args:
        value: the share.
        threshold: T.
        level: of the two-sided interval.
        n: images so far.

    Returns:
        None if the share is on the threshold or close to it, or no number of images decides.
    """
    distance = abs(value - threshold)
    if not 0 < threshold < 1 or distance * _FARTHEST < 1:
        return None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    needed = math.ceil(z**2 * threshold * (1 - threshold) / distance**2 + 1 / distance)
    return max(needed - n, 1)
