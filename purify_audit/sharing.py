"""A process's part of a run's units, computed and kept; and what is still missing."""

from functools import partial

from purify_audit.audit import PREFLIGHT, compression_phase, ends_the_audit, looked_over
from purify_audit.battery import attack_phase, share_attacks
from purify_audit.defended import Tick, attack_of, defences_of
from purify_audit.errors import PlanError
from purify_audit.found import Found
from purify_audit.plan import AuditPlan
from purify_audit.rivals import certify_phase
from purify_audit.runtime import Runner, Stopped, deterministic
from purify_audit.shard import Shard
from purify_audit.store import RunStore
from purify_audit.subject import Subject
from purify_audit.work import Phase, Race


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

    The first of several processes at one run looks the purifier over while the others begin; where
    it finds an error they end too. A part that is alone looks for itself, and keeps nothing after
    an error: whoever makes the report meets it too, and ends there.

    Args:
        subject: what is audited.
        tick: called with network evaluations; raises `Stopped` to end.
        store: where units are kept.
        part: which part, and whether the others are none of its business (`work.Phase.share`).
        which: whether compression is measured (not where a finished report is attacked), and
            whether errors in preflight are passed over.

    Raises:
        Stopped: from `tick`, or because the run has come to an end.
    """
    (shard, alone), (compresses, anyway) = part, which
    runner = _runner(subject, lambda evaluations: None)
    race = Race(store, partial(_has_ended, subject, runner, store, anyway))

    def told(evaluations: int) -> None:
        tick(evaluations)
        race.look()

    if compresses:
        with deterministic():
            if (alone or shard.index == 0) and _ends(subject, runner, store, anyway):
                return
            _share_compression(subject, _runner(subject, told), race, part, anyway)
    if subject.plan.attack is not None:
        with deterministic(gradients=True):
            share_attacks(subject, told, race, shard, alone)


def _share_compression(
    subject: Subject, runner: Runner, race: Race, part: tuple[Shard, bool], anyway: bool
) -> None:
    try:
        compression_phase(subject, runner).share(race, *part)
    except Stopped:
        raise
    except Exception:
        # A purifier that cannot be measured fails anyhow; preflight has the words for it.
        if _ends(subject, runner, race.store, anyway):
            raise Stopped from None
        raise


def missing(
    subject: Subject, store: RunStore, which: tuple[bool, bool] = (True, False)
) -> dict[str, list[int]]:
    """Units of a run that nobody has finished, by phase; `which` as for `share`.

    None, where the run ends in preflight.
    """
    phases, (compresses, anyway) = list[Phase](), which
    runner = _runner(subject, lambda evaluations: None)
    if compresses:
        with deterministic():
            if _ends(subject, runner, store, anyway):
                return {}
        phases.append(compression_phase(subject, runner))
    if subject.plan.attack is not None:
        found = Found()
        defences = defences_of(subject, lambda evaluations: None)
        phases.append(attack_phase(subject, defences, found))
        if not attack_of(subject.plan).predict_only:
            phases.append(certify_phase(subject, defences[0], found))
    left = {p.name: sorted(set(range(p.count)) - store.done(p.name)) for p in phases}
    return {name: places for name, places in left.items() if places}


def _runner(subject: Subject, tick: Tick) -> Runner:
    plan, cost = subject.plan, subject.purifier.evaluations
    return Runner(
        subject.purifier,
        subject.device,
        plan.seed,
        plan.microbatch,
        lambda rows: tick(rows * cost),
    )


def _ends(subject: Subject, runner: Runner, store: RunStore, anyway: bool) -> bool:
    return ends_the_audit(looked_over(subject, runner, store).findings, anyway)


def _has_ended(subject: Subject, runner: Runner, store: RunStore, anyway: bool) -> bool:
    """Whether another process has looked the purifier over, and found that it ends the run."""
    return bool(store.done(PREFLIGHT)) and _ends(subject, runner, store, anyway)
