"""Sweep one purifier over settings: compression, anchor and aligned robust accuracy of each."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from purify_audit.audit.result import SILENT, AuditResult, Progress
from purify_audit.audit.run import run_audit
from purify_audit.audit.subject import Subject, prepare
from purify_audit.core.errors import PlanError
from purify_audit.report.curve import Setting
from purify_audit.spec import from_text


def settings(
    t_stars: tuple[int, ...], samplers: tuple[str, ...], eps: tuple[float, ...]
) -> list[Setting]:
    """Every combination of what is swept, samplers outermost.

    Raises:
        PlanError: nothing is swept, or a value is given twice.
    """
    for values in (t_stars, samplers, eps):
        if len(set(values)) < len(values):
            raise PlanError("a value to sweep over is given twice")
    if not (t_stars or samplers or eps):
        raise PlanError("nothing to sweep: give several of --t-star, --sampler or --eps")
    axes = (samplers or (None,), t_stars or (None,), eps or (None,))
    return [Setting(sampler=s, t_star=t, eps=e) for s, t, e in itertools.product(*axes)]


def subjects(
    options: dict[str, Any], points: list[Setting], device: torch.device
) -> list[tuple[Setting, Subject]]:
    """Everything loaded and checked before anything is computed.

    Args:
        options: as `prepare` takes them, for all points.
        points: what differs.
        device: where it will run.

    Raises:
        InputError: one of the points cannot be carried out.
    """
    loaded = []
    for point in points:
        own: dict[str, Any] = from_text.sampler_setting(point.sampler)
        if point.t_star is not None:
            own["t_star"] = point.t_star
        if point.eps is not None:
            own["eps"] = (point.eps,)
        loaded.append((point, prepare(options | own, device)))
    return loaded


def run_sweep(
    points: list[tuple[Setting, Subject]], progress: Progress = SILENT
) -> Iterator[tuple[Setting, AuditResult]]:
    """Audit every point, and attack it if its plan says so, one after another.

    A point that was stopped is given as it is, marked partial, and is the last.
    """
    for point, subject in points:
        result = run_audit(subject, progress)
        yield point, result
        if result.report.status == "partial" and result.samples is not None:
            return
