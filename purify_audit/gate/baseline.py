"""A baseline: a report with its per-image values, with which later reports are compared."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purify_audit.core.errors import ReportError
from purify_audit.gate.paired import Column, pair
from purify_audit.report.rows import stored_attacks, stored_samples
from purify_audit.report.schema import Report, parse_report, read_report
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.statistics.attack import attack_values
from purify_audit.statistics.attack_rows import AttackSamples
from purify_audit.statistics.columns import (
    Columns,
    columns_of,
    read_columns,
    table_of,
    write_columns,
)
from purify_audit.statistics.compression import per_image
from purify_audit.statistics.compression_rows import CompressionSamples
from purify_audit.statistics.estimates import Estimate, Pairing
from purify_audit.statistics.metrics import metric_info

Key = tuple[str, str | None, str | None, float | None]
"""Metric, norm, probe, radius."""

_NUMERICS = ("device", "torch", "threads", "precision")
_SAME_PLAN = ("norm", "eps", "probes", "draws", "directions", "seed", "microbatch")


@dataclass(frozen=True, slots=True)
class Baseline:
    """A report and its per-image values.

    Attributes:
        report: the report.
        columns: of every metric that is a mean over images.
    """

    report: Report
    columns: dict[Key, Column]


def values_of(report: Report, folder: Path) -> Baseline:
    """A saved report with the values in its files of rows.

    Raises:
        ReportError: the files are missing or changed.
    """
    attacked = report.attacks_sha256 is not None
    attacks = stored_attacks(report, folder) if attacked else None
    return Baseline(report, columns(report.plan, stored_samples(report, folder), attacks))


def columns(
    plan: AuditPlan, samples: CompressionSamples, attacks: AttackSamples | None
) -> dict[Key, Column]:
    """The value of each metric for each image."""
    parts = [per_image(samples, plan)]
    parts += [] if attacks is None else [attack_values(attacks, plan)]
    return {
        (data.metric, data.norm, data.probe, data.eps): Column(data.images, data.values)
        for part in parts
        for data in part
    }


def open_baseline(path: Path) -> Baseline:
    """A baseline file, or a report with its files of rows.

    Raises:
        ReportError: it is neither, or damaged.
    """
    if path.suffix == ".json":
        return values_of(read_report(path), path.parent)

    def build(arrays: Columns, metadata: Mapping[str, str]) -> Baseline:
        keys: list[list[Any]] = json.loads(metadata["columns"])
        columns = {
            (metric, norm, probe, eps): table_of(Column, arrays, suffix=f".{n}")
            for n, (metric, norm, probe, eps) in enumerate(keys)
        }
        return Baseline(parse_report(metadata["report"].encode(), path), columns)

    baseline = read_columns(path, build, "is neither a baseline nor a report")
    for e in baseline.report.estimates:
        column = baseline.columns.get((e.metric, e.norm, e.probe, e.eps))
        if column is None or e.metric == "rms_gain":  # a root of a mean
            continue
        if not math.isclose(float(column.values.mean()), e.value, rel_tol=1e-6, abs_tol=1e-9):
            raise ReportError(f"{path}: its values of {e.metric} do not match its report")
    return baseline


def save_baseline(path: Path, baseline: Baseline) -> None:
    """Write one safetensors file: the report in its header, the values as tensors."""
    report = baseline.report
    if report.run is not None:  # the digest of a report upgraded from an older schema is another
        run = report.run.model_copy(update={"body_sha256": report.body_sha256()})
        report = report.model_copy(update={"run": run})
    tensors: Columns = {}
    for n, column in enumerate(baseline.columns.values()):
        tensors |= columns_of(column, suffix=f".{n}")
    header = {
        "report": report.model_dump_json(indent=1),
        "columns": json.dumps(list(baseline.columns)),
    }
    write_columns(path, tensors, header)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two comparable sets of values.

    Attributes:
        new: the report that is judged.
        old: the baseline.
    """

    new: Baseline
    old: Baseline

    def __call__(self, e: Estimate, level: float, looks: int = 1) -> Pairing:
        """The change of an estimate, paired by image under the same draws.

        The level is shared by `looks` looks.

        Raises:
            ReportError: the baseline lacks it, or settings on which it depends differ.
        """
        key = (e.metric, e.norm, e.probe, e.eps)
        if key not in self.old.columns:
            raise ReportError(
                f"the baseline has no {e.metric} of probe {e.probe} at this radius; measure"
                " it again with this report's settings"
            )
        both = self.new.report, self.old.report
        if metric_info(e.metric).stage != "compress":
            _refuse(_differing(*(_attacks(r) for r in both)))
        if metric_info(e.metric).stage != "compress" or "accuracy" in e.metric:
            _refuse(_differing(*(_classifier(r) for r in both)))
        return pair(e, self.new.columns[key], self.old.columns[key], level, looks)


