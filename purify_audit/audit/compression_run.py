"""Measure compression: preflight, rows, estimates, report."""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from purify_audit import __version__
from purify_audit.audit.model_info import captured_draws, classifier_info, data_info, model_info
from purify_audit.audit.phases import Phase
from purify_audit.audit.postchecks import postcheck, recheck
from purify_audit.audit.result import SILENT, AuditResult, Decided, Progress, never_decided
from purify_audit.audit.store import RunStore, Unit
from purify_audit.audit.subject import Subject
from purify_audit.audit.units import packed_preflight, unpacked_preflight
from purify_audit.compression.measure import (
    Classify,
    StoppedEarly,
    measure_compression,
    padded_rows,
    rows_per_image,
)
from purify_audit.compression.preflight import Preflight, preflight
from purify_audit.core.findings import Finding
from purify_audit.core.noise import NOISE_SPEC
from purify_audit.models.microbatches import microbatches
from purify_audit.models.protocols import Classifier
from purify_audit.models.runner import Runner, Stopped, deterministic, environment, memory_advice
from purify_audit.report.citations import citations
from purify_audit.report.schema import Report
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.statistics.compression import (
    SPREAD_METRICS,
    PerImageValues,
    estimate,
    per_image,
    quantiles,
    within_tolerance,
)
from purify_audit.statistics.compression_rows import (
    CompressionSamples,
    from_columns,
    join,
    to_columns,
)

PREFLIGHT = "preflight"
"""Name of the first phase of a run."""

_UNUSABLE = ("PA104", "PA111")  # there is no output to measure
_INTERIM_SECONDS = 1.0  # between two interim estimates, each computed from all rows
_GROUP_BATCHES = 32  # micro-batches in a group of images at most: a stop may lose its power rows
_GROUP_SLACK = 1.02  # padding may cost this much more than at the best size
_GROUP_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class _Callbacks:
    progress: Progress
    decided: Decided


def run_compression(
    subject: Subject,
    progress: Progress = SILENT,
    *,
    decided: Decided = never_decided,
    measure_anyway: bool = False,
    store: RunStore | None = None,
) -> AuditResult:
    """Measure the compression rate of a purifier, with findings for what may be wrong.

    Args:
        subject: what is audited.
        progress: progress callbacks; `Stopped` raised there gives a partial result.
        decided: early decision, asked at every look of the plan.
        measure_anyway: measure even when preflight finds an error.
        store: where finished groups of images are stored, and read from.
    """
    runner = subject.runner(progress.tick)
    with deterministic():
        before = run_preflight(subject, runner, store)
        findings, floor = list(before.findings), before.floor
        if ends_the_audit(findings, measure_anyway):
            return AuditResult(_report(subject, "partial", findings, floor, None), None)
        samples, complete = _measure(subject, runner, _Callbacks(progress, decided), before, store)
        if samples is not None:
            findings += postcheck(subject, samples, floor, findings)
            if complete:  # after a request to stop, nothing more is computed
                findings += recheck(subject, samples)
    status = "complete" if complete else "partial"
    return AuditResult(_report(subject, status, findings, floor, samples), samples)


def run_preflight(subject: Subject, runner: Runner, store: RunStore | None) -> Preflight:
    """Results of preflight: computed here, or by another process of the same run."""

    def make(place: int) -> Unit:
        return packed_preflight(preflight(runner, subject.images, subject.plan))

    (unit,) = Phase(PREFLIGHT, 1, make).units(store)
    return unpacked_preflight(unit)


def ends_the_audit(findings: list[Finding], measure_anyway: bool) -> bool:
    """Whether nothing is measured after these findings of preflight."""
    fatal = any(f.code in _UNUSABLE for f in findings)
    return fatal or (any(f.severity == "error" for f in findings) and not measure_anyway)


def _measure(
    subject: Subject,
    runner: Runner,
    callbacks: _Callbacks,
    before: Preflight,
    store: RunStore | None,
) -> tuple[CompressionSamples | None, bool]:
    """Rows group by group, until the plan is done, the tolerance is reached, or a stop."""
    plan, parts, rates = subject.plan, list[CompressionSamples](), list[PerImageValues]()
    done, shown = 0, -math.inf
    try:
        for unit in compression_phase(subject, runner).units(store):
            parts.append(from_columns(unit.arrays))
            rates += itertools.islice(_rates(parts[-1], plan), 1)
            if rates and time.monotonic() - shown > _INTERIM_SECONDS:
                callbacks.progress.rate(estimate(_joined(rates), plan))
                shown = time.monotonic()
            done += len(np.unique(parts[-1].anchors.image))
            if done in plan.looks and _ends_at_look(subject, callbacks, before, join(parts)):
                break
    except StoppedEarly as stop:
        return join([*parts, stop.samples]), False
    except Stopped:
        return join(parts) if parts else None, False
    return join(parts), True


