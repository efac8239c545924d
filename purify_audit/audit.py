"""The straight line: plan -> models and images -> preflight -> rows -> estimates -> report."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from purify_audit import __version__
from purify_audit.aftercheck import aftercheck, check_again
from purify_audit.compression import (
    Classify,
    StoppedEarly,
    measure_compression,
    padded_rows,
    rows_per_image,
)
from purify_audit.estimates import Estimate
from purify_audit.findings import Finding
from purify_audit.model_info import captured_draws, data_info, model_info
from purify_audit.noise import NOISE_SPEC
from purify_audit.plan import AuditPlan
from purify_audit.preflight import Preflight, preflight
from purify_audit.purifier import Classifier
from purify_audit.report.citations import citations
from purify_audit.report.schema import Report
from purify_audit.runtime import Runner, Stopped, deterministic, environment, memory_advice
from purify_audit.samples import CompressionSamples, from_columns, join, to_columns
from purify_audit.statistics import (
    SPREAD_METRICS,
    PerImage,
    estimate,
    per_image,
    quantiles,
    within_tolerance,
)
from purify_audit.store import RunStore, Unit
from purify_audit.subject import Subject
from purify_audit.work import Phase

PREFLIGHT = "preflight"
"""The phase of a run that is done before all others."""

_UNUSABLE = ("PA104", "PA111")  # there is no output to measure
_INTERIM_SECONDS = 1.0  # between two estimates on the way, each of which is made of all rows
_GROUP_BATCHES = 32  # micro-batches in a group of images at most: a stop may lose its power rows
_GROUP_SLACK = 1.02  # padding may cost this much more than at the best size
_GROUP_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Watch:
    """How a run tells of its progress, and learns that it should end.

    Attributes:
        tick: called with the number of rows after every micro-batch; raises `Stopped` to end.
        interim: called with the first compression rate so far after every group of images.
        enough: asked at every look of the plan with what there is; the run ends once it says so.
    """

    tick: Callable[[int], None] = lambda rows: None
    interim: Callable[[Estimate], None] = lambda estimate: None
    enough: "Callable[[Outcome], bool]" = lambda outcome: False


@dataclass(frozen=True, slots=True)
class Outcome:
    """A report, and the rows it was made of (none when preflight ended the audit)."""

    report: Report
    samples: CompressionSamples | None


def audit(
    subject: Subject,
    watch: Watch,
    measure_anyway: bool = False,
    store: RunStore | None = None,
) -> Outcome:
    """Measure how a purifier compresses, with everything that may be wrong with it.

    Args:
        subject: what is audited.
        watch: progress and interruption.
        measure_anyway: measure even when preflight finds an error.
        store: where finished groups of images are kept, and taken from.
    """
    plan = subject.plan
    runner = Runner(subject.purifier, subject.device, plan.seed, plan.microbatch, watch.tick)
    with deterministic():
        before = looked_over(subject, runner, store)
        findings, floor = list(before.findings), before.floor
        if ends_the_audit(findings, measure_anyway):
            return Outcome(_report(subject, "partial", findings, floor, None), None)
        samples, complete = _measure(subject, runner, watch, before, store)
        if samples is not None:
            findings += aftercheck(subject, samples, floor, findings)
            if complete:  # somebody who asked to stop should not wait for more
                findings += check_again(subject, samples)
    status = "complete" if complete else "partial"
    return Outcome(_report(subject, status, findings, floor, samples), samples)


def looked_over(subject: Subject, runner: Runner, store: RunStore | None) -> Preflight:
    """What preflight saw, in this process or in another that works on the same run."""

    def make(place: int) -> Unit:
        return preflight(runner, subject.images, subject.plan).packed()

    (unit,) = Phase(PREFLIGHT, 1, make).units(store)
    return Preflight.unpacked(unit)


def ends_the_audit(findings: list[Finding], measure_anyway: bool) -> bool:
    """Whether nothing is measured after these findings of preflight."""
    fatal = any(f.code in _UNUSABLE for f in findings)
    return fatal or (any(f.severity == "error" for f in findings) and not measure_anyway)


def _measure(
    subject: Subject, runner: Runner, watch: Watch, before: Preflight, store: RunStore | None
) -> tuple[CompressionSamples | None, bool]:
    """Rows group by group, until the plan is done, the tolerance is reached, or a stop."""
    plan, parts, rates = subject.plan, list[CompressionSamples](), list[PerImage]()
    done, told = 0, -math.inf
    try:
        for unit in compression_phase(subject, runner).units(store):
            parts.append(from_columns(unit.arrays))
            rates += itertools.islice(_rates(parts[-1], plan), 1)
            if rates and time.monotonic() - told > _INTERIM_SECONDS:
                watch.interim(estimate(_joined(rates), plan))
                told = time.monotonic()
            done += len(np.unique(parts[-1].anchors.image))
            if done in plan.looks and _enough(subject, watch, before, join(parts)):
                break
    except StoppedEarly as stop:
        return join([*parts, stop.samples]), False
    except Stopped:
        return join(parts) if parts else None, False
    return join(parts), True


def _rates(samples: CompressionSamples, plan: AuditPlan) -> Iterator[PerImage]:
    return (data for data in per_image(samples, plan) if data.metric == "compression_rate")


def _joined(rates: list[PerImage]) -> PerImage:
    """One metric of several groups of images."""
    images, values = (np.concatenate([getattr(r, n) for r in rates]) for n in ("images", "values"))
    return replace(rates[0], images=images, values=values)


def compression_phase(subject: Subject, runner: Runner) -> Phase:
    """Rows of every group of images, as units that need nothing of one another."""
    plan = subject.plan
    classify = None if subject.judge is None else _classify(subject.judge[1], subject)
    spans = list(groups(plan, subject.images.image_bytes))

    def make(place: int) -> Unit:
        rows = spans[place]
        brought = None if subject.brought is None else subject.brought.select(rows)
        images = subject.images.select(rows)
        samples = measure_compression(runner, images, plan, brought, classify)
        return Unit(to_columns(samples), {})

    return Phase("compression", len(spans), make)


def _enough(subject: Subject, watch: Watch, before: Preflight, sofar: CompressionSamples) -> bool:
    """Whether the run may end at a look."""
    if within_tolerance(sofar, subject.plan):
        return True
    told = _report(subject, "complete", before.findings, before.floor, sofar)
    return watch.enough(Outcome(told, sofar))


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
        for first in range(0, len(x), size):
            batch = torch.from_numpy(x[first : first + size].copy()).to(subject.device)
            with memory_advice(subject.device, size):
                labels.append(classifier(batch).argmax(1).cpu().numpy())
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
    judge = subject.judge
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
            "classifier": None if judge is None else model_info(judge[0], judge[0].card, None),
            "data": data_info(subject, used),
            "estimates": tuple(estimate(d, subject.plan) for d in data),
            "quantiles": tuple(quantiles(d) for d in data if d.metric in SPREAD_METRICS),
            "numeric_floor": floor,
            "findings": tuple(findings),
            "citations": citations(subject.card, subject.plan),
            "rows_sha256": None,
        }
    )
