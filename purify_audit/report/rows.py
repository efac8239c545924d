"""The files of rows of a saved report, checked against its digests. No torch."""

from pathlib import Path

from purify_audit.core.digests import file_sha256
from purify_audit.core.errors import ReportError
from purify_audit.report.schema import Report
from purify_audit.statistics.attack_rows import AttackSamples, load_attacks
from purify_audit.statistics.compression_rows import CompressionSamples, load_samples


def stored_samples(report: Report, folder: Path) -> CompressionSamples:
    """The rows of a saved report.

    Args:
        report: the report.
        folder: the report's folder.

    Raises:
        ReportError: the file is missing or changed.
    """
    if report.run is None or report.run.rows_file is None:
        raise ReportError("the report has no rows: nothing was measured")
    return load_samples(_same(folder / report.run.rows_file, report.rows_sha256))


def stored_attacks(report: Report, folder: Path) -> AttackSamples:
    """The attacked images and predicted labels of a saved report.

    Raises:
        ReportError: the file is missing or changed.
    """
    if report.run is None or report.run.attacks_file is None:
        raise ReportError("the report has no attacked images: nothing was attacked")
    return load_attacks(_same(folder / report.run.attacks_file, report.attacks_sha256))


def _same(path: Path, sha256: str | None) -> Path:
    if not path.is_file() or file_sha256(path) != sha256:
        raise ReportError(f"{path}: is missing or is not the file of this report")
    return path