def _rates(samples: CompressionSamples, plan: AuditPlan) -> Iterator[PerImageValues]:
    return (data for data in per_image(samples, plan) if data.metric == "compression_rate")


def _joined(rates: list[PerImageValues]) -> PerImageValues:
    """One metric of several groups of images."""
    images, values = (np.concatenate([getattr(r, n) for r in rates]) for n in ("images", "values"))
    return replace(rates[0], images=images, values=values)


def compression_phase(subject: Subject, runner: Runner) -> Phase:
    """Rows of every group of images, as units that need nothing of one another."""
    plan = subject.plan
    classify = None if subject.classifier is None else _classify(subject.classifier.model, subject)
    spans = list(groups(plan, subject.images.image_bytes))

    def make(place: int) -> Unit:
        rows = spans[place]
        user_images = None if subject.user_images is None else subject.user_images.select(rows)
        images = subject.images.select(rows)
        samples = measure_compression(runner, images, plan, user_images, classify)
        return Unit(to_columns(samples), {})

    return Phase("compression", len(spans), make)


def _ends_at_look(
    subject: Subject, callbacks: _Callbacks, before: Preflight, sofar: CompressionSamples
) -> bool:
    """Whether the run may end at a look."""
    if within_tolerance(sofar, subject.plan):
        return True
    report = _report(subject, "complete", before.findings, before.floor, sofar)
    return callbacks.decided(AuditResult(report, sofar))


def groups(plan: AuditPlan, image_bytes: int) -> Iterator[list[int]]:
    """Rows of images that are measured together, never across a look.

    Within the bounds on work and memory, the smallest size that wastes little on padding.
    """
    each = rows_per_image(plan)
    most = min(_GROUP_BATCHES * plan.microbatch // each, _GROUP_BYTES // (each * image_bytes))
    spans = [end - start for start, end in itertools.pairwise((0, *plan.looks))]

    def cost(size: int) -> int:
        parts = [divmod(span, size) for span in spans]
        return sum(n * padded_rows(plan, size) + padded_rows(plan, rest) for n, rest in parts)

    costs = {n: cost(n) for n in range(1, min(max(most, 1), max(spans)) + 1)}
    best = next(n for n in costs if costs[n] <= _GROUP_SLACK * min(costs.values()))
    first = 0
    for end in plan.looks:
        while first < end:
            last = min(first + best, end)
            yield list(range(first, last))
            first = last


def _classify(classifier: Classifier, subject: Subject) -> Classify:
    def classify(x: np.ndarray) -> np.ndarray:
        size, labels = subject.plan.microbatch, []
        for batch in microbatches(len(x), size, least=1):
            images = torch.from_numpy(x[batch.rows]).to(subject.device)
            with memory_advice(subject.device, size):
                labels.append(classifier(images).argmax(1).cpu().numpy())
        return np.concatenate(labels)

    return classify


def _report(
    subject: Subject,
    status: str,
    findings: list[Finding],
    floor: dict[str, float],
    samples: CompressionSamples | None,
) -> Report:
    data = [] if samples is None else list(per_image(samples, subject.plan))
    used = 0 if samples is None else len(np.unique(samples.anchors.image))
    return Report.model_validate(
        {
            "tool_version": __version__,
            "noise_spec": NOISE_SPEC,
            "status": status,
            "plan": subject.plan,
            "plan_digest": subject.plan.digest,
            "environment": environment(subject.device, subject.plan.engine),
            "checkpoint": model_info(
                subject.checkpoint, subject.card, subject.purifier.evaluations
            ).model_copy(update={"draws": captured_draws(subject)}),
            "classifier": classifier_info(subject),
            "data": data_info(subject, used),
            "estimates": tuple(estimate(d, subject.plan) for d in data),
            "quantiles": tuple(quantiles(d) for d in data if d.metric in SPREAD_METRICS),
            "numeric_floor": floor,
            "findings": tuple(findings),
            "citations": citations(subject.card, subject.plan),
            "rows_sha256": None,
        }
    )
