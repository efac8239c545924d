"""An estimate's interval at another confidence level, without its rows.

Each kind of interval in a report is a function of a few numbers that the estimate determines
(t: mean and half-width; Clopper–Pearson: hits and n; Bonett–Price: difference, n and half-width).
"""

import math
from statistics import NormalDist

from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.statistics.estimates import Estimate
from purify_audit.statistics.metrics import metric_info

_SPLIT = ", level split over"


def looks_behind(metric: str, plan: AuditPlan) -> int:
    """Looks at the data over which the level of a metric's interval is split."""
    return len(plan.looks if metric_info(metric).stage == "compress" else plan.attack_looks)


def at_level(estimate: Estimate, level: float, looks: int = 1) -> Estimate:
    """The same estimate with its interval at another level.

    An interval that was split over looks stays split (Bonferroni).

    Args:
        estimate: the estimate.
        level: of its new interval, over all looks together.
        looks: how many looks.
    """
    if estimate.lower is None or estimate.upper is None or level == estimate.level:
        return estimate
    before = 1.0 - (1.0 - estimate.level) / looks
    now = 1.0 - (1.0 - level) / looks
    method = estimate.method.partition(_SPLIT)[0]
    if method.startswith("clopper-pearson"):
        lower, upper = _shares(estimate, now)
    elif method.startswith("bonett-price"):
        lower, upper = _differences(estimate, before, now)
    elif estimate.metric == "rms_gain":
        lower, upper = _roots(estimate, before, now)
    else:
        half = (estimate.upper - estimate.lower) / 2 * _t_ratio(estimate.n_images, before, now)
        lower, upper = estimate.value - half, estimate.value + half
    return estimate.model_copy(update={"level": level, "lower": lower, "upper": upper})


def _t_ratio(n: int, before: float, now: float) -> float:
    """Ratio of the widths of t intervals on n values: at level `now` over level `before`."""
    from scipy.special import stdtrit

    wide, narrow = (float(stdtrit(n - 1, 0.5 + level / 2)) for level in (now, before))
    return wide / narrow


def _shares(e: Estimate, level: float) -> tuple[float, float]:
    from purify_audit.statistics.intervals import clopper_pearson

    return clopper_pearson(e.value * e.n_images, e.n_images, level)


def _differences(e: Estimate, before: float, now: float) -> tuple[float, float]:
    """The middle of a Bonett–Price interval is n d / (n + 2), and its ends may be cut at ±1."""
    assert e.lower is not None, "the caller has checked"
    assert e.upper is not None, "the caller has checked"
    if (e.lower, e.upper) == (-1.0, 1.0):  # cut at both ends: its width is unknown
        return -1.0, 1.0
    middle = e.value * e.n_images / (e.n_images + 2)
    half = max(e.upper - middle, middle - e.lower)
    wide, narrow = (NormalDist().inv_cdf(0.5 + level / 2) for level in (now, before))
    half *= wide / narrow
    return max(-1.0, middle - half), min(1.0, middle + half)


def _roots(e: Estimate, before: float, now: float) -> tuple[float, float]:
    """The interval is of the mean square; its lower end may be cut at 0, its upper end never."""
    assert e.upper is not None, "the caller has checked"
    half = (e.upper**2 - e.value**2) * _t_ratio(e.n_images, before, now)
    return math.sqrt(max(e.value**2 - half, 0.0)), math.sqrt(e.value**2 + half)