def compare(new: Baseline, old: Baseline) -> Comparison:
    """Two sets of values of the same images, draws and arithmetic.

    Raises:
        ReportError: they differ; the message says in what.
    """
    _refuse(list(_incomparable(new.report, old.report)))
    return Comparison(new, old)


def _refuse(differences: list[str]) -> None:
    if differences:
        raise ReportError(
            f"the baseline cannot be compared with: {'; '.join(differences)}; measure it again"
            " with this report's settings"
        )


def _incomparable(new: Report, old: Report) -> Iterator[str]:
    """Differences between two reports other than the purifier."""
    yield from _untrustworthy(old)
    if new.noise_spec != old.noise_spec:
        yield f"noise is {new.noise_spec}, in the baseline {old.noise_spec}"
    old_digests = dict(zip(old.data.ids, old.data.image_digests, strict=True))
    shared = [
        (i, d)
        for i, d in zip(new.data.ids, new.data.image_digests, strict=True)
        if i in old_digests
    ]
    if len(shared) < 2:
        yield "fewer than two images in common"
    elif changed := [i for i, digest in shared if old_digests[i] != digest]:
        yield f"images differ under the same id, e.g. {changed[0]}"
    user_images = [{"perturbed images": r.data.user_images_digest} for r in (new, old)]
    yield from _differing(*user_images)
    yield from _differing(*(_numerics(r.environment) for r in (new, old)))
    yield from _differing(*(_dumped(r.plan, _SAME_PLAN) for r in (new, old)))


def check_plan(plan: AuditPlan, environment: dict[str, Any], old: Baseline) -> None:
    """Refuse, before the audit, a baseline with which it could not be compared.

    Raises:
        ReportError: settings differ; the message says which.
    """
    new_settings = _dumped(plan, _SAME_PLAN) | _numerics(environment)
    old_settings = _dumped(old.report.plan, _SAME_PLAN) | _numerics(old.report.environment)
    _refuse([*_untrustworthy(old.report), *_differing(new_settings, old_settings)])


def _untrustworthy(old: Report) -> list[str]:
    codes = sorted({f.code for f in old.findings if f.severity == "error"})
    return [f"it has errors among its findings, {', '.join(codes)}"] if codes else []


def _numerics(environment: dict[str, Any]) -> dict[str, Any]:
    """What decides the last digits, including the model of a GPU."""
    names = (*_NUMERICS, "device_name") if environment.get("device") == "cuda" else _NUMERICS
    return {name: environment.get(name) for name in names}


def _differing(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    return [
        f"{name} is {new.get(name)}, in the baseline {old.get(name)}"
        for name in new | old
        if new.get(name) != old.get(name)
    ]


def _dumped(plan: AuditPlan, names: tuple[str, ...]) -> dict[str, Any]:
    return plan.model_dump(mode="json", include=set(names))


def _attacks(report: Report) -> dict[str, Any]:
    attack, info = report.plan.attack, report.attack
    plan = {} if attack is None else attack.model_dump(mode="json", exclude={"predict_only"})
    return plan | ({} if info is None else _numerics(info.environment))


def _classifier(report: Report) -> dict[str, Any]:
    classifier = report.classifier
    return {"classifier": None if classifier is None else classifier.sha256[:12]}
