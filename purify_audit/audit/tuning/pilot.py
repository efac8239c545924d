"""Pilot measurement that chooses draws and directions (optimal allocation)."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from purify_audit.audit.subject import Subject
from purify_audit.compression.measure import measure_compression, rows_per_image
from purify_audit.core.errors import PlanError
from purify_audit.models.runner import deterministic
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.probes import FileProbe, PowerProbe
from purify_audit.spec.tuning import Pilot
from purify_audit.statistics.allocation import cheapest, components, largest
from purify_audit.statistics.compression_rows import ProbeRows

IMAGES, DRAWS, DIRECTIONS = 48, 2, 4  # images vary most, and their variance is hardest to know
_MARGIN = 0.95  # of the tolerance is aimed at: the pilot errs both ways
_FEWEST = 8  # of the pilot's images whose rates are numbers
_LESS_SPARE = 1.25  # where there are no more
_SPARE = 2  # times as many images as the pilot says: it may be wrong, and looks end the run in time


def allocated(subject: Subject) -> tuple[Subject, Pilot | None]:
    """A plan whose draws and directions reach its tolerance with the fewest network evaluations.

    The first probe is measured on a few of the images, under another seed than the plan's: no row
    that decides the design is in the estimate. The images of the subject are the most that the plan
    may have, and it has as many as the pilot at least, as has each look: a few images that happen
    to be alike would make a narrow interval.

    Args:
        subject: with a plan that has a tolerance.

    Returns:
        The plan with no more images than the pilot has, and none, where most of the rates are no
        numbers: the audit will say what is wrong.

    Raises:
        PlanError: see `must_be_allocatable`.
    """
    plan, most = subject.plan, len(subject.images)
    must_be_allocatable(plan)
    few = min(IMAGES, most)
    rates_by_radius = _rates(subject, few)
    if rates_by_radius is None or len(rates_by_radius[0]) < _FEWEST:
        return with_images(subject, few, {}), None
    parts = largest([components(rates) for rates in rates_by_radius])

    def cost(draws: int, directions: int) -> int:
        changed = plan.model_copy(update={"draws": draws, "directions": directions})
        return rows_per_image(changed)

    assert plan.tolerance is not None, "checked before"
    tolerance = _MARGIN * plan.tolerance
    design = cheapest(
        parts,
        cost,
        tolerance=tolerance,
        level=plan.look_level,
        most=most,
        randomised=subject.purifier.randomised,
    )
    reached = design.half_width <= tolerance
    spare = _SPARE if _SPARE * design.images <= most else _LESS_SPARE
    images = min(most, max(few, math.ceil(spare * design.images)))
    changes = {"draws": design.draws, "directions": design.directions, "first_look": few}
    return with_images(subject, images, changes), Pilot(
        images=few,
        components=parts,
        draws=design.draws,
        directions=design.directions,
        needed=design.images if reached else None,
    )


def with_images(subject: Subject, images: int, changes: Mapping[str, object]) -> Subject:
    """The first images of a subject, and a plan for them with other changes besides."""
    rows = list(range(images))
    return replace(
        subject,
        plan=subject.plan.model_copy(update={**changes, "images": images}),
        images=subject.images.select(rows),
        user_images=None if subject.user_images is None else subject.user_images.select(rows),
    )


def must_be_allocatable(plan: AuditPlan) -> None:
    """Refuse a plan that leaves nothing to allocate, or does not say for what.

    Raises:
        PlanError: there is no tolerance, the first probe has no directions to choose, or there is
            a single image.
    """
    if plan.tolerance is None:
        raise PlanError("--allocate spends what a tolerance asks for: give --tolerance")
    if isinstance(plan.probes[0], PowerProbe | FileProbe):
        raise PlanError(
            f"--allocate chooses directions of the first probe, and '{plan.probes[0].kind}' has"
            " none to choose; name another --probe first"
        )
    if plan.images < 2:
        raise PlanError("--allocate compares images: give two or more")


def _rates(subject: Subject, images: int) -> list[np.ndarray] | None:
    """Of each radius, l2 rates [images, draws, pairs, 2] of those images that all have numbers.

    None where an output is no image.
    """
    plan = subject.plan
    draws = DRAWS if subject.purifier.randomised else 1
    few = subject.images.select(list(range(images)))
    changes = {
        "probes": plan.probes[:1],
        "draws": draws,
        "directions": DIRECTIONS,
        "seed": (plan.seed + 1) % 2**64,
    }
    small = plan.model_copy(update=changes)
    runner = subject.runner(seed=small.seed)
    with deterministic():
        first = runner.batch(few.pixels[:1], few.ids[:1], np.zeros(1, np.int64))
        if first.shape != (1, *few.image_shape):
            return None
        rows = measure_compression(runner, few, small).probes
    shape = (images, draws, DIRECTIONS // 2, 2)
    rates = [_l2_rates(rows, radius).reshape(shape) for radius in range(len(plan.eps))]
    whole = np.isfinite(rates).all((0, 2, 3, 4))
    return [values[whole] for values in rates]


def _l2_rates(rows: ProbeRows, radius: int) -> np.ndarray:
    mask = rows.radius == radius
    with np.errstate(divide="ignore", invalid="ignore"):  # a perturbation that clips to nothing
        return np.asarray(rows.change_l2[mask] / rows.delta_l2[mask])
