"""Carry out an audit: compression, then the attack if one is planned; alone or in a run folder."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from purify_audit import __version__
from purify_audit.audit.allocator import hold_freed_memory
from purify_audit.audit.attack_report import run_attack
from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.result import SILENT, AuditResult, Decided, Progress, never_decided
from purify_audit.audit.sharing import Stages, must_be_shareable, share
from purify_audit.audit.store import RunStore, open_run
from purify_audit.audit.subject import Subject
from purify_audit.core.digests import file_sha256
from purify_audit.core.noise import NOISE_SPEC
from purify_audit.models.runner import Stopped, environment
from purify_audit.spec.shard import Shard
from purify_audit.spec.tuning import Tuning

_TUNING = "tuning"  # the unit of a run folder that stores it


@dataclass(frozen=True, slots=True)
class Basis:
    """A finished compression report that is attacked.

    Attributes:
        path: the report's file.
        result: the report, with its rows.
    """

    path: Path
    result: AuditResult


def run_audit(
    subject: Subject,
    progress: Progress = SILENT,
    *,
    basis: AuditResult | None = None,
    decided: Decided = never_decided,
    measure_anyway: bool = False,
    store: RunStore | None = None,
) -> AuditResult:
    """Measure compression, unless a finished report is given, and attack where the plan says so.

    Args:
        subject: what is audited.
        progress: progress callbacks; `Stopped` raised there gives a partial result.
        basis: a finished result of the same subject without the attack.
        decided: early decision, asked at every look of the plan.
        measure_anyway: go on after findings that are errors.
        store: where finished work is stored, and read from.
    """
    if basis is None:
        basis = run_compression(
            subject, progress, decided=decided, measure_anyway=measure_anyway, store=store
        )
    errors = basis.has_errors and not measure_anyway
    if subject.plan.attack is None or basis.samples is None or errors:
        return basis
    return run_attack(subject, basis, progress, decided=decided, store=store)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run stores its finished work, and which part of it is this process's.

    Attributes:
        path: the folder; none where nothing is stored.
        shard: this process's part.
        alone: whether it leaves the other parts alone.
    """

    path: Path | None
    shard: Shard = Shard()  # noqa: RUF009 - frozen
    alone: bool = False

    @property
    def reports(self) -> bool:
        """Whether this process writes the report: the first of those that share a run."""
        return not self.alone and self.shard.index == 0

    def open(self, manifest: dict[str, Any]) -> "AbstractContextManager[RunStore | None]":
        """The store of the run, if it has one.

        Raises:
            RunError: the folder is another run's, in use, or damaged.
        """
        if self.path is None:
            return nullcontext(None)
        return open_run(self.path, manifest, f"{self.shard.index}-of-{self.shard.count}")


def run_in_folder(
    subject: Subject,
    progress: Progress,
    folder: RunFolder,
    *,
    basis: Basis | None = None,
    decided: Decided = never_decided,
    measure_anyway: bool = False,
    tuning: Tuning | None = None,
) -> AuditResult | None:
    """Like `run_audit`, storing what is finished and sharing it with other processes.

    Args:
        subject: what is audited.
        progress: progress callbacks.
        folder: where finished work is stored, if anywhere, and which part is computed.
        basis: a finished compression report to attack.
        decided: early decision.
        measure_anyway: go on after findings that are errors.
        tuning: settings tuned before the run.

    Returns:
        None where this process has done its part and another makes the report.

    Raises:
        PlanError: it is to be shared, and its plan cannot be.
        RunError: the run's folder is another run's, in use, or damaged.
    """
    hold_freed_memory()
    shared = folder.shard.count > 1
    if shared:
        must_be_shareable(subject.plan)
    path = None if basis is None else basis.path
    with folder.open(run_manifest(subject, path, measure_anyway)) as store:
        if store is not None and shared:
            stages = Stages(compression=basis is None, measure_anyway=measure_anyway)
            try:
                share(
                    subject, progress.tick, store, folder.shard, alone=folder.alone, stages=stages
                )
            except Stopped:
                return None
        if not folder.reports:
            return None
        tuning = stored_tuning(store, tuning)
        result = run_audit(
            subject,
            progress,
            basis=None if basis is None else basis.result,
            decided=decided,
            measure_anyway=measure_anyway,
            store=store,
        )
        return replace(result, tuning=tuning)


def run_manifest(subject: Subject, basis: Path | None, measure_anyway: bool) -> dict[str, Any]:
    """Everything that decides what a run computes.

    Args:
        subject: what is audited.
        basis: a finished report that is attacked, if one is.
        measure_anyway: whether the run goes on after errors in preflight.
    """
    classifier, user_images = subject.classifier, subject.user_images
    return {
        "version": __version__,
        "noise_spec": NOISE_SPEC,
        "plan": subject.plan.model_dump(mode="json"),
        "checkpoint": subject.checkpoint.sha256,
        "classifier": None if classifier is None else classifier.checkpoint.sha256,
        "images": subject.images.digest,
        "count": len(subject.images),
        "user_images": None if user_images is None else user_images.digest,
        "environment": environment(subject.device, subject.plan.engine),
        "basis": None if basis is None else str(basis),
        "basis_sha256": None if basis is None else file_sha256(basis),
        "measure_anyway": measure_anyway,
    }


def stored_tuning(store: RunStore | None, tuning: Tuning | None) -> Tuning | None:
    """The settings tuned when a run began, as its folder remembers them."""
    if store is None:
        return tuning
    if tuning is not None and not store.done(_TUNING):
        store.put(_TUNING, 0, {}, {"tuning": tuning.model_dump_json()})
    if not store.done(_TUNING):
        return None
    return Tuning.model_validate_json(str(store.get(_TUNING, 0).facts["tuning"]))
