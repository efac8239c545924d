"""Adversarial images and predicted labels of attacks, and their files. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from purify_audit.statistics.columns import (
    Columns,
    columns_of,
    concatenated,
    read_columns,
    table_of,
    write_columns,
)

RUNS = (
    "image",
    "smaller-radius",
    "predicted",
    "bare",
    "transfer",
    "targeted",
    "untargeted",
    "bpda",
    "square",
    "continuation",
)
"""What made an adversarial image: the clean image itself, the main attack at a smaller radius, the
prediction, the attack on the bare classifier, a run of the main attack (`attacks.portfolio`), or a
comparison attack."""

_RENAMED = {"falls_at": "fooling_radius", "portraits": "example_images"}  # of report schema 1.0


@dataclass(frozen=True, slots=True)
class Scored:
    """One attack at one radius: its images, and the predicted labels of their purifications.

    Attributes:
        name: aligned, fresh (aimed at the mean over draws), fresh-vote, fresh-worst, bare,
            predicted, or a comparison attack: bpda, square, continuation, unbounded.
        eps: radius, pixel units.
        images: the adversarial images, float32 [n, c, h, w].
        aligned: predicted labels under the aligned draws, int64 [n, K].
        held_out: predicted labels under the scoring draws, int64 [n, H] (H = 0: not scored).
        change_l2: ‖P(x+δ; ξ) − P(x; ξ)‖₂ under the aligned draws, float64 [n, K]; NaN where it was
            not measured.
        delta_l2: ‖δ‖₂, float64 [n].
        change_linf: as `change_l2`, in l-inf.
        delta_linf: ‖δ‖∞.
        fooling_radius: smallest radius tried on the segment from x to the image at which at least
            half of the aligned draws are fooled, float64 [n]; 0 where x itself is misclassified,
            infinite where the image fools fewer, NaN where it was not looked for.
        made_by: index in `RUNS` of what made each image, int64 [n]; −1: unknown.
    """

    name: str
    eps: float
    images: np.ndarray
    aligned: np.ndarray
    held_out: np.ndarray
    change_l2: np.ndarray
    delta_l2: np.ndarray
    change_linf: np.ndarray
    delta_linf: np.ndarray
    fooling_radius: np.ndarray
    made_by: np.ndarray


@dataclass(frozen=True, slots=True)
class CapRows:
    """How often random directions change the predicted label, by radius.

    Attributes:
        radii: l2, pixel units [r].
        bare: share of directions at a radius that change the bare classifier's label of the clean
            image, float64 [n, r].
        purified: the same for the label of the anchor, under the first aligned draw.
    """

    radii: np.ndarray
    bare: np.ndarray
    purified: np.ndarray


@dataclass(frozen=True, slots=True)
class ExampleImages:
    """The least and the most robust images under the aligned attack at its first radius.

    First those fooled at the smallest radii; then robust ones, the largest margin first. Purified
    under the first aligned draw.

    Attributes:
        ids: image ids [m].
        worst: whether an image is one of the least robust, bool [m].
        clean: x, float32 [m, c, h, w].
        attacked: x + δ.
        anchor: P(x; ξ).
        purified: P(x + δ; ξ).
        predicted: the label of P(x + δ; ξ), int64 [m].
    """

    ids: np.ndarray
    worst: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray
    anchor: np.ndarray
    purified: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True, slots=True)
class AttackSamples:
    """All results of the attacks on one set of images.

    Attributes:
        ids: image ids [n].
        labels: true labels [n].
        clean_aligned: predicted labels of clean images under the aligned draws [n, K].
        clean_margins: z_y − max_{i≠y} z_i of clean images under the aligned draws [n, K].
        clean_held_out: predicted labels under the scoring draws [n, H].
        bare_clean: labels of clean images without the purifier [n].
        scored: the attacks; comparison attacks may have only the first images.
        caps: random directions; none when they were not tried.
        example_images: the least and the most robust images; none when the main attack did not end.
    """

    ids: np.ndarray
    labels: np.ndarray
    clean_aligned: np.ndarray
    clean_margins: np.ndarray
    clean_held_out: np.ndarray
    bare_clean: np.ndarray
    scored: tuple[Scored, ...]
    caps: CapRows | None = None
    example_images: ExampleImages | None = None

    def find(self, name: str, eps: float | None = None) -> Scored | None:
        """The attack with a name, at a radius or at the first."""
        found = (s for s in self.scored if s.name == name and eps in (None, s.eps))
        return next(found, None)


_TABLES: dict[str, type] = {"caps": CapRows, "example_images": ExampleImages}


def join_attacks(parts: list[AttackSamples]) -> AttackSamples:
    """All images of several groups, in order; every group has the same attacks."""
    scored = (
        concatenated([part.scored[k] for part in parts], name=first.name, eps=first.eps)
        for k, first in enumerate(parts[0].scored)
    )
    return concatenated(parts, scored=tuple(scored))


def with_rows(main: Scored, rows: np.ndarray, better: Scored) -> Scored:
    """The attack `main` with the images of another in some rows.

    Args:
        main: scored on n images.
        rows: of the images that the other attack replaces, int64 [m].
        better: the other attack, named in `RUNS`, scored on those m images at the same radius.
    """
    columns = {name: column.copy() for name, column in columns_of(main).items()}
    for name, column in columns_of(better).items():
        columns[name][rows] = column
    columns["made_by"][rows] = RUNS.index(better.name)
    return table_of(Scored, columns, name=main.name, eps=main.eps)


def to_columns(samples: AttackSamples) -> tuple[Columns, list[tuple[str, float]]]:
    """All columns, `<name>.<index>.<column>` for the attacks; and the attacks' names and radii."""
    columns = columns_of(samples)
    for place, attack in enumerate(samples.scored):
        columns |= columns_of(attack, f"{attack.name}.{place}.")
    for name in _TABLES:
        table = getattr(samples, name)
        columns |= {} if table is None else columns_of(table, f"{name}.")
    return columns, [(attack.name, attack.eps) for attack in samples.scored]


