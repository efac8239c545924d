"""Per-image tables (CSV, safetensors): the values of which the estimates are means."""

import csv
import io
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from purify_audit.report.schema import Report
from purify_audit.statistics.attack import attack_values
from purify_audit.statistics.attack_rows import AttackSamples
from purify_audit.statistics.compression import PerImageValues, per_image
from purify_audit.statistics.compression_rows import CompressionSamples

Row = dict[str, int | float | str | None]
"""Columns of an image; none if not measured, infinity if never fooled."""


def per_image_rows(
    report: Report, samples: CompressionSamples | None, attacks: AttackSamples | None
) -> list[Row]:
    """A row for each image of a report, in its order.

    Columns: `image`, `label`; each metric as `metric/norm/probe/eps` (without missing parts),
    whose mean over images is the estimate (of `rms_gain`: whose root mean square is);
    and `margin` and `fooling_radius` of the attack, as `ImageVerdict` defines them.
    """
    columns: dict[str, dict[int, float]] = {}
    for data in chain(_compression(report, samples), _attacks(report, attacks)):
        ids, values = data.images.tolist(), _values(data).tolist()
        columns[_name(data)] = dict(zip(ids, values, strict=True))
    labels: dict[int, int] = {}
    if attacks is not None:
        labels = dict(zip(attacks.ids.tolist(), attacks.labels.tolist(), strict=True))
    if report.attack is not None:
        for v in report.attack.images:
            labels[v.image] = v.label
            columns.setdefault("margin", {})[v.image] = v.margin
            fooled_at = math.inf if v.fooling_radius is None else v.fooling_radius
            columns.setdefault("fooling_radius", {})[v.image] = fooled_at
    rows: list[Row] = [{"image": i, "label": labels.get(i)} for i in report.data.ids]
    for row, i in zip(rows, report.data.ids, strict=True):
        row |= {name: values.get(i) for name, values in columns.items()}
    return rows


def _compression(report: Report, samples: CompressionSamples | None) -> Iterator[PerImageValues]:
    if samples is not None:
        yield from per_image(samples, report.plan)


def _attacks(report: Report, attacks: AttackSamples | None) -> Iterator[PerImageValues]:
    if attacks is not None:
        yield from attack_values(attacks, report.plan)


def _values(data: PerImageValues) -> np.ndarray:
    return np.sqrt(data.values) if data.metric == "rms_gain" else data.values


def _name(data: PerImageValues) -> str:
    eps = None if data.eps is None else repr(float(data.eps))
    return "/".join(part for part in (data.metric, data.norm, data.probe, eps) if part)


def csv_text(rows: list[Row]) -> str:
    """Rows as comma-separated values (RFC 4180) with a header; missing values are empty."""
    if not rows:
        return ""
    text = io.StringIO(newline="")
    names = list(rows[0])
    out = csv.writer(text)
    out.writerow(map(_cell, names))
    out.writerows([_cell(row[name]) for name in names] for row in rows)
    return text.getvalue()


def _cell(value: float | str | None) -> str:
    """A cell; text that a spreadsheet would run as a formula is prefixed with an apostrophe."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value


def save_per_image(path: Path, rows: list[Row]) -> None:
    """Write the columns of numbers to a safetensors file.

    Columns of whole numbers are int64, others float64 with NaN for missing values; columns of text
    and columns without any value are left out.
    """
    from safetensors.numpy import save

    columns: dict[str, np.ndarray] = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        if any(isinstance(v, str) for v in values) or all(v is None for v in values):
            continue
        whole = all(isinstance(v, int) for v in values)
        kept = [math.nan if v is None else v for v in values]
        columns[name] = np.array(kept, np.int64 if whole else np.float64)
    path.write_bytes(save(columns))
