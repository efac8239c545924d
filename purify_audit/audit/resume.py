"""Resume an interrupted run, or merge the parts of a divided one."""

from dataclasses import dataclass
from pathlib import Path

from purify_audit.audit.from_report import CHECKED_CELLS, checked_result
from purify_audit.audit.phases import PHASES
from purify_audit.audit.replay import check_trust, stored_subject
from purify_audit.audit.result import SILENT, AuditResult, Progress
from purify_audit.audit.run import Basis, RunFolder, run_in_folder
from purify_audit.audit.sharing import Stages, missing_units
from purify_audit.audit.store import open_run, read_run
from purify_audit.audit.subject import Subject, load_subject
from purify_audit.core.errors import AuditError, RunError
from purify_audit.models.runner import choose_device
from purify_audit.report.schema import read_report
from purify_audit.spec.audit_plan import AuditPlan


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run folder's subject, loaded again.

    Attributes:
        folder: the run folder.
        subject: what is audited.
        basis: the finished compression report that is attacked, if one is.
        measure_anyway: whether the run goes on after errors in preflight.
    """

    folder: Path
    subject: Subject
    basis: Basis | None
    measure_anyway: bool


def open_stored_run(folder: Path, *, allow_pickle: bool = False) -> StoredRun:
    """Load what a run folder is about.

    Raises:
        InputError: the folder is no run's, or a model, report or image is missing or changed.
    """
    manifest = read_run(folder)
    plan = AuditPlan.model_validate(manifest["plan"])
    check_trust(plan, allow_pickle)
    device = choose_device(str(manifest["environment"]["device"]))  # type: ignore[call-overload,index]
    anyway = bool(manifest["measure_anyway"])
    if manifest["basis"] is None:
        return StoredRun(folder, load_subject(plan, device), None, anyway)
    path = Path(str(manifest["basis"]))
    saved = read_report(path)
    subject = stored_subject(saved, path.parent, device, plan)
    basis = Basis(path, checked_result(saved, path, device, CHECKED_CELLS))
    return StoredRun(folder, subject.first(int(str(manifest["count"]))), basis, anyway)


def resume_run(run: StoredRun, progress: Progress = SILENT) -> AuditResult:
    """Finish a run; its report is the one that it would have made in one go."""
    result = run_in_folder(
        run.subject,
        progress,
        RunFolder(run.folder),
        basis=run.basis,
        measure_anyway=run.measure_anyway,
    )
    assert result is not None, "a run of one part makes its report"
    return result


def merge_parts(folders: list[Path], run: StoredRun) -> None:
    """Copy all finished units of one run's folders into the first.

    Args:
        folders: the folders of all parts.
        run: the run of the first.

    Raises:
        RunError: they are not of one run.
        AuditError: units are missing.
    """
    first, manifest = folders[0], read_run(folders[0])
    for other in folders[1:]:
        theirs = read_run(other)
        different = [key for key in manifest | theirs if manifest.get(key) != theirs.get(key)]
        if different:
            raise RunError(f"{other}: is another run than {first}: {different[0]} differs")
    stages = Stages(compression=run.basis is None, measure_anyway=run.measure_anyway)
    with open_run(first, manifest, "merge") as store:
        for number, other in enumerate(folders[1:]):
            with open_run(other, manifest, f"merge-{number}") as theirs_store:
                for phase in PHASES:
                    for place in sorted(theirs_store.done(phase) - store.done(phase)):
                        unit = theirs_store.get(phase, place)
                        store.put(phase, place, unit.arrays, unit.facts)
        missing = missing_units(run.subject, store, stages)
    if missing:
        listed = "; ".join(f"{phase} {', '.join(map(str, p))}" for phase, p in missing.items())
        raise AuditError(
            f"units are missing: {listed}; compute their parts, or all of them with"
            f" `purify-audit resume {first}`"
        )
