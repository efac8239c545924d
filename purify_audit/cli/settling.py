"""What a plan leaves open is settled before the run, and told."""

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from purify_audit.errors import PlanError

if TYPE_CHECKING:
    from purify_audit.plan import AuditPlan
    from purify_audit.settled import Pilot, Settled
    from purify_audit.subject import Subject

_HAS_LIMITS = ("cuda",)  # where too large a micro-batch is an error, not an ended process


@dataclass(frozen=True, slots=True)
class Open:
    """What a plan leaves open.

    Attributes:
        measure: find the quickest size of micro-batches by measuring.
        allocate: choose draws and directions by a pilot.
        free: whether nobody asked for a size of micro-batches.
        compresses: whether compression is measured, not taken from a finished report.
        run_dir: the folder of the run, if it has one; one that was begun has settled everything.
    """

    measure: bool = False
    allocate: bool = False
    free: bool = False
    compresses: bool = True
    run_dir: Path | None = None


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
        OutOfMemoryError: there is no memory for one image.
    """
    from purify_audit.settled import Settled

    begun = _begun(left.run_dir)
    if begun is not None:
        return _as_begun(subject, begun, left), None
    found = Settled()
    if left.compresses:
        subject, found = _fitted(subject, found, console)
    if left.allocate:
        subject, found = _allocated(subject, found, left.free, console)
        subject, found = _fitted(subject, found, console)
    if left.measure:
        from purify_audit.settling.packing import measured

        subject, timed = measured(subject)
        found = found.model_copy(update={"timed": timed})
        console.print(f"micro-batches of {subject.plan.microbatch}, measured", highlight=False)
    subject, found = _attack_fitted(subject, found, console)
    return subject, None if found == Settled() else found


def like(subject: "Subject", plan: "AuditPlan", asked: Container[str]) -> "Subject":
    """With the sizes of micro-batches of another plan, where none was asked for by name.

    Numbers that are compared must be of one numerics class.
    """
    if "microbatch" in asked:
        return subject
    attack = None if plan.attack is None else plan.attack.microbatch
    return _sized(subject, plan.microbatch, attack)


def _begun(run_dir: Path | None) -> "AuditPlan | None":
    """The plan of a run that was begun."""
    from purify_audit.plan import AuditPlan
    from purify_audit.store import read_run

    if run_dir is None or not (run_dir / "manifest.json").exists():
        return None
    return AuditPlan.model_validate(read_run(run_dir)["plan"])


def _as_begun(subject: "Subject", begun: "AuditPlan", left: Open) -> "Subject":
    """With what was settled when the run began; what else differs is for others to tell."""
    plan, halves = subject.plan, subject.device.type in _HAS_LIMITS
    if (
        left.measure
        or (left.allocate and left.free)
        or (halves and begun.microbatch < plan.microbatch)
    ):
        subject = _sized(subject, begun.microbatch, None)
    attack = None if begun.attack is None else begun.attack.microbatch
    if plan.attack and attack and halves and attack < plan.attack.microbatch:
        subject = _sized(subject, subject.plan.microbatch, attack)
    if not left.allocate or begun.images > len(subject.images):
        return subject
    from purify_audit.settling.pilot import with_images

    settled = ("draws", "directions", "first_look")
    return with_images(subject, begun.images, {name: getattr(begun, name) for name in settled})


def _sized(subject: "Subject", size: int, attack: int | None) -> "Subject":
    plan = subject.plan
    changes: dict[str, object] = {"microbatch": size}
    if plan.attack is not None and attack is not None:
        changes["attack"] = plan.attack.model_copy(update={"microbatch": attack})
    return replace(subject, plan=plan.model_copy(update=changes))


def _fitted(subject: "Subject", found: "Settled", console: Console) -> "tuple[Subject, Settled]":
    if subject.device.type not in _HAS_LIMITS:
        return subject, found
    from purify_audit.settling.packing import within_memory

    subject, refused = within_memory(subject)
    _tell_refused(refused, console)
    return subject, found.model_copy(update={"too_large": (*found.too_large, *refused)})


def _attack_fitted(
    subject: "Subject", found: "Settled", console: Console
) -> "tuple[Subject, Settled]":
    how = subject.plan.attack
    if subject.device.type not in _HAS_LIMITS or how is None or how.predict_only:
        return subject, found
    from purify_audit.settling.packing import attack_within_memory

    subject, refused = attack_within_memory(subject)
    _tell_refused(refused, console)
    return subject, found.model_copy(update={"attack_too_large": refused})


def _tell_refused(sizes: tuple[int, ...], console: Console) -> None:
    for size in sizes:
        console.print(f"no memory for micro-batches of {size}", highlight=False)


def _allocated(
    subject: "Subject", found: "Settled", free: bool, console: Console
) -> "tuple[Subject, Settled]":
    from purify_audit.microbatches import default_microbatch
    from purify_audit.settling.pilot import allocated, must_be_allocatable

    must_be_allocatable(subject.plan)
    console.print("a pilot of a few images chooses draws and directions", highlight=False)
    subject, pilot = allocated(subject)
    if free:
        size = default_microbatch(subject.plan, subject.images.image_shape, subject.device)
        subject = _sized(subject, size, None)
    _tell_pilot(pilot, console)
    return subject, found.model_copy(update={"pilot": pilot})


def _tell_pilot(pilot: "Pilot | None", console: Console) -> None:
    if pilot is None:
        return console.print("the pilot's numbers are none: its images are audited as planned")
    enough = (
        "more images than there are" if pilot.needed is None else f"about {pilot.needed} images"
    )
    parts = ", ".join(f"{n} {v:.2g}" for n, v in pilot.components.model_dump().items())
    console.print(
        f"variance by {parts}: {pilot.draws} draw{'s' * (pilot.draws > 1)},"
        f" {pilot.directions} directions, {enough}",
        highlight=False,
    )


def must_be_one_process(parts: int) -> None:
    """Refuse to measure where other processes would measure something else.

    Raises:
        PlanError: several processes share the run.
    """
    if parts > 1:
        raise PlanError(
            "--microbatch measured: each of the processes that share a run would find its own size;"
            " give a number"
        )
