"""Compute cells of a report again and compare them with what was stored."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from purify_audit.audit.subject import BUNDLED, Subject, load_subject
from purify_audit.compression.measure import measure_compression
from purify_audit.core.errors import ReportError
from purify_audit.core.noise import Noise, Stream
from purify_audit.images.image_set import ImageSet
from purify_audit.models.runner import Runner, choose_device, deterministic, environment
from purify_audit.report.rows import stored_samples
from purify_audit.report.schema import Report, read_report
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.probes import FileProbe
from purify_audit.statistics.compression_rows import CompressionSamples, ProbeRows

_COMPARED = ("delta_l2", "delta_linf", "change_l2", "change_linf", "moved_l2", "moved_linf")


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a cell: one measured row of a report.

    Attributes:
        image: image id.
        draw: draw id.
        probe: place of the probe in the plan.
        radius: place of the radius in the plan.
        direction: place among the probe's directions.
    """

    image: int
    draw: int
    probe: int
    radius: int
    direction: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """One cell, stored and recomputed.

    Attributes:
        address: which cell.
        stored: the columns of `ProbeRows` that were compared, as the report has them.
        computed: the same columns, recomputed.
    """

    address: Address
    stored: dict[str, float]
    computed: dict[str, float]

    @property
    def same(self) -> bool:
        """Whether every number is the same, bit for bit (NaN equals NaN)."""
        return all(
            a == self.computed[name] or (math.isnan(a) and math.isnan(self.computed[name]))
            for name, a in self.stored.items()
        )

    @property
    def largest_difference(self) -> float:
        """The largest absolute difference; the largest float where only one of two is finite."""
        if self.same:
            return 0.0
        gaps = [abs(a - self.computed[name]) for name, a in self.stored.items()]
        return max(gap if math.isfinite(gap) else sys.float_info.max for gap in gaps)


def replay(
    runner: Runner,
    images: ImageSet,
    user_images: ImageSet | None,
    plan: AuditPlan,
    samples: CompressionSamples,
    address: Address,
) -> Replayed:
    """Recompute one cell, in a micro-batch of the same size.

    Args:
        runner: with the plan's seed and micro-batch.
        images: the images of the report.
        user_images: the perturbed images of a `file` probe.
        plan: the report's.
        samples: the rows stored with the report.
        address: the cell.

    Raises:
        ReportError: the report has no such cell.
    """
    stored = _find(samples.probes, address)
    row = np.flatnonzero(images.ids == address.image)
    part = plan.model_copy(
        update={"probes": (plan.probes[address.probe],), "eps": (plan.eps[address.radius],)}
    )
    again = measure_compression(
        runner,
        images.select(row),
        part,
        None if user_images is None else user_images.select(row),
        draws=np.array([address.draw]),
    )
    only = Address(address.image, address.draw, 0, 0, address.direction)
    return Replayed(address, stored, _find(again.probes, only))


def _find(rows: ProbeRows, address: Address) -> dict[str, float]:
    mask = rows.image == address.image
    for name in ("draw", "probe", "radius", "direction"):
        mask = mask & (getattr(rows, name) == getattr(address, name))
    place = np.flatnonzero(mask)
    if address.image not in rows.image:
        known = ", ".join(str(i) for i in np.unique(rows.image)[:5])
        raise ReportError(f"image {address.image} is not in the report; it has {known}, …")
    if len(place) != 1:
        raise ReportError(
            f"the report has no cell at image {address.image}, draw {address.draw},"
            f" probe {address.probe}, radius {address.radius}, direction {address.direction}"
        )
    return {name: float(getattr(rows, name)[place[0]]) for name in _COMPARED}


def find_address(
    plan: AuditPlan, cell: tuple[int, int, int], probe: str | None, eps: float | None
) -> Address:
    """The address of a cell, from the names of its probe and radius.

    Args:
        plan: the report's.
        cell: image id, draw id, direction.
        probe: kind of probe; none: the plan's first.
        eps: radius; none: the plan's first.

    Raises:
        ReportError: the plan has no such probe or radius.
    """
    kinds = [p.kind for p in plan.probes]
    if probe is not None and probe not in kinds:
        raise ReportError(f"the report has no probe '{probe}'; it has {', '.join(kinds)}")
    radius = 0
    if eps is not None:
        near = [n for n, value in enumerate(plan.eps) if abs(value - eps) < 1e-9]
        if not near:
            raise ReportError(f"the report has no radius {eps:g}; it has {list(plan.eps)}")
        radius = near[0]
    image, draw, direction = cell
    return Address(image, draw, kinds.index(probe) if probe else 0, radius, direction)


