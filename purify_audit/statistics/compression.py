"""Estimates with confidence intervals from rows of a compression measurement. No torch.

Rows of one image are dependent, so every interval is clustered by image: it is computed from
per-image means. Intervals that treat rows as independent cover the truth in about a third of
audits (`docs/method.md`, section 6, and `tests/statistics/test_compression_estimates.py`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.norms import NORMS, Norm
from purify_audit.spec.probes import ISOTROPIC_PROBES
from purify_audit.statistics.compression_rows import (
    AnchorRows,
    CompressionSamples,
    ProbeRows,
    VarianceRows,
)
from purify_audit.statistics.confidence import looks_behind
from purify_audit.statistics.estimates import Estimate, Quantiles
from purify_audit.statistics.intervals import (
    mean_interval,
    paired_interval,
    proportion_interval,
    root_mean_interval,
)
from purify_audit.statistics.metrics import metric_info

SPREAD_METRICS = ("compression_rate", "randomness_share", "distance_anchor")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


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
class PerImageValues:
    """One value per image: the independent observations of an estimate.

    Attributes:
        metric: see `Estimate`, as for norm, probe and eps.
        norm: l2, linf, or none.
        probe: name of the probe, or none.
        eps: radius, or none.
        images: image ids, int64 [n].
        values: float64 [n].
        draws: draws per image; see `Estimate.n_draws`.
    """

    metric: str
    norm: Norm | None
    probe: str | None
    eps: float | None
    images: np.ndarray
    values: np.ndarray
    draws: int | None


def per_image_means(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of the rows of each image, in order of image id."""
    _, place, counts = np.unique(image, return_inverse=True, return_counts=True)
    return np.asarray(np.bincount(place, weights=values) / counts)


def per_image(samples: CompressionSamples, plan: AuditPlan) -> Iterator[PerImageValues]:
    """Per-image values of every metric, without images that have a non-finite row (PA202)."""
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
            shares = _randomness(samples.variances, broken, probe, radius)
            if shares is not None:
                yield PerImageValues("randomness_share", None, names[0], eps, *shares, plan.draws)
    yield from _of_anchors(samples.anchors, broken, plan.draws)


def _of_probe(
    rows: ProbeRows, mask: np.ndarray, plan: AuditPlan, name: str, eps: float | None
) -> Iterator[PerImageValues]:
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
            yield PerImageValues(metric, norm, name, eps, np.unique(image), means, plan.draws)


def _randomness(
    rows: VarianceRows, broken: np.ndarray, probe: int, radius: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Image ids, and the share of Var P(x+δ; ξ) that ξ explains (law of total variance)."""
    mask = (rows.probe == probe) & (rows.radius == radius) & ~np.isin(rows.image, broken)
    if not mask.any():
        return None
    order = np.argsort(rows.image[mask], kind="stable")
    between = np.maximum(rows.between_draws[mask][order], 0.0)
    total = between + rows.within_draws[mask][order]
    share = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    return rows.image[mask][order], share


def _of_anchors(rows: AnchorRows, broken: np.ndarray, draws: int) -> Iterator[PerImageValues]:
    mask = ~np.isin(rows.image, broken)
    if not mask.any():
        return
    image = rows.image[mask]
    ids = np.unique(image)
    for norm in NORMS:
        moved = per_image_means(image, getattr(rows, f"moved_{norm}")[mask])
        yield PerImageValues("distance_anchor", norm, None, None, ids, moved, draws)
    if (rows.correct[mask] >= 0).all():
        clean, right = (per_image_means(image, c[mask]) for c in (rows.clean_correct, rows.correct))
        yield PerImageValues("clean_accuracy", None, None, None, ids, clean, None)
        yield PerImageValues("anchor_accuracy", None, None, None, ids, right, draws)


def estimate(data: PerImageValues, plan: AuditPlan) -> Estimate:
    """The mean (or root mean) over images, with the interval of its metric's kind.

    The plan's level is split over the looks at the data (Bonferroni).
    """
    looks = looks_behind(data.metric, plan)
    level = 1.0 - (1.0 - plan.level) / looks
    match metric_info(data.metric).kind:
        case "share":
            interval, method = proportion_interval(data.values, level), "clopper-pearson on images"
        case "difference":
            ends = paired_interval(data.values, level)
            interval, method = (float(data.values.mean()), *ends), "bonett-price on images"
        case "root":
            interval, method = root_mean_interval(data.values, level), "t on images"
        case _:
            interval, method = mean_interval(data.values, level), "t on images"
    value, lower, upper = interval
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


def quantiles(data: PerImageValues) -> Quantiles:
    """Quantiles of a metric over images."""
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
    """Ids of images with a non-finite output."""
    rows, anchors = samples.probes, samples.anchors
    bad = rows.image[~np.isfinite(rows.change_l2)], anchors.image[~np.isfinite(anchors.moved_l2)]
    return np.unique(np.concatenate(bad))


def within_tolerance(samples: CompressionSamples, plan: AuditPlan) -> bool:
    """Whether the half-widths of the first probe's l2 rates are within the plan's tolerance."""
    if plan.tolerance is None:
        return False
    first = probe_names(plan)[0][0]
    halves = [
        (e.upper - e.lower) / 2 if e.lower is not None and e.upper is not None else math.inf
        for e in (estimate(data, plan) for data in per_image(samples, plan))
        if e.metric == "compression_rate" and e.norm == "l2" and e.probe == first
    ]
    return bool(halves) and max(halves) <= plan.tolerance
