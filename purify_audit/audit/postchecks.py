"""Findings from the rows of a measurement, after preflight."""

import numpy as np

from purify_audit.audit.replay import Address, replay
from purify_audit.audit.subject import Subject
from purify_audit.core.findings import Finding, finding
from purify_audit.core.noise import Noise, Stream
from purify_audit.models.user_code.purifier import UserPurifier
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.statistics.compression import broken_images, estimate, per_image, within_tolerance
from purify_audit.statistics.compression_rows import CompressionSamples
from purify_audit.statistics.estimates import Estimate

_REPLAY_TOLERANCE = 1e-4  # of a distance; kernels may differ in the last bits by row and batch
_REPLAY_ROWS = 16  # computed together: a whole micro-batch for one cell is mostly padding


def postcheck(
    subject: Subject, samples: CompressionSamples, floor: dict[str, float], before: list[Finding]
) -> list[Finding]:
    """Findings from the rows, and those that user code caused during the measurement.

    Args:
        subject: what was audited.
        samples: the rows.
        floor: change of the output caused by rounding alone, by norm.
        before: earlier findings.
    """
    estimates = [estimate(data, subject.plan) for data in per_image(samples, subject.plan)]
    checks = [
        _broken(samples),
        _near_floor(estimates, floor, subject.plan),
        _anchors_lost(estimates),
    ]
    findings = [check for check in checks if check is not None]
    return findings + _late_findings(subject, before)


def recheck(subject: Subject, samples: CompressionSamples) -> list[Finding]:
    """Findings where a recomputed cell differs, or the tolerance was not reached."""
    return _replays(subject, samples) + _tolerance_missed(samples, subject.plan)


def _late_findings(subject: Subject, before: list[Finding]) -> list[Finding]:
    """Findings that user code caused only while it was measured."""
    if not isinstance(subject.purifier, UserPurifier):
        return []
    known = {f.code for f in before}
    return [f for f in subject.purifier.findings() if f.code not in known]


def _broken(samples: CompressionSamples) -> Finding | None:
    ids = broken_images(samples)
    if not len(ids):
        return None
    return finding(
        "PA202",
        f"NaN or infinity appeared while purifying {len(ids)} of the images.",
        {"image_ids": ids.tolist()[:20], "count": len(ids)},
    )


def _near_floor(
    estimates: list[Estimate], floor: dict[str, float], plan: AuditPlan
) -> Finding | None:
    """Whether rounding alone would give a tenth of any rate, or more."""
    sizes = {(e.probe, e.eps, e.norm): e.value for e in estimates if e.metric == "distance_delta"}
    for e in estimates:
        if e.metric != "compression_rate" or e.norm is None or not floor.get(e.norm):
            continue
        rounding = floor[e.norm] / sizes[e.probe, e.eps, e.norm]
        if rounding > 0.1 * e.value:
            return finding(
                "PA201",
                f"The {e.norm} rate of probe {e.probe} is {e.value:.3g};"
                f" rounding alone gives {rounding:.3g}.",
                {"rate": e.value, "floor": rounding, "probe": str(e.probe), "norm": e.norm},
            )
    return None


def _replays(subject: Subject, samples: CompressionSamples) -> list[Finding]:
    """Recompute one cell of the first image, chosen by the seed."""
    rows, plan = samples.probes, subject.plan
    power = [n for n, probe in enumerate(plan.probes) if probe.kind == "power"]
    pool = np.flatnonzero((rows.image == subject.images.ids[0]) & ~np.isin(rows.probe, power))
    pool = pool if len(pool) else np.flatnonzero(rows.image == subject.images.ids[0])
    choice = Noise(plan.seed, (0,), (0,), Stream.CHOICE)
    n = pool[int(choice.integers(0, (1,), len(pool)))]
    columns = (rows.image, rows.draw, rows.probe, rows.radius, rows.direction)
    at = Address(*(int(column[n]) for column in columns))
    exact = plan.engine.precision == "float32"  # others differ more from batch to batch
    size = min(plan.microbatch, _REPLAY_ROWS) if exact else plan.microbatch
    quiet = subject.runner(microbatch=size)
    cell = replay(quiet, subject.images, subject.user_images, plan, samples, at)
    gap = cell.largest_difference
    if gap <= _REPLAY_TOLERANCE or not np.isfinite(rows.change_l2[n]):
        return []
    return [
        finding(
            "PA203",
            f"Image {at.image}, draw {at.draw}, computed again at the end, differs by {gap:.3g}.",
            {"image": at.image, "draw": at.draw, "difference": gap},
        )
    ]


def _anchors_lost(estimates: list[Estimate]) -> Finding | None:
    accuracy = {e.metric: e for e in estimates if e.metric.endswith("_accuracy")}
    clean, anchor = accuracy.get("clean_accuracy"), accuracy.get("anchor_accuracy")
    if clean is None or anchor is None or anchor.value >= 0.95 * clean.value:
        return None
    return finding(
        "PA204",
        f"The classifier is right on {anchor.value:.1%} of purified clean images,"
        f" and on {clean.value:.1%} of unpurified ones.",
        {"anchor_accuracy": anchor.value, "clean_accuracy": clean.value},
    )


def _tolerance_missed(samples: CompressionSamples, plan: AuditPlan) -> list[Finding]:
    if plan.tolerance is None or within_tolerance(samples, plan):
        return []
    return [
        finding(
            "PA205",
            f"The interval of the compression rate is still wider than ±{plan.tolerance:g}.",
            {"tolerance": plan.tolerance, "images": len(np.unique(samples.anchors.image))},
        )
    ]
