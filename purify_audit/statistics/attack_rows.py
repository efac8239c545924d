"""Raw results of attacks: images and predicted labels, before any statistics. No torch."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from purify_audit.core.errors import ReportError

_RENAMED = {"falls_at": "fooling_radius", "portraits": "example_images"}  # of report schema 1.0
_PER_IMAGE = ("ids", "labels", "clean_aligned", "clean_margins", "clean_held_out", "bare_clean")


@dataclass(frozen=True, slots=True)
class Scored:
    """One attack at one radius, and what the defence made of its images.

    Attributes:
        name: aligned, fresh, bare, predicted, or one of the attacks that certify: bpda, square,
            unbounded.
        eps: radius, pixel units.
        images: the adversarial images, float32 [n, c, h, w].
        aligned: predicted labels under the aligned draws, int64 [n, K].
        held_out: predicted labels under the scoring draws, int64 [n, H] (H = 0: not scored).
        change_l2: ‖P(x+δ; ξ) − P(x; ξ)‖₂ under the aligned draws, float64 [n, K].
        delta_l2: ‖δ‖₂, float64 [n].
        change_linf: as `change_l2`, in l-inf.
        delta_linf: ‖δ‖∞.
        fooling_radius: smallest radius seen at which half of the aligned draws are fooled, on the way
            from x to the image; infinite where they are not.
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


@dataclass(frozen=True, slots=True)
class CapRows:
    """What random directions do to decisions.

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
    """The images that fared worst and best under the aligned attack at its first radius.

    Worst first: those that fall at the smallest radius; then those that stand, the largest margin
    first. Purified under the first aligned draw.

    Attributes:
        ids: image ids [m].
        worst: whether an image is one of the worst, bool [m].
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
    """Everything the attacks saw.

    Attributes:
        ids: image ids [n].
        labels: true labels [n].
        clean_aligned: predicted labels of clean images under the aligned draws [n, K].
        clean_margins: z_y − max_{i≠y} z_i of clean images under the aligned draws [n, K].
        clean_held_out: predicted labels under the scoring draws [n, H].
        bare_clean: labels of clean images without the purifier [n].
        scored: the attacks; those that certify may have fewer images, the first ones.
        caps: random directions; none when they were not tried.
        example_images: the worst and the best images; none when the main attack did not end.
    """

    ids: np.ndarray
    labels: np.ndarray
    clean_aligned: np.ndarray
    clean_margins: np.ndarray
    clean_held_out: np.ndarray
    bare_clean: np.ndarray
    scored: tuple[Scored, ...]
    caps: CapRows | None = field(default=None)
    example_images: ExampleImages | None = field(default=None)

    def find(self, name: str, eps: float | None = None) -> Scored | None:
        """The attack of a name, at a radius or at the first."""
        found = (s for s in self.scored if s.name == name and eps in (None, s.eps))
        return next(found, None)


_TABLES: dict[str, type[CapRows] | type[ExampleImages]] = {
    "caps": CapRows,
    "example_images": ExampleImages,
}


def join_attacks(parts: list[AttackSamples]) -> AttackSamples:
    """All images of several groups, in order; the groups have the same attacks."""
    scored = []
    for k, first in enumerate(parts[0].scored):
        columns = {
            f.name: np.concatenate([getattr(part.scored[k], f.name) for part in parts])
            for f in fields(Scored)
            if f.name not in ("name", "eps")
        }
        scored.append(Scored(first.name, first.eps, **columns))
    whole: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _PER_IMAGE
    }
    return AttackSamples(**whole, scored=tuple(scored))


def to_columns(samples: AttackSamples) -> tuple[dict[str, np.ndarray], list[tuple[str, float]]]:
    """All columns, `<name>.<place>.<column>` for the attacks; and the attacks' names and radii."""
    columns = {name: getattr(samples, name) for name in _PER_IMAGE}
    for place, attack in enumerate(samples.scored):
        for f in fields(Scored):
            if f.name not in ("name", "eps"):
                columns[f"{attack.name}.{place}.{f.name}"] = getattr(attack, f.name)
    for name, kind in _TABLES.items():
        table = getattr(samples, name)
        if table is not None:
            columns |= {f"{name}.{f.name}": getattr(table, f.name) for f in fields(kind)}
    return columns, [(attack.name, attack.eps) for attack in samples.scored]


def from_columns(columns: dict[str, np.ndarray], attacks: list[tuple[str, float]]) -> AttackSamples:
    """What `to_columns` took apart.

    Raises:
        KeyError: a column is missing.
    """
    scored = [
        Scored(
            name,
            eps,
            **{
                f.name: columns[f"{name}.{place}.{f.name}"]
                for f in fields(Scored)
                if f.name not in ("name", "eps")
            },
        )
        for place, (name, eps) in enumerate(attacks)
    ]
    tables: dict[str, Any] = {
        name: kind(**{f.name: columns[f"{name}.{f.name}"] for f in fields(kind)})
        for name, kind in _TABLES.items()
        if any(column.startswith(f"{name}.") for column in columns)
    }
    whole: dict[str, Any] = {name: columns[name] for name in _PER_IMAGE}
    return AttackSamples(**whole | tables, scored=tuple(scored))


def save_attacks(path: Path, samples: AttackSamples) -> None:
    """Write one safetensors file that is also a set of images.

    `images`, `labels` and `ids` are the aligned attack's at the first radius, so the file can be
    given to `--data` or to the probe `file:PATH`; the file's metadata lists names and radii.
    """
    from safetensors.numpy import save

    columns, attacks = to_columns(samples)
    main = samples.find("aligned")
    if main is not None:
        columns["images"] = main.images
    arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    path.write_bytes(save(arrays, {"attacks": json.dumps(attacks)}))


def _current(column: str) -> str:
    """A column's name as it is written now."""
    return ".".join(_RENAMED.get(part, part) for part in column.split("."))


def load_attacks(path: Path) -> AttackSamples:
    """Read a file of `save_attacks`, of this version or of one with report schema 1.0.

    Raises:
        ReportError: no such file, damaged, or not such a file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            attacks = json.loads((file.metadata() or {})["attacks"])
            columns = {_current(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return from_columns(columns, attacks)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ReportError(f"{path}: is no file of attacks: {error}") from None
