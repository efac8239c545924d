"""Confidence intervals of means over images. No torch, no randomness."""

import math

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit

Interval = tuple[float, float | None, float | None]
"""A value, and the lower and upper ends of its interval; none with too few values."""


def mean_interval(values: np.ndarray, level: float) -> Interval:
    """Mean and t interval of independent values [n] (Student 1908); no interval for n < 2."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None, None
    half = float(stdtrit(len(values) - 1, 0.5 + level / 2)) * float(
        values.std(ddof=1) / math.sqrt(len(values))
    )
    return mean, mean - half, mean + half


def root_mean_interval(squares: np.ndarray, level: float) -> Interval:
    """Root of the mean of squares [n], with the root of its t interval.

    Of ‖J v‖² for isotropic directions v of length 1 it is ‖J‖_F / √d.
    """
    mean, lower, upper = mean_interval(squares, level)
    ends = [None if end is None else math.sqrt(max(end, 0.0)) for end in (lower, upper)]
    return math.sqrt(mean), ends[0], ends[1]


def proportion_interval(values: np.ndarray, level: float) -> Interval:
    """Mean and Clopper–Pearson interval of values in [0, 1], one per image [n].

    Exact for values 0 or 1 (Clopper and Pearson 1934). Conservative for means over draws: among
    variables in [0, 1] with the same mean, those in {0, 1} have the largest variance (Hoeffding
    1963). Unlike a t interval it has a positive width when every image is classified correctly.
    """
    n, hits = len(values), float(values.sum())
    return hits / n, *clopper_pearson(hits, n, level)


def clopper_pearson(hits: float, n: int, level: float) -> tuple[float, float]:
    """Interval of a proportion of `hits` (also fractional) in `n`."""
    tail = (1.0 - level) / 2.0
    lower = float(betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    upper = float(betaincinv(hits + 1, n - hits, 1.0 - tail)) if hits < n else 1.0
    return lower, upper


def paired_interval(d: np.ndarray, level: float) -> tuple[float, float]:
    """Interval of the mean of paired differences of proportions, d [n] in [−1, 1].

    Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", 2012: one is added to both discordant counts. A fractional difference
    counts as a fraction of a discordant pair, which is conservative: values in {−1, 0, 1} have the
    largest variance.
    """
    n = len(d)
    up, down = ((np.maximum(s * d, 0).sum() + 1) / (n + 2) for s in (1, -1))
    middle = up - down
    half = float(ndtri(0.5 + level / 2)) * math.sqrt((up + down - middle**2) / (n + 2))
    return max(-1.0, float(middle) - half), min(1.0, float(middle) + half)
