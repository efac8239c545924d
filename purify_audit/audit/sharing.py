"""Several processes at one run: compute a part of its units, or find those still missing."""

from dataclasses import dataclass
from functools import partial

from purify_audit.audit.attack_results import AttackResults
from purify_audit.audit.attack_run import attack_phase, share_attacks
from purify_audit.audit.comparison_attacks import comparison_phase
from purify_audit.audit.compression_run import (
    PREFLIGHT,
    compression_phase,
    ends_the_audit,
    run_preflight,
)
from purify_audit.audit.defence import attack_of, bare_defence_of, defence_of
from purify_audit.audit.phases import Phase, SharedRun
from purify_audit.audit.store import RunStore
from purify_audit.audit.subject import Subject
from purify_audit.core.errors import PlanError
from purify_audit.models.runner import Runner, Stopped, Tick, deterministic
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.shard import Shard


@dataclass(frozen=True, slots=True)
class Stages:
    """Which stages a run has.

    Attributes:
        compression: whether compression is measured, not taken from a finished report.
        measure_anyway: whether the run goes on after errors in preflight.
    """

    compression: bool = True
    measure_anyway: bool = False


def must_be_shareable(plan: AuditPlan) -> None:
    """Refuse a plan with early stopping: a process with a part of the rows cannot decide it.

    Raises:
        PlanError: it is such a plan.
    """
    if plan.tolerance is not None or plan.first_look is not None:
        raise PlanError("a run that may end at a look cannot be shared: drop the tolerance")


def share(
    subject: Subject,
    tick: Tick,
    store: RunStore,
    shard: Shard,
    *,
    alone: bool,
    stages: Stages = Stages(),
) -> None:
    """Compute and store a process's part of a run.

    The first of several processes at one run does the preflight while the others begin; an error
    it finds ends them too. A part that is alone does its own, and stores nothing after an error:
    the process that makes the report meets the same error and ends.

    Args:
        subject: what is audited.
        tick: called with network evaluations; raises `Stopped` to end.
        store: where units are stored.
        shard: this process's part.
        alone: whether to leave the other parts alone (`phases.Phase.share`).
        stages: which stages the run has.

    Raises:
        Stopped: from `tick`, or because the run has come to an end.
    """
    anyway, silent = stages.measure_anyway, subject.runner()
    run = SharedRun(store, partial(_has_ended, subject, silent, store, anyway))

    def watched(evaluations: int) -> None:
        tick(evaluations)
        run.check()

    if stages.compression:
        with deterministic():
            first = alone or shard.index == 0
            if first and _ends(subject, silent, store, anyway):
                return
            _share_compression(subject, subject.runner(watched), run, shard, alone, anyway)
    if subject.plan.attack is not None:
        with deterministic(gradients=True):
            share_attacks(subject, watched, run, shard, alone=alone)


def _share_compression(
    subject: Subject, runner: Runner, run: SharedRun, shard: Shard, alone: bool, anyway: bool
) -> None:
    try:
        compression_phase(subject, runner).share(run, shard, alone=alone)
    except Stopped:
        raise
    except Exception:
        # A purifier that cannot be measured fails anyhow; preflight has the words for it.
        if _ends(subject, runner, run.store, anyway):
            raise Stopped from None
        raise


def missing_units(
    subject: Subject,
    store: RunStore,
    stages: Stages = Stages(),
) -> dict[str, list[int]]:
    """Unfinished units of a run, by phase; none where the run ends in preflight."""
    phases, runner = list[Phase](), subject.runner()
    if stages.compression:
        with deterministic():
            if _ends(subject, runner, store, stages.measure_anyway):
                return {}
        phases.append(compression_phase(subject, runner))
    if subject.plan.attack is not None:
        results, defence = AttackResults(), defence_of(subject)
        phases.append(attack_phase(subject, defence, bare_defence_of(subject), results))
        if not attack_of(subject.plan).predict_only:
            phases.append(comparison_phase(subject, defence, results))
    left = {p.name: sorted(set(range(p.count)) - store.done(p.name)) for p in phases}
    return {name: places for name, places in left.items() if places}


def _ends(subject: Subject, runner: Runner, store: RunStore, anyway: bool) -> bool:
    return ends_the_audit(run_preflight(subject, runner, store).findings, anyway)


def _has_ended(subject: Subject, runner: Runner, store: RunStore, anyway: bool) -> bool:
    """Whether another process has done the preflight, and found an error that ends the run."""
    return bool(store.done(PREFLIGHT)) and _ends(subject, runner, store, anyway)
