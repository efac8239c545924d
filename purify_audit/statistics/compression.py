"""From rows to estimates with intervals. No torch, no randomness, no judgement.

Rows of one image share that image, so every interval is clustered by image: a t interval on
per-image means. Treating rows as independent covers the truth in about a third of audits
(`docs/method.md`, section 6, and `tests/statistics/test_compression_estimates.py`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, stdtrit

from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.norms import NORMS, Norm
from purify_audit.spec.probes import ISOTROPIC_PROBES
from purify_audit.statistics.compression_rows import (
    AnchorRows,
    CompressionSamples,
    ProbeRows,
    VarianceRows,
)
from purify_audit.statistics.estimates import Estimate, Quantiles

SPREAD_METRICS = ("compression_rate", "randomness_share", "distance_anchor")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def mean_interval(values: np.ndarray, level: float) -> tuple[float, float | None, float | None]:
    """Mean and t interval of independent values (Student 1908); no interval for fewer than two."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None, None
    half = float(stdtrit(len(values) - 1, 0.5 + level / 2)) * float(
        values.std(ddof=1) / math.sqrt(len(values))
    )
    return mean, mean - half, mean + half


def proportion_interval(
    values: np.ndarray, level: float
) -> tuple[float, float | None, float | None]:
    """Mean and Clopper–Pearson interval of values in [0, 1], one for each image.

    Exact for verdicts 0 or 1 (Clopper and Pearson 1934). For means over draws it is conservative:
    among variables in [0, 1] of one mean, verdicts spread most (Hoeffding 1963). Unlike a t
    interval it does not shrink to a point when every image is right.
    """
    n, hits = len(values), float(values.sum())
    tail = (1.0 - level) / 2.0
    lower = float(betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    upper = float(betaincinv(hits + 1, n - hits, 1.0 - tail)) if hits < n else 1.0
    return hits / n, lower, upper


def probe_names(plan: AuditPlan) -> list[list[str]]:
    """For each probe of a plan, the names under which its directions are reported."""
    names = []
    for probe in plan.probes:
        if probe.kind == "power":
            names.append(["power", *(f"power:{rank}" for rank in range(2, probe.block + 1))])
        else:
            names.append([probe.kind])
    return names


@dataclass(frozen=True, slots=True)
class PerImage:
    """One value for each image: the independent observations behind an estimate.

    Attributes:
        metric: see `Estimate`, as for norm, probe and eps.
        norm: l2, linf, or none.
        probe: name of the probe, or none.
        eps: radius, or none.
        images: their ids.
        values: float64, one for each image.
        draws: of each image; none where there is no randomness in the value, or no fixed number.
    """

    metric: str
    norm: Norm | None
    probe: str | None
    eps: float | None
    images: np.ndarray
    values: np.ndarray
    draws: int | None


def per_image_means(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of each image's rows, in order of image id: what a cluster is, said once."""
    _, place, counts = np.unique(image, return_inverse=True, return_counts=True)
    return np.asarray(np.bincount(place, weights=values) / counts)


def per_image(samples: CompressionSamples, plan: AuditPlan) -> Iterator[PerImage]:
    """Every metric's value for every image, but those with a row that is not finite (PA202)."""
    broken = broken_images(samples)
    rows = samples.probes
    sound = ~np.isin(rows.image, broken) & (rows.delta_l2 > 0)
    for probe, names in enumerate(probe_names(plan)):
        radii = (None,) if plan.probes[probe].kind == "file" else plan.eps
        for radius, eps in enumerate(radii):
            for rank, name in enumerate(names):
                mask = sound & (rows.probe == probe) & (rows.radius == radius)
                if len(names) > 1:
                    mask &= rows.direction == rank
                if mask.any():
                    yield from _of_probe(rows, mask, plan, name, eps)
            shares = _randomness(samples.variances, broken, (probe, radius))
            if shares is not None:
                yield PerImage("randomness_share", None, names[0], eps, *shares, plan.draws)
    yield from _of_anchors(samples.anchors, broken, plan.draws)


def _of_probe(
    rows: ProbeRows, mask: np.ndarray, plan: AuditPlan, name: str, eps: float | None
) -> Iterator[PerImage]:
    image = rows.image[mask]
    for norm in NORMS:
        delta, change, unaligned, moved = (
            getattr(rows, f"{part}_{norm}")[mask]
            for part in ("delta", "change", "unaligned", "moved")
        )
        values = {"compression_rate": change / delta}
        if norm == "l2" and name in ISOTROPIC_PROBES:
            values["rms_gain"] = (change / delta) ** 2
        if plan.draws > 1:
            values["unaligned_ratio"] = unaligned / delta
        values |= {"distance_purified": moved, "distance_delta": delta}
        for metric, column in values.items():
            means = per_image_means(image, column)
            yield PerImage(metric, norm, name, eps, np.unique(image), means, plan.draws)


def _randomness(
    rows: VarianceRows, broken: np.ndarray, at: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Images, and share of Var P(x+δ; ξ) explained by ξ, by the law of total variance."""
    mask = (rows.probe == at[0]) & (rows.radius == at[1]) & ~np.isin(rows.image, broken)
    if not mask.any():
        return None
    order = np.argsort(rows.image[mask], kind="stable")
    between = np.maximum(rows.between_draws[mask][order], 0.0)
    total = between + rows.within_draws[mask][order]
    share = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    return rows.image[mask][order], share


def _of_anchors(rows: AnchorRows, broken: np.ndarray, draws: int) -> Iterator[PerImage]:
    mask = ~np.isin(rows.image, broken)
    if not mask.any():
        return
    image = rows.image[mask]
    ids = np.unique(image)
    for norm in NORMS:
        moved = per_image_means(image, getattr(rows, f"moved_{norm}")[mask])
        yield PerImage("distance_anchor", norm, None, None, ids, moved, draws)
    if (rows.correct[mask] >= 0).all():
        clean, right = (per_image_means(image, c[mask]) for c in (rows.clean_correct, rows.correct))
        yield PerImage("clean_accuracy", None, None, None, ids, clean, None)
        yield PerImage("anchor_accuracy", None, None, None, ids, right, draws)


def estimate(data: PerImage, plan: AuditPlan) -> Estimate:
    """The estimate of a metric, with the interval that suits it."""
    method = "t on images"
    if data.metric in ("clean_accuracy", "anchor_accuracy"):
        method = "clopper-pearson on images"
        value, lower, upper = proportion_interval(data.values, plan.look_level)
    elif data.metric == "rms_gain":
        value, lower, upper = _root_mean_interval(data.values, plan.look_level)
    else:
        value, lower, upper = mean_interval(data.values, plan.look_level)
    return told(data, plan, (value, lower, upper), method, len(plan.looks))


def told(
    data: PerImage,
    plan: AuditPlan,
    found: tuple[float, float | None, float | None],
    method: str,
    looks: int,
) -> Estimate:
    """The estimate of a metric from its value and the ends of its interval, split over looks."""
    value, lower, upper = found
    return Estimate(
        metric=data.metric,
        norm=data.norm,
        probe=data.probe,
        eps=data.eps,
        value=value,
        lower=lower,
        upper=upper,
        level=plan.level,
        method=method + (f", level split over {looks} looks" if looks > 1 else ""),
        n_images=len(data.values),
        n_draws=data.draws,
    )


def quantiles(data: PerImage) -> Quantiles:
    """How a metric spreads over images."""
    low, lower, middle, upper, high = np.quantile(data.values, QUANTILES).tolist()
    return Quantiles(
        metric=data.metric,
        norm=data.norm,
        probe=data.probe,
        eps=data.eps,
        quantiles=(low, lower, middle, upper, high),
        n_images=len(data.values),
    )


def broken_images(samples: CompressionSamples) -> np.ndarray:
    """Ids of images with an output that was not finite."""
    rows, anchors = samples.probes, samples.anchors
    bad = rows.image[~np.isfinite(rows.change_l2)], anchors.image[~np.isfinite(anchors.moved_l2)]
    return np.unique(np.concatenate(bad))


def within_tolerance(samples: CompressionSamples, plan: AuditPlan) -> bool:
    """Whether the first probe's l2 rates are known within the plan's tolerance at every radius."""
    if plan.tolerance is None:
        return False
    first = probe_names(plan)[0][0]
    halves = [
        (e.upper - e.lower) / 2 if e.lower is not None and e.upper is not None else math.inf
        for e in (estimate(data, plan) for data in per_image(samples, plan))
        if e.metric == "compression_rate" and e.norm == "l2" and e.probe == first
    ]
    return bool(halves) and max(halves) <= plan.tolerance


def _root_mean_interval(
    squares: np.ndarray, level: float
) -> tuple[float, float | None, float | None]:
    """Root of the mean of squares: ‖J‖_F / √d for isotropic directions; the interval's ends too."""
    mean, lower, upper = mean_interval(squares, level)
    ends = [None if end is None else math.sqrt(max(end, 0.0)) for end in (lower, upper)]
    return math.sqrt(mean), ends[0], ends[1]
