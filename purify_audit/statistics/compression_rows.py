"""Raw rows of a measurement: columns of numbers, before any statistics. No torch."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np

from purify_audit.core.errors import ReportError


@dataclass(frozen=True, slots=True)
class ProbeRows:
    """One row per image x draw x probe x radius x direction; norms in float64, pixel units.

    Attributes:
        image: image id.
        draw: draw id.
        probe: place of the probe in the plan.
        radius: place of the radius in the plan.
        direction: place among the probe's directions (for `power`: rank, 0 the first).
        delta_l2: ‖δ‖₂ of the perturbation that was really applied.
        delta_linf: ‖δ‖∞.
        change_l2: ‖P(x+δ; ξ) − P(x; ξ)‖₂, one draw on both sides.
        change_linf: the same in l-inf.
        unaligned_l2: ‖P(x+δ; ξ) − P(x; ξ')‖₂ with the next draw's anchor; NaN for one draw.
        unaligned_linf: the same in l-inf.
        moved_l2: ‖P(x+δ; ξ) − x‖₂.
        moved_linf: the same in l-inf.
    """

    image: np.ndarray
    draw: np.ndarray
    probe: np.ndarray
    radius: np.ndarray
    direction: np.ndarray
    delta_l2: np.ndarray
    delta_linf: np.ndarray
    change_l2: np.ndarray
    change_linf: np.ndarray
    unaligned_l2: np.ndarray
    unaligned_linf: np.ndarray
    moved_l2: np.ndarray
    moved_linf: np.ndarray


@dataclass(frozen=True, slots=True)
class AnchorRows:
    """One row per image x draw.

    Attributes:
        image: image id.
        draw: draw id.
        moved_l2: ‖P(x; ξ) − x‖₂.
        moved_linf: the same in l-inf.
        correct: 1 or 0: the classifier's verdict on the anchor; −1 without a classifier.
        clean_correct: the same for the image itself.
    """

    image: np.ndarray
    draw: np.ndarray
    moved_l2: np.ndarray
    moved_linf: np.ndarray
    correct: np.ndarray
    clean_correct: np.ndarray


@dataclass(frozen=True, slots=True)
class VarianceRows:
    """One row per image x random probe x radius: variances of P(x+δ; ξ), summed over pixels.

    Attributes:
        image: image id.
        probe: place of the probe in the plan.
        radius: place of the radius in the plan.
        between_draws: Var_ξ(E_δ[P]), unbiased, so it may be negative.
        within_draws: E_ξ(Var_δ[P]), unbiased.
    """

    image: np.ndarray
    probe: np.ndarray
    radius: np.ndarray
    between_draws: np.ndarray
    within_draws: np.ndarray


@dataclass(frozen=True, slots=True)
class CompressionSamples:
    """Everything `measure_compression` saw."""

    probes: ProbeRows
    anchors: AnchorRows
    variances: VarianceRows


def join(parts: list[CompressionSamples]) -> CompressionSamples:
    """All rows of several measurements, in order."""
    return CompressionSamples(
        _join(ProbeRows, [p.probes for p in parts]),
        _join(AnchorRows, [p.anchors for p in parts]),
        _join(VarianceRows, [p.variances for p in parts]),
    )


_Rows = TypeVar("_Rows", ProbeRows, AnchorRows, VarianceRows)


def _join(kind: type[_Rows], parts: list[_Rows]) -> _Rows:
    return kind(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(kind)}
    )


_TABLES = {"probes": ProbeRows, "anchors": AnchorRows, "variances": VarianceRows}


def to_columns(samples: CompressionSamples) -> dict[str, np.ndarray]:
    """All columns, named `<table>.<column>`."""
    return {
        f"{table}.{f.name}": getattr(getattr(samples, table), f.name)
        for table, kind in _TABLES.items()
        for f in fields(kind)
    }


def from_columns(columns: dict[str, np.ndarray]) -> CompressionSamples:
    """What `to_columns` took apart.

    Raises:
        KeyError: a column is missing.
    """
    return CompressionSamples(
        *(
            kind(**{f.name: columns[f"{table}.{f.name}"] for f in fields(kind)})
            for table, kind in _TABLES.items()
        )
    )


def save_samples(path: Path, samples: CompressionSamples) -> None:
    """Write all columns to one safetensors file."""
    from safetensors.numpy import save

    path.write_bytes(save(to_columns(samples)))


def load_samples(path: Path) -> CompressionSamples:
    """Read what `save_samples` wrote.

    Raises:
        ReportError: no such file, damaged, or not such a file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return from_columns(load_file(path))
    except (SafetensorError, OSError, KeyError) as error:
        raise ReportError(f"{path}: the rows of the report cannot be read: {error}") from None
