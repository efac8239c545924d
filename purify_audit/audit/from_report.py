"""Attack the subject of a finished compression report."""

from pathlib import Path
from typing import Any

import torch

from purify_audit.audit.defaults import attack_plan, plan_settings
from purify_audit.audit.replay import check_trust, replay_report, stored_subject
from purify_audit.audit.result import AuditResult
from purify_audit.audit.run import Basis
from purify_audit.audit.subject import Subject
from purify_audit.core.findings import finding
from purify_audit.report.rows import stored_samples
from purify_audit.report.schema import Report, read_report

CHECKED_CELLS = 4
"""Cells of a report that are computed again before its attack."""


def from_report(
    path: Path, options: dict[str, Any], device: torch.device, cells: int = CHECKED_CELLS
) -> tuple[Subject, Basis]:
    """The subject of a report with an attack in its plan, and the report's result.

    Args:
        path: the report.
        options: settings of the attack, by their option names.
        device: where it will run.
        cells: cells of the report to compute again first.

    Raises:
        InputError: the report's models or images are missing or changed, or the attack cannot be
            planned.
    """
    saved = read_report(path)
    check_trust(saved.plan, bool(options.get("allow_pickle")))
    wanted = plan_settings(options)
    plan = attack_plan(saved.plan, wanted, saved.data.image_shape, device)
    subject = stored_subject(saved, path.parent, device, plan)
    most = int(options.get("images", wanted["preset_images"]))
    return subject.first(most), Basis(path, checked_result(saved, path, device, cells))


def checked_result(saved: Report, path: Path, device: torch.device, cells: int) -> AuditResult:
    """A report's result, with finding PA313 if any of its recomputed cells differs."""
    different = [c for c in replay_report(saved, path.parent, cells, device) if not c.same]
    if different:
        gap = max(cell.largest_difference for cell in different)
        sentence = f"{len(different)} of {cells} cells differ, by up to {gap:.3g}."
        found = (*saved.findings, finding("PA313", sentence, {"largest_difference": gap}))
        saved = saved.model_copy(update={"findings": found})
    return AuditResult(saved, stored_samples(saved, path.parent))
