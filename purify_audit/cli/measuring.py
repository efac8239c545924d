"""What `compress`, `verify` and `run` share: measuring a subject."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from purify_audit.cli.output import Made

if TYPE_CHECKING:
    from purify_audit.audit import Outcome
    from purify_audit.progress import Reporter
    from purify_audit.subject import Subject

Enough = Callable[[Made], bool]
"""Asked at every look of a plan with what there is; measuring ends once it says so."""


def never(made: Made) -> bool:
    """Nothing is enough: everything planned is measured."""
    return False


def planned(subject: "Subject", basis: "Outcome | None" = None) -> int:
    """Network evaluations that measuring will spend, at most."""
    from purify_audit.compression import rows_per_image

    total = 0
    if basis is None:
        total = len(subject.images) * rows_per_image(subject.plan) * subject.purifier.evaluations
    if subject.plan.attack is not None:
        from purify_audit.attack_cost import planned_evaluations

        total += planned_evaluations(subject)
    return total


def measure(
    subject: "Subject",
    reporter: "Reporter",
    basis: "Outcome | None" = None,
    measure_anyway: bool = False,
    enough: Enough = never,
) -> Made:
    """Measure compression, unless a report of it is there, and attack where the plan says so.

    Args:
        subject: what is audited.
        reporter: learns of progress, and knows when to end.
        basis: a finished report of the same subject without the attack.
        measure_anyway: go on after findings that are errors.
        enough: see `Enough`.
    """
    from purify_audit.audit import Watch, audit

    if basis is None:
        each = subject.purifier.evaluations
        watch = Watch(
            lambda rows: reporter.tick(rows * each),
            reporter.interim,
            lambda sofar: enough(Made(sofar.report, sofar.samples, None)),
        )
        basis = audit(subject, watch, measure_anyway)
    errors = any(f.severity == "error" for f in basis.report.findings) and not measure_anyway
    if subject.plan.attack is None or basis.samples is None or errors:
        return Made(basis.report, basis.samples, None)
    from purify_audit.verify import verify

    found = verify(
        subject,
        basis,
        reporter.tick,
        lambda sofar: enough(Made(sofar.report, sofar.samples, sofar.attacks)),
    )
    return Made(found.report, found.samples, found.attacks)
