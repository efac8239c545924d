"""The change of a metric against a baseline, paired by image under the same draws."""

import math
from dataclasses import dataclass

import numpy as np

from purify_audit.core.errors import ReportError
from purify_audit.statistics.estimates import Estimate, Pairing
from purify_audit.statistics.intervals import mean_interval, paired_interval
from purify_audit.statistics.metrics import metric_info


@dataclass(frozen=True, slots=True)
class Column:
    """One value for each image.

    Attributes:
        images: their ids, int64 [n], no id twice.
        values: float64 [n].
    """

    images: np.ndarray
    values: np.ndarray


def pair(e: Estimate, new: Column, old: Column, level: float, looks: int = 1) -> Pairing:
    """The difference new − old of a metric, image by image, over the images that both have.

    Shares: the interval of Bonett and Price (of differences of shares: twice that of their halves),
    and where every value is a verdict, 0 or 1, the exact test of McNemar ("Note on the sampling
    error of the difference between correlated proportions or percentages", Psychometrika 1947).
    Anything else: a t interval on the differences.

    Args:
        e: the new estimate; its names are kept.
        new: its values.
        old: the baseline's.
        level: of the interval, and of the test.
        looks: number of looks that share it.

    Raises:
        ReportError: fewer than two images are in both.
    """
    each = 1.0 - (1.0 - level) / looks
    _, at_new, at_old = np.intersect1d(new.images, old.images, return_indices=True)
    now, then = new.values[at_new], old.values[at_old]
    if len(now) < 2:
        raise ReportError(
            f"{e.metric}: fewer than two images are in both the report and the baseline"
        )
    d, p = now - then, None
    kind = metric_info(e.metric).kind
    if kind in ("share", "difference"):
        scale = 1.0 if kind == "share" else 2.0  # a change of a difference is in [−2, 2]
        value, (lower, upper) = float(d.mean()), paired_interval(d / scale, each)
        lower, upper = scale * lower, scale * upper
        method = "bonett-price on images, paired"
        if kind == "share" and np.isin(now, (0.0, 1.0)).all() and np.isin(then, (0.0, 1.0)).all():
            p = mcnemar(int((d < 0).sum()), int((d > 0).sum()))
            method += ", exact McNemar"
        ends: tuple[float | None, float | None] = (lower, upper)
    else:
        value, *rest = mean_interval(d, each)
        ends, method = (rest[0], rest[1]), "t on images, paired"
    change = e.model_copy(
        update={
            "value": value,
            "lower": ends[0],
            "upper": ends[1],
            "level": level,
            "method": method,
            "n_images": len(d),
        }
    )
    return Pairing(
        change=change,
        baseline=float(then.mean()),
        p_value=p,
        surely_differs=p is None or p <= 1.0 - each,
    )


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p value of McNemar's test that changes in both directions are equally likely.

    Args:
        lost: images that were classified correctly and no longer are.
        gained: the reverse.
    """
    n = lost + gained
    tail = sum(math.comb(n, k) for k in range(min(lost, gained) + 1))
    return min(1.0, float(2 * tail / 2**n))
