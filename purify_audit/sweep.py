"""One purifier at many settings: compression, anchors and aligned robustness along a curve."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from purify_audit.attack_cost import planned_evaluations
from purify_audit.audit import Outcome, Watch, audit
from purify_audit.compression import rows_per_image
from purify_audit.errors import PlanError
from purify_audit.report.curve import Setting
from purify_audit.subject import Subject, prepare
from purify_audit.verify import Verified, verify

Tick = Callable[[int], None]


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
    asked: dict[str, Any], points: list[Setting], device: torch.device
) -> list[tuple[Setting, Subject]]:
    """Everything loaded and checked before anything is spent.

    Args:
        asked: as `prepare` takes it, for all points.
        points: what differs.
        device: where it will run.

    Raises:
        InputError: one of the points cannot be carried out.
    """
    from purify_audit.plan import parse_sampler
    from purify_audit.settings import parse_settings

    found = []
    for point in points:
        own: dict[str, Any] = {}
        if point.t_star is not None:
            own["t_star"] = point.t_star
        if point.sampler is not None:
            own["sampler"] = parse_sampler(*parse_settings(point.sampler))
        if point.eps is not None:
            own["eps"] = (point.eps,)
        found.append((point, prepare(asked | own, device)))
    return found


def cost(subject: Subject) -> int:
    """Network evaluations of one point."""
    rows = len(subject.images) * rows_per_image(subject.plan) * subject.purifier.evaluations
    return rows + (planned_evaluations(subject) if subject.plan.attack else 0)


def sweep(points: list[tuple[Setting, Subject]], tick: Tick) -> Iterator[tuple[Setting, Verified]]:
    """Audit every point, and attack it if its plan says so, one after another.

    A point that was asked to end is given as it is, marked partial, and is the last.
    """
    for point, subject in points:
        each = subject.purifier.evaluations
        outcome = audit(subject, Watch(lambda rows, e=each: tick(rows * e)))  # type: ignore[misc]
        made = Verified(outcome.report, outcome.samples, None)
        if subject.plan.attack and outcome.samples is not None and _sound(outcome):
            made = verify(subject, outcome, tick)
        yield point, made
        if made.report.status == "partial" and outcome.samples is not None:
            return


def _sound(outcome: Outcome) -> bool:
    errors = any(f.severity == "error" for f in outcome.report.findings)
    return outcome.report.status == "complete" and not errors
