"""Tune what a plan leaves open before the run: micro-batches, draws and directions."""

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path

from purify_audit.audit.store import read_run
from purify_audit.audit.subject import Subject
from purify_audit.audit.tuning.microbatch import attack_within_memory, measured, within_memory
from purify_audit.audit.tuning.pilot import allocated, must_be_allocatable, with_images
from purify_audit.compression.microbatches import default_microbatch
from purify_audit.core.errors import PlanError
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.tuning import Pilot, Tuning

_HAS_LIMITS = ("cuda",)  # where too large a micro-batch is an error, not an ended process

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class OpenSettings:
    """What a plan leaves open.

    Attributes:
        measure: measure which size of micro-batches is fastest.
        allocate: choose draws and directions by a pilot.
        free_microbatch: whether the user named no size of micro-batches.
        compression: whether compression is measured, not taken from a finished report.
        run_dir: the folder of the run, if any; a run that has begun keeps its tuning.
    """

    measure: bool = False
    allocate: bool = False
    free_microbatch: bool = False
    compression: bool = True
    run_dir: Path | None = None


def tune(
    subject: Subject, left_open: OpenSettings, tell: Tell = lambda line: None
) -> tuple[Subject, Tuning | None]:
    """Tune the settings that are open; on CUDA, also check the memory for micro-batches.

    Args:
        subject: as prepared.
        left_open: what is open.
        tell: called with a line of text for every choice.

    Returns:
        The subject with its final plan, and the trials behind it, if there were any.

    Raises:
        PlanError: `--allocate` does not fit the plan.
        OutOfMemoryError: there is no memory for one image.
    """
    begun = _begun(left_open.run_dir)
    if begun is not None:
        return _as_begun(subject, begun, left_open), None
    tuning = Tuning()
    if left_open.compression:
        subject, tuning = _fitted(subject, tuning, tell)
    if left_open.allocate:
        subject, tuning = _allocated(subject, tuning, left_open.free_microbatch, tell)
        subject, tuning = _fitted(subject, tuning, tell)
    if left_open.measure:
        subject, timed = measured(subject)
        tuning = tuning.model_copy(update={"timed": timed})
        tell(f"micro-batches of {subject.plan.microbatch}, measured")
    subject, tuning = _attack_fitted(subject, tuning, tell)
    return subject, None if tuning == Tuning() else tuning


def like(subject: Subject, plan: AuditPlan, options: Container[str]) -> Subject:
    """With another plan's sizes of micro-batches, unless the user named one.

    Compared numbers must be computed with the same micro-batches.
    """
    if "microbatch" in options:
        return subject
    attack = None if plan.attack is None else plan.attack.microbatch
    return _sized(subject, plan.microbatch, attack)


def must_be_one_process(parts: int) -> None:
    """Refuse to measure micro-batches where other processes would measure something else.

    Raises:
        PlanError: several processes share the run.
    """
    if parts > 1:
        raise PlanError(
            "--microbatch measured: each of the processes that share a run would find its own size;"
            " give a number"
        )


def _begun(run_dir: Path | None) -> AuditPlan | None:
    """The plan of a run that has begun."""
    if run_dir is None or not (run_dir / "manifest.json").exists():
        return None
    return AuditPlan.model_validate(read_run(run_dir)["plan"])


def _as_begun(subject: Subject, begun: AuditPlan, left_open: OpenSettings) -> Subject:
    """With the tuning of when the run began; other differences are reported elsewhere."""
    plan, halves = subject.plan, subject.device.type in _HAS_LIMITS
    allocates = left_open.allocate and left_open.free_microbatch
    if left_open.measure or allocates or (halves and begun.microbatch < plan.microbatch):
        subject = _sized(subject, begun.microbatch, None)
    attack = None if begun.attack is None else begun.attack.microbatch
    if plan.attack and attack and halves and attack < plan.attack.microbatch:
        subject = _sized(subject, subject.plan.microbatch, attack)
    if not left_open.allocate or begun.images > len(subject.images):
        return subject
    chosen = ("draws", "directions", "first_look")
    return with_images(subject, begun.images, {name: getattr(begun, name) for name in chosen})


def _sized(subject: Subject, size: int, attack: int | None) -> Subject:
    plan = subject.plan
    changes: dict[str, object] = {"microbatch": size}
    if plan.attack is not None and attack is not None:
        changes["attack"] = plan.attack.model_copy(update={"microbatch": attack})
    return replace(subject, plan=plan.model_copy(update=changes))


def _fitted(subject: Subject, tuning: Tuning, tell: Tell) -> tuple[Subject, Tuning]:
    if subject.device.type not in _HAS_LIMITS:
        return subject, tuning
    subject, refused = within_memory(subject)
    _tell_refused(refused, tell)
    return subject, tuning.model_copy(update={"too_large": (*tuning.too_large, *refused)})


def _attack_fitted(subject: Subject, tuning: Tuning, tell: Tell) -> tuple[Subject, Tuning]:
    plan = subject.plan.attack
    if subject.device.type not in _HAS_LIMITS or plan is None or plan.predict_only:
        return subject, tuning
    subject, refused = attack_within_memory(subject)
    _tell_refused(refused, tell)
    return subject, tuning.model_copy(update={"attack_too_large": refused})


def _tell_refused(sizes: tuple[int, ...], tell: Tell) -> None:
    for size in sizes:
        tell(f"no memory for micro-batches of {size}")


def _allocated(
    subject: Subject, tuning: Tuning, free_microbatch: bool, tell: Tell
) -> tuple[Subject, Tuning]:
    must_be_allocatable(subject.plan)
    tell("a pilot of a few images chooses draws and directions")
    subject, pilot = allocated(subject)
    if free_microbatch:
        size = default_microbatch(subject.plan, subject.images.image_shape, subject.device)
        subject = _sized(subject, size, None)
    tell(_pilot_line(pilot))
    return subject, tuning.model_copy(update={"pilot": pilot})


def _pilot_line(pilot: Pilot | None) -> str:
    if pilot is None:
        return "the pilot gave no numbers: its images are audited as planned"
    needed = (
        "more images than there are" if pilot.needed is None else f"about {pilot.needed} images"
    )
    parts = ", ".join(f"{n} {v:.2g}" for n, v in pilot.components.model_dump().items())
    return (
        f"variance by {parts}: {pilot.draws} draw{'s' * (pilot.draws > 1)},"
        f" {pilot.directions} directions, {needed}"
    )