def from_columns(columns: Columns, attacks: list[tuple[str, float]]) -> AttackSamples:
    """The inverse of `to_columns`; also of columns under the names of report schema 1.0.

    Raises:
        KeyError: a column is missing.
    """
    columns = {_current(name): column for name, column in columns.items()}
    for place, (name, _) in enumerate(attacks):  # not recorded before report schema 2.1
        unknown = np.full(len(columns[f"{name}.{place}.delta_l2"]), -1)
        columns.setdefault(f"{name}.{place}.made_by", unknown)
    scored = (
        table_of(Scored, columns, f"{name}.{place}.", name=name, eps=eps)
        for place, (name, eps) in enumerate(attacks)
    )
    tables: dict[str, Any] = {
        name: table_of(kind, columns, f"{name}.")
        for name, kind in _TABLES.items()
        if any(column.startswith(f"{name}.") for column in columns)
    }
    return table_of(AttackSamples, columns, scored=tuple(scored), **tables)


def _current(column: str) -> str:
    """A column's name as it is written now."""
    return ".".join(_RENAMED.get(part, part) for part in column.split("."))


def save_attacks(path: Path, samples: AttackSamples) -> None:
    """Write one safetensors file that is also an image set.

    `images`, `labels` and `ids` are the aligned attack's at the first radius, so the file can be
    given to `--data` or to the probe `file:PATH`; the file's metadata lists names and radii.
    """
    columns, attacks = to_columns(samples)
    main = samples.find("aligned")
    if main is not None:
        columns["images"] = main.images
    write_columns(path, columns, {"attacks": json.dumps(attacks)})


def load_attacks(path: Path) -> AttackSamples:
    """Read a file of `save_attacks`, of this version or of one with report schema 1.0.

    Raises:
        ReportError: the file is missing, damaged, or of another kind.
    """

    def build(columns: Columns, metadata: Mapping[str, str]) -> AttackSamples:
        return from_columns(columns, json.loads(metadata["attacks"]))

    return read_columns(path, build, "is no file of attacks")
