"""Compare reports: a ranking, correlations with robustness, and cautions. No torch.

Purifiers are ranked by aligned robust accuracy. Each cheap number of a report (compression rates,
anchor accuracy, predicted robust accuracy) is correlated with it over the purifiers
(`purify_audit.statistics.correlation`).
"""

from collections.abc import Iterator, Sequence

from purify_audit.core.records import Record
from purify_audit.report.cautions import cautions
from purify_audit.report.ranking import Association, Quantity, Row, ranked_pairs
from purify_audit.report.schema import Report
from purify_audit.statistics.correlation import FEWEST, correlations


class Comparison(Record):
    """A comparison of reports.

    Attributes:
        rows: one for each report, ranked.
        associations: for quantities that at least 4 attacked reports have.
        cautions: sentences to read before interpreting it.
        seed: of the resamples and permutations.
        level: of the correlations' intervals.
    """

    rows: tuple[Row, ...]
    associations: tuple[Association, ...]
    cautions: tuple[str, ...]
    seed: int
    level: float


def compare(
    reports: Sequence[tuple[str, Report]], seed: int = 0, level: float = 0.95
) -> Comparison:
    """Rank reports, given with the names of their files, and compute correlations.

    Raises:
        PlanError: fewer than two reports, or one given twice.
        ReportError: a report of something that is not a purifier.
    """
    pairs = ranked_pairs(reports)
    rows = tuple(row for row, _ in pairs)
    associations = tuple(_associations(rows, seed, level))
    return Comparison(
        rows=rows,
        associations=tuple(a for a in associations if a.correlations[0].n >= FEWEST),
        cautions=tuple(cautions(pairs, associations)),
        seed=seed,
        level=level,
    )


def _associations(rows: tuple[Row, ...], seed: int, level: float) -> Iterator[Association]:
    """Every quantity of an attacked report, however few reports have it."""
    probes = dict.fromkeys(e.probe for row in rows for e in row.rates)
    quantities: list[tuple[Quantity, str | None]] = [("compression_rate", p) for p in probes]
    quantities += [("anchor_accuracy", None), ("predicted_robust_accuracy", None)]
    for quantity, probe in quantities:
        both = [
            (e.value, r.robust.value) for r in rows if r.robust and (e := r.get(quantity, probe))
        ]
        if both:
            x, y = zip(*both, strict=True)
            coefficients = correlations(x, y, seed, level)
            yield Association(quantity=quantity, probe=probe, correlations=coefficients)
