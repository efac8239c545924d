"""What `compress`, `verify` and `run` share: measuring a subject."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from purify_audit.cli.allocator import hold_freed_memory
from purify_audit.cli.keeping import Keeping, manifest_of
from purify_audit.cli.output import Made, tell, write

if TYPE_CHECKING:
    from purify_audit.audit import Outcome
    from purify_audit.progress import Reporter
    from purify_audit.settled import Settled
    from purify_audit.store import RunStore
    from purify_audit.subject import Subject

_SETTLED = "settled"

Enough = Callable[[Made], bool]
"""Asked at every look of a plan with what there is; measuring ends once it says so."""


def never(made: Made) -> bool:
    """Nothing is enough: everything planned is measured."""
    return False


def planned(subject: "Subject", basis: "Outcome | None" = None) -> int:
    """Network evaluations that measuring will spend, at most."""
    from purify_audit.compression import rows_per_image

    total = 0
    if basis is None:
        total = len(subject.images) * rows_per_image(subject.plan) * subject.purifier.evaluations
    if subject.plan.attack is not None:
        from purify_audit.attack_cost import planned_evaluations

        total += planned_evaluations(subject)
    return total


def measure(
    subject: "Subject",
    reporter: "Reporter",
    basis: "Outcome | None" = None,
    measure_anyway: bool = False,
    enough: Enough = never,
    store: "RunStore | None" = None,
) -> Made:
    """Measure compression, unless a report of it is there, and attack where the plan says so.

    Args:
        subject: what is audited.
        reporter: learns of progress, and knows when to end.
        basis: a finished report of the same subject without the attack.
        measure_anyway: go on after findings that are errors.
        enough: see `Enough`.
        store: where finished work is kept, and taken from.
    """
    from purify_audit.audit import Watch, audit

    if basis is None:
        each = subject.purifier.evaluations
        watch = Watch(
            lambda rows: reporter.tick(rows * each),
            reporter.interim,
            lambda sofar: enough(Made(sofar.report, sofar.samples, None)),
        )
        basis = audit(subject, watch, measure_anyway, store)
    errors = any(f.severity == "error" for f in basis.report.findings) and not measure_anyway
    if subject.plan.attack is None or basis.samples is None or errors:
        return Made(basis.report, basis.samples, None)
    from purify_audit.verify import verify

    found = verify(
        subject,
        basis,
        reporter.tick,
        lambda sofar: enough(Made(sofar.report, sofar.samples, sofar.attacks)),
        store,
    )
    return Made(found.report, found.samples, found.attacks, found.short)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of a run that may be kept and shared.

    Attributes:
        keep: how its work is kept.
        out: the report.
        basis: a finished report to attack, and what it found.
        measure_anyway: go on after findings that are errors.
        settled: what was found out beforehand.
    """

    keep: Keeping
    out: Path
    basis: "tuple[Path, Outcome] | None" = None
    measure_anyway: bool = False
    settled: "Settled | None" = None


def carry_out(subject: "Subject", reporter: "Reporter", asked: Asked) -> Made | None:
    """Measure, keeping what is finished where that is asked for.

    Returns:
        None where this process has done its part and another makes the report.

    Raises:
        PlanError: it is to be shared, and its plan cannot be.
        RunError: the run's folder is another run's, in use, or damaged.
    """
    from purify_audit.sharing import must_be_shareable, share

    hold_freed_memory()
    if asked.keep.shard.count > 1:
        must_be_shareable(subject.plan)
    keep, path = asked.keep, None if asked.basis is None else asked.basis[0]
    with keep.open(manifest_of(subject, path, asked.measure_anyway)) as store, reporter.running():
        if store is not None and keep.shard.count > 1:
            from purify_audit.runtime import Stopped

            which = asked.basis is None, asked.measure_anyway
            try:
                share(subject, reporter.tick, store, (keep.shard, keep.alone), which)
            except Stopped:
                return None
        if not keep.reports:
            return None
        settled = kept_settled(store, asked.settled)
        basis = None if asked.basis is None else asked.basis[1]
        made = measure(subject, reporter, basis, asked.measure_anyway, store=store)
        return replace(made, settled=settled)


def kept_settled(store: "RunStore | None", settled: "Settled | None") -> "Settled | None":
    """What was settled when a run began, which its folder remembers."""
    from purify_audit.settled import Settled

    if store is None:
        return settled
    if settled is not None and not store.done(_SETTLED):
        store.put(_SETTLED, 0, {}, {"settled": settled.model_dump_json()})
    if not store.done(_SETTLED):
        return None
    return Settled.model_validate_json(str(store.get(_SETTLED, 0).facts["settled"]))


def finish(made: Made | None, reporter: "Reporter", asked: Asked, started: str, json: bool) -> None:
    """Write the report and tell of it; or, of a part, tell that it is kept.

    Raises:
        Exit: see `tell`; and 128 + the signal that ended a part.
    """
    keep = asked.keep
    again = shlex.join(["purify-audit", "resume", str(keep.folder), "--out", str(asked.out)])
    if made is None:
        kept = (
            "is kept" if not reporter.stop_signal else "was interrupted; the same command goes on"
        )
        print(f"part {keep.shard} of {keep.folder} {kept}")
        raise typer.Exit(128 + reporter.stop_signal if reporter.stop_signal else 0)
    made = write(asked.out, made, reporter, started)
    if keep.folder is not None and made.report.status == "partial" and not json:
        print(f"What is finished is kept; to go on: {again}")
    tell(asked.out, made, reporter, json)


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
