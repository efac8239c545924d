"""A process's part of a run's units, computed and kept; and what is still missing."""

from purify_audit.audit import compression_phase, ends_the_audit
from purify_audit.battery import attack_phase, share_attacks
from purify_audit.defended import Tick, attack_of, defences_of
from purify_audit.errors import PlanError
from purify_audit.found import Found
from purify_audit.plan import AuditPlan
from purify_audit.preflight import preflight
from purify_audit.rivals import certify_phase
from purify_audit.runtime import Runner, deterministic
from purify_audit.shard import Shard
from purify_audit.store import RunStore
from purify_audit.subject import Subject
from purify_audit.work import Phase


def must_be_shareable(plan: AuditPlan) -> None:
    """Refuse a plan that looks at its numbers on the way, which nobody can who has a part.

    Raises:
        PlanError: it is such a plan.
    """
    if plan.tolerance is not None or plan.first_look is not None:
        raise PlanError("a run that may end at a look cannot be shared: drop the tolerance")


def share(
    subject: Subject,
    tick: Tick,
    store: RunStore,
    part: tuple[Shard, bool],
    which: tuple[bool, bool] = (True, False),
) -> None:
    """Compute and keep a process's part of a run.

    Args:
        subject: what is audited.
        tick: called with network evaluations; raises `Stopped` to end.
        store: where units are kept.
        part: which part, and whether the others are none of its business (`work.Phase.share`).
        which: whether compression is measured (not where a finished report is attacked), and
            whether errors in preflight are passed over. After such an error nothing is kept:
            whoever makes the report meets it too, and ends there.
    """
    plan, cost = subject.plan, subject.purifier.evaluations
    compresses, anyway = which
    runner = Runner(
        subject.purifier,
        subject.device,
        plan.seed,
        plan.microbatch,
        lambda rows: tick(rows * cost),
    )
    if compresses:
        with deterministic():
            if ends_the_audit(preflight(runner, subject.images).findings, anyway):
                return
            compression_phase(subject, runner).share(store, *part)
    if plan.attack is not None:
        with deterministic(gradients=True):
            share_attacks(subject, tick, store, *part)


def missing(
    subject: Subject, store: RunStore, which: tuple[bool, bool] = (True, False)
) -> dict[str, list[int]]:
    """Units of a run that nobody has finished, by phase; `which` as for `share`.

    None, where the run ends in preflight.
    """
    runner = Runner(subject.purifier, subject.device, subject.plan.seed, subject.plan.microbatch)
    phases, (compresses, anyway) = list[Phase](), which
    if compresses and not store.done("compression"):
        with deterministic():
            if ends_the_audit(preflight(runner, subject.images).findings, anyway):
                return {}
    if compresses:
        phases.append(compression_phase(subject, runner))
    if subject.plan.attack is not None:
        found = Found()
        defences = defences_of(subject, lambda evaluations: None)
        phases.append(attack_phase(subject, defences, found))
        if not attack_of(subject.plan).predict_only:
            phases.append(certify_phase(subject, defences[0], found))
    left = {p.name: sorted(set(range(p.count)) - store.done(p.name)) for p in phases}
    return {name: places for name, places in left.items() if places}
