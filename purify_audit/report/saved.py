"""A saved report with its files of rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from purify_audit.core.errors import PlanError, ReportError
from purify_audit.report.schema import Report, read_report

if TYPE_CHECKING:  # rows need NumPy, a gate does not
    from purify_audit.statistics.attack_rows import AttackSamples
    from purify_audit.statistics.compression_rows import CompressionSamples


@dataclass(frozen=True, slots=True)
class SavedReport:
    """A saved report and its path."""

    report: Report
    path: Path

    def samples(self) -> "CompressionSamples | None":
        """Its compression rows; none if nothing was measured or the file is missing."""
        from purify_audit.report.rows import stored_samples

        try:
            return stored_samples(self.report, self.path.parent)
        except ReportError:
            return None

    def attacks(self) -> "AttackSamples | None":
        """Its attack rows; none if nothing was attacked or the file is missing."""
        from purify_audit.report.rows import stored_attacks

        try:
            return stored_attacks(self.report, self.path.parent)
        except ReportError:
            return None


def open_report(path: Path, level: float | None = None) -> SavedReport:
    """A saved report, with intervals at another confidence level if given (see `at_level`).

    Raises:
        InputError: it cannot be read, or the level is not between 0.5 and 1.
    """
    report = read_report(path)
    if level is not None:
        from purify_audit.report.relevel import at_level

        if not 0.5 < level < 1:
            raise PlanError(f"--level {level:g} is not between 0.5 and 1")
        report = at_level(report, level)
    return SavedReport(report, path)
