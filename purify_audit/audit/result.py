"""Result record of an audit, and its callback types."""

from collections.abc import Callable
from dataclasses import dataclass

from purify_audit.report.schema import Report
from purify_audit.spec.tuning import Tuning
from purify_audit.statistics.attack_rows import AttackSamples
from purify_audit.statistics.compression_rows import CompressionSamples
from purify_audit.statistics.estimates import Estimate


@dataclass(frozen=True, slots=True)
class AuditResult:
    """A report and the raw rows behind it.

    Attributes:
        report: the estimates, findings and settings.
        samples: rows of the compression measurement; none if preflight ended the audit.
        attacks: rows of the attacks; none without an attack.
        short_of_memory: whether gradients had to recompute activations for lack of memory.
        tuning: settings tuned before the run, and the trials behind them.
    """

    report: Report
    samples: CompressionSamples | None
    attacks: AttackSamples | None = None
    short_of_memory: bool = False
    tuning: Tuning | None = None

    @property
    def has_errors(self) -> bool:
        """Whether a finding is an error."""
        return any(f.severity == "error" for f in self.report.findings)


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress callbacks of a run.

    Attributes:
        tick: called with the network evaluations of every micro-batch, a backward pass counted as
            one; raises `Stopped` to end the run there.
        rate: called now and then with the compression rate (first probe) measured so far.
    """

    tick: Callable[[int], None] = lambda evaluations: None
    rate: Callable[[Estimate], None] = lambda estimate: None


SILENT = Progress()

Decided = Callable[[AuditResult], bool]
"""Early decision: called at every look of the plan with the result so far; true ends the run."""


def never_decided(result: AuditResult) -> bool:
    """Measure everything that is planned."""
    return False