def replay_report(
    report: Report, folder: Path, addresses: list[Address] | int, device: torch.device
) -> list[Replayed]:
    """Recompute cells of a saved report, with the models, images and rows that it names.

    Args:
        report: the report.
        folder: the folder of the report and its rows; paths may be relative to it.
        addresses: which cells; or how many, to be chosen by the report's seed.
        device: where to compute.

    Raises:
        ReportError: the rows are missing or changed, the checkpoint or the images are not those
            of the report, or there is no such cell.
    """
    samples = stored_samples(report, folder)
    subject = stored_subject(report, folder, device)
    plan, images = report.plan, subject.images.select(list(range(len(report.data.ids))))
    if isinstance(addresses, int):
        addresses = _some(samples.probes, plan.seed, addresses)
    runner = subject.runner()
    with deterministic():
        return [replay(runner, images, subject.user_images, plan, samples, at) for at in addresses]


@dataclass(frozen=True, slots=True)
class Reproduction:
    """Cells of a report, computed again.

    Attributes:
        report: the report.
        cells: the cells.
        environment: what differs from where the report was made: name -> (then, now).
    """

    report: Report
    cells: tuple[Replayed, ...]
    environment: Mapping[str, tuple[object, object]]

    @property
    def different(self) -> tuple[Replayed, ...]:
        """The cells that are not the same, bit for bit."""
        return tuple(cell for cell in self.cells if not cell.same)


def reproduce(
    path: Path,
    addresses: list[Address] | int,
    device: torch.device | None = None,
    *,
    allow_pickle: bool = False,
) -> Reproduction:
    """Compute cells of a saved report again.

    Args:
        path: the report.
        addresses: which cells; or how many, chosen by the report's seed.
        device: where to compute; default: the kind of device of the report.
        allow_pickle: whether the report's models may be unpickled.

    Raises:
        ReportError: see `replay_report` and `check_trust`.
    """
    report = read_report(path)
    check_trust(report.plan, allow_pickle)
    device = device or choose_device(str(report.environment["device"]))
    cells = replay_report(report, path.parent, addresses, device)
    now = environment(device, report.plan.engine)
    then = report.environment
    different = {name: (then.get(name), now[name]) for name in now if then.get(name) != now[name]}
    return Reproduction(report, tuple(cells), different)


def check_trust(plan: AuditPlan, allow_pickle: bool) -> None:
    """Raise ReportError where a plan would unpickle what its reader has not allowed.

    The author of a report or run may also have made the files that it names.
    """
    readings = (plan.load_options, plan.classifier_load_options)
    if not allow_pickle and any(each and each.allow_pickle for each in readings):
        raise ReportError(
            "the report's models were unpickled, which can execute any code; give --allow-pickle"
            " too if you trust their author"
        )


def stored_subject(
    report: Report, folder: Path, device: torch.device, plan: AuditPlan | None = None
) -> Subject:
    """The models and images that a saved report names, if they are still the same.

    Args:
        report: the report.
        folder: the folder of the report.
        device: where they will run.
        plan: the report's plan with an attack and a classifier, where one is planned.

    Raises:
        ReportError: the checkpoint or the images are not those of the report.
    """
    changed = plan is not None
    plan = plan or report.plan.model_copy(update={"classifier": None, "attack": None})
    subject = load_subject(_found(plan, folder), device)
    if subject.checkpoint.sha256 != report.checkpoint.sha256:
        raise ReportError(f"{plan.checkpoint}: is not the checkpoint of the report (its digest)")
    images = subject.images.select(list(range(len(report.data.ids))))
    if images.digest != report.data.digest:
        raise ReportError(f"{plan.data}: are not the images of the report (their digest)")
    if (
        subject.user_images is not None
        and subject.user_images.digest != report.data.user_images_digest
    ):
        raise ReportError("the perturbed images are not those of the report (their digest)")
    return replace(subject, images=images, plan=plan) if changed else subject


def _some(rows: ProbeRows, seed: int, count: int) -> list[Address]:
    """Cells chosen by a seed, each of them once."""
    total = len(rows.image)
    draws = range(1, 8 * count + 1)  # some may be the same
    choice = Noise(seed, (0,) * len(draws), tuple(draws), Stream.CHOICE)
    places = list(dict.fromkeys(choice.integers(0, (1,), total)[:, 0].tolist()))[:count]
    columns = (rows.image, rows.draw, rows.probe, rows.radius, rows.direction)
    return [Address(*(int(column[n]) for column in columns)) for n in places]


def _found(plan: AuditPlan, folder: Path) -> AuditPlan:
    """The plan with missing files replaced by those in the report's folder."""

    def found(text: str) -> str:
        path = text.removesuffix(":train")
        beside = folder / path
        return (
            str(beside) + text[len(path) :] if not Path(path).exists() and beside.exists() else text
        )

    probes = [
        p.model_copy(update={"path": found(p.path)}) if isinstance(p, FileProbe) else p
        for p in plan.probes
    ]
    bundled = plan.data in BUNDLED.values() or plan.data.startswith("digits:")
    return plan.model_copy(
        update={
            "checkpoint": found(plan.checkpoint),
            "data": plan.data if bundled else found(plan.data),
            "classifier": None if plan.classifier is None else found(plan.classifier),
            "probes": tuple(probes),
        }
    )
