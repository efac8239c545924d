"""What a plan leaves open is settled before the run, and told."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from purify_audit.settled import Pilot, Settled, Tried
    from purify_audit.subject import Subject

_HAS_LIMITS = ("cuda",)  # where too large a micro-batch is an error, not an ended process

EVERY = 2**32
"""Images where all that there are may be used."""


@dataclass(frozen=True, slots=True)
class Open:
    """What a plan leaves open.

    Attributes:
        measure: find the quickest size of micro-batches by measuring.
        allocate: choose draws and directions by a pilot.
        free: whether nobody asked for a size of micro-batches.
    """

    measure: bool = False
    allocate: bool = False
    free: bool = False


def settle(subject: "Subject", left: Open, console: Console) -> "tuple[Subject, Settled | None]":
    """Settle it; on CUDA, also see that there is memory for the plan's micro-batches.

    Args:
        subject: as prepared.
        left: what is open.
        console: where to tell.

    Returns:
        The subject with its final plan, and what was found, if anything was looked for.

    Raises:
        PlanError: `--allocate` does not fit the plan.
        AuditError: there is no memory for one image.
    """
    from purify_audit.microbatches import default_microbatch
    from purify_audit.packing import measured, within_memory
    from purify_audit.pilot import allocated, must_be_allocatable
    from purify_audit.settled import Settled

    pilot, tried = None, tuple["Tried", ...]()
    if left.allocate:
        must_be_allocatable(subject.plan)
        console.print("a pilot of a few images chooses draws and directions", highlight=False)
        subject, pilot = allocated(subject)
        if left.free:
            size = default_microbatch(subject.plan, subject.images.image_shape, subject.device)
            plan = subject.plan.model_copy(update={"microbatch": size})
            subject = replace(subject, plan=plan)
        _tell_pilot(pilot, console)
    asked = subject.plan
    if left.measure:
        subject, tried = measured(subject)
        console.print(f"micro-batches of {subject.plan.microbatch}, measured", highlight=False)
    elif subject.device.type in _HAS_LIMITS:
        subject, tried = within_memory(subject)
        for one in tried:
            console.print(f"no memory for micro-batches of {one.microbatch}", highlight=False)
    changed = subject.plan != asked or bool(tried) or pilot is not None
    return subject, Settled(microbatches=tried, pilot=pilot) if changed else None


def _tell_pilot(pilot: "Pilot | None", console: Console) -> None:
    if pilot is None:
        return console.print("the pilot's numbers are none; the plan stays as it is")
    enough = (
        "more images than there are" if pilot.needed is None else f"about {pilot.needed} images"
    )
    parts = ", ".join(f"{n} {v:.2g}" for n, v in pilot.components.model_dump().items())
    console.print(
        f"variance by {parts}: {pilot.draws} draws, {pilot.directions} directions, {enough}",
        highlight=False,
    )
