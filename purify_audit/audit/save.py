"""Write a report and its raw rows, each file whole or not at all."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from purify_audit.audit.result import AuditResult
from purify_audit.core.digests import file_sha256
from purify_audit.core.errors import PurifyAuditError
from purify_audit.report.schema import RunInfo
from purify_audit.statistics.attack_rows import save_attacks
from purify_audit.statistics.compression_rows import save_samples


@dataclass(frozen=True, slots=True)
class RunRecord:
    """How a report was made.

    Attributes:
        command: the command line, test or script.
        started: local time, ISO 8601.
        seconds: wall time.
        evaluations: network evaluations spent.
    """

    command: str
    started: str
    seconds: float
    evaluations: int


def save_result(path: Path, result: AuditResult, run: RunRecord) -> AuditResult:
    """Write `path`, and beside it `NAME.rows.safetensors` and `NAME.attack.safetensors`.

    Returns:
        The result whose report names the rows' digests and how it was made.

    Raises:
        PurifyAuditError: the disk refuses.
    """
    rows, attacks = (path.with_name(f"{path.stem}.{n}.safetensors") for n in ("rows", "attack"))
    save: dict[Path, Callable[[Path], None]] = {}
    if result.samples is not None:
        samples = result.samples
        save[rows] = lambda file: save_samples(file, samples)
    if result.attacks is not None:
        attacked = result.attacks
        save[attacks] = lambda file: save_attacks(file, attacked)
    scratch = {file: file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in (path, *save)}
    try:
        for file, write in save.items():
            write(scratch[file])
        digests = {file: file_sha256(scratch[file]) for file in save}
        report = result.report.model_copy(
            update={"rows_sha256": digests.get(rows), "attacks_sha256": digests.get(attacks)}
        )
        info = RunInfo(
            command=run.command,
            started=run.started,
            seconds=round(run.seconds, 3),
            evaluations=run.evaluations,
            rows_file=rows.name if rows in save else None,
            attacks_file=attacks.name if attacks in save else None,
            tuning=result.tuning,
            short_of_memory=result.short_of_memory,
            body_sha256=report.body_sha256(),
        )
        report = report.model_copy(update={"run": info})
        scratch[path].write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for file in (*save, path):
            os.replace(scratch[file], file)
    except OSError as error:
        raise PurifyAuditError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        for file in scratch.values():
            file.unlink(missing_ok=True)
    return replace(result, report=report)
