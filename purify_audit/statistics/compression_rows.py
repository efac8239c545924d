"""Rows of a compression measurement, and their files. No torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from purify_audit.statistics.columns import (
    Columns,
    columns_of,
    concatenated,
    read_columns,
    table_of,
    write_columns,
)


@dataclass(frozen=True, slots=True)
class ProbeRows:
    """One row per image x draw x probe x radius x direction; norms in float64, pixel units.

    Attributes:
        image: image id.
        draw: draw id.
        probe: index of the probe in the plan.
        radius: index of the radius in the plan.
        direction: index of the direction (`power`: rank, 0 the strongest).
        delta_l2: ‖δ‖₂ of the perturbation, after clipping to [0, 1].
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
        correct: 1 if the classifier is right about P(x; ξ), else 0; −1 without a classifier.
        clean_correct: the same for x.
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
        probe: index of the probe in the plan.
        radius: index of the radius in the plan.
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
    """All rows of `measure_compression`."""

    probes: ProbeRows
    anchors: AnchorRows
    variances: VarianceRows


_TABLES = {"probes": ProbeRows, "anchors": AnchorRows, "variances": VarianceRows}


def join(parts: list[CompressionSamples]) -> CompressionSamples:
    """All rows of several measurements, in order."""
    return CompressionSamples(
        *(concatenated([getattr(part, name) for part in parts]) for name in _TABLES)
    )


def to_columns(samples: CompressionSamples) -> Columns:
    """All columns, named `<table>.<column>`."""
    tables = (columns_of(getattr(samples, name), f"{name}.") for name in _TABLES)
    return {name: column for columns in tables for name, column in columns.items()}


def from_columns(columns: Columns) -> CompressionSamples:
    """The inverse of `to_columns`.

    Raises:
        KeyError: a column is missing.
    """
    return CompressionSamples(
        *(table_of(kind, columns, f"{name}.") for name, kind in _TABLES.items())
    )


def save_samples(path: Path, samples: CompressionSamples) -> None:
    """Write all columns to one safetensors file."""
    write_columns(path, to_columns(samples))


def load_samples(path: Path) -> CompressionSamples:
    """Read a file of `save_samples`.

    Raises:
        ReportError: the file is missing, damaged, or of another kind.
    """
    complaint = "the rows of the report cannot be read"
    return read_columns(path, lambda columns, metadata: from_columns(columns), complaint)
