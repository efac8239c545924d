"""`purify-audit resume` and `purify-audit merge`: a run's kept work taken up again."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from purify_audit.cli import options as o
from purify_audit.cli.app import app
from purify_audit.cli.keeping import Keeping
from purify_audit.cli.measuring import Asked, carry_out, finish, planned
from purify_audit.cli.output import must_be_writable
from purify_audit.cli.verify import CHECKED, checked
from purify_audit.errors import AuditError, RunError
from purify_audit.shard import Shard

if TYPE_CHECKING:
    from purify_audit.audit import Outcome
    from purify_audit.subject import Subject

Out = Annotated[
    Path | None,
    typer.Option(help="The report. Default: X.json for a folder X.run, else report.json in it."),
]


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="What --run-dir named.")],
    out: Out = None,
    allow_pickle: o.AllowPickle = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Go on with an interrupted run; its report is the one it would have made in one go."""
    from purify_audit.store import read_run

    manifest = read_run(folder)
    subject, basis = _subject(manifest, allow_pickle)
    _report(folder, subject, basis, _asked(folder, out, basis, manifest), (as_json, quiet))


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of all parts of one run.")],
    out: Out = None,
    allow_pickle: o.AllowPickle = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Make the report of a run whose parts were computed by --shard; refuse if one is missing."""
    from purify_audit.sharing import missing
    from purify_audit.store import open_run, read_run
    from purify_audit.work import PHASES

    first, manifest = folders[0], read_run(folders[0])
    for other in folders[1:]:
        theirs = read_run(other)
        different = [key for key in manifest | theirs if manifest.get(key) != theirs.get(key)]
        if different:
            raise RunError(f"{other}: is another run than {first}: {different[0]} differs")
    subject, basis = _subject(manifest, allow_pickle)
    with open_run(first, manifest, "merge") as store:
        for number, other in enumerate(folders[1:]):
            with open_run(other, manifest, f"merge-{number}") as theirs_store:
                for phase in PHASES:
                    for place in sorted(theirs_store.done(phase) - store.done(phase)):
                        unit = theirs_store.get(phase, place)
                        store.put(phase, place, unit.arrays, unit.facts)
        left = missing(subject, store, (basis is None, bool(manifest["measure_anyway"])))
    if left:
        told = "; ".join(f"{phase} {', '.join(map(str, p))}" for phase, p in left.items())
        raise AuditError(
            f"units are missing: {told}; compute their parts, or all of them with"
            f" `purify-audit resume {first}`"
        )
    _report(first, subject, basis, _asked(first, out, basis, manifest), (as_json, quiet))


def _subject(
    manifest: dict[str, Any], allow_pickle: bool
) -> "tuple[Subject, tuple[Path, Outcome] | None]":
    """What a run is of, loaded again.

    Raises:
        InputError: something of it is no longer there, or is not what it was.
    """
    from purify_audit.loading import choose_device
    from purify_audit.plan import AuditPlan
    from purify_audit.replay import check_trust, stored_subject
    from purify_audit.report.schema import read_report
    from purify_audit.subject import load_subject

    plan = AuditPlan.model_validate(manifest["plan"])
    check_trust(plan, allow_pickle)
    where = choose_device(str(manifest["environment"]["device"]))
    if manifest["basis"] is None:
        return load_subject(plan, where), None
    path = Path(manifest["basis"])
    saved = read_report(path)
    subject = stored_subject(saved, path.parent, where, plan)
    few = subject.images.select(list(range(min(int(manifest["count"]), len(subject.images)))))
    return replace(subject, images=few), (path, checked(saved, path, where, CHECKED))


def _asked(
    folder: Path, out: Path | None, basis: "tuple[Path, Outcome] | None", manifest: dict[str, Any]
) -> Asked:
    named = folder.with_suffix(".json") if folder.suffix == ".run" else folder / "report.json"
    where = named if out is None else out
    must_be_writable(where)
    return Asked(Keeping(folder, Shard(), False), where, basis, bool(manifest["measure_anyway"]))


def _report(
    folder: Path,
    subject: "Subject",
    basis: "tuple[Path, Outcome] | None",
    asked: Asked,
    how: tuple[bool, bool],
) -> None:
    from purify_audit.progress import Reporter

    started = datetime.now().astimezone().isoformat(timespec="seconds")
    as_json, quiet = how
    total = planned(subject, None if basis is None else basis[1])
    reporter = Reporter(Console(stderr=True), total, quiet)
    finish(carry_out(subject, reporter, asked), reporter, asked, started, as_json)
