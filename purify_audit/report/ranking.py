"""Reports side by side: one row each, ranked by aligned robust accuracy. No torch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from purify_audit.core.errors import PlanError, ReportError
from purify_audit.core.records import Record
from purify_audit.report.schema import Report
from purify_audit.report.wording import describe, radius
from purify_audit.spec.card import ClassifierCard
from purify_audit.spec.norms import Norm
from purify_audit.statistics.estimates import Correlation, Estimate

Quantity = Literal["compression_rate", "anchor_accuracy", "predicted_robust_accuracy"]

_TARGET = "aligned_robust_accuracy"
_PREDICTED = "predicted_robust_accuracy"


class Row(Record):
    """One report.

    Attributes:
        name: of its file.
        purifier: name of the purifier.
        kind: the purifier in a few words.
        rank: by aligned robust accuracy, 1 the highest, ties share a rank; none without an attack.
        norm: the ball of the probes.
        rates: the l2 compression rate of each probe, at the attack's radius if measured in the
            attack's norm, else at the first of the plan; of `power`, the first direction.
        anchor: accuracy on purified clean images.
        clean: accuracy on unpurified images.
        robust: accuracy under the aligned attack, with the attack's norm and radius.
        predicted: the same, predicted without the attack, in the same ball.
        status: of the report.
        errors: number of findings that are errors.
    """

    name: str
    purifier: str
    kind: str
    rank: int | None
    norm: Norm
    rates: tuple[Estimate, ...]
    anchor: Estimate | None
    clean: Estimate | None
    robust: Estimate | None
    predicted: Estimate | None
    status: Literal["complete", "partial"]
    errors: int

    def get(self, quantity: Quantity, probe: str | None = None) -> Estimate | None:
        """The number that is correlated with aligned robust accuracy."""
        if quantity == "compression_rate":
            return next((e for e in self.rates if e.probe == probe), None)
        return self.anchor if quantity == "anchor_accuracy" else self.predicted


class Association(Record):
    """Correlation of a quantity with aligned robust accuracy over the reports that have both."""

    quantity: Quantity
    probe: str | None = None
    correlations: tuple[Correlation, ...]

    @property
    def title(self) -> str:
        """The quantity in words."""
        words = self.quantity.replace("_", " ")
        return f"{words} ({self.probe})" if self.probe else words


Pair = tuple[Row, Report]


def ranked_pairs(reports: Sequence[tuple[str, Report]]) -> list[Pair]:
    """A row for each report, ranked.

    Raises:
        PlanError: fewer than two reports, or one given twice.
        ReportError: a report of something that is not a purifier.
    """
    _refuse(reports)
    usual = _usual_ball(reports)
    return _ranked([(_row(name, report, usual), report) for name, report in reports])


def ball(e: Estimate, norm: str | None = None) -> str:
    """The norm and radius of an estimate."""
    return "given perturbations" if e.eps is None else f"{norm or e.norm} {radius(e.eps)}"


def _refuse(reports: Sequence[tuple[str, Report]]) -> None:
    if len(reports) < 2:
        raise PlanError(f"a comparison needs at least two reports, not {len(reports)}")
    same: dict[str, list[str]] = {}
    for name, report in reports:
        same.setdefault(report.body_sha256(), []).append(name)
    for names in same.values():
        if len(names) > 1:
            raise PlanError(f"{' and '.join(names)} are the same report: give it once")


def _all(report: Report, metric: str) -> list[Estimate]:
    estimates = [e for e in report.estimates if e.metric == metric]
    # Images of the fresh attack are scored under the aligned draws too.
    return estimates if metric != _TARGET else [e for e in estimates if e.probe == "aligned"]


def _usual_ball(reports: Sequence[tuple[str, Report]]) -> str:
    """The ball most frequently attacked (or predicted, if none is attacked)."""
    for metric in (_TARGET, _PREDICTED):
        counts = Counter(ball(e) for _, report in reports for e in _all(report, metric))
        if counts:
            return counts.most_common(1)[0][0]
    return ""


def _row(name: str, report: Report, usual: str) -> Row:
    card = report.checkpoint.card
    if isinstance(card, ClassifierCard):
        raise ReportError(f"{name}: is about the classifier '{card.name}', not about a purifier")
    robust = _in_ball(_all(report, _TARGET), usual)
    predicted = _in_ball(_all(report, _PREDICTED), ball(robust) if robust else usual)
    if robust and predicted and ball(robust) != ball(predicted):
        predicted = None  # in another ball it does not predict this attack
    return Row(
        name=name,
        purifier=card.name,
        kind=describe(card),
        rank=None,
        norm=report.plan.norm,
        rates=tuple(_rates(report, robust)),
        anchor=report.find("anchor_accuracy", None),
        clean=report.find("clean_accuracy", None),
        robust=robust,
        predicted=predicted,
        status=report.status,
        errors=sum(f.severity == "error" for f in report.findings),
    )


def _in_ball(estimates: list[Estimate], wanted: str) -> Estimate | None:
    """The estimate in the wanted ball, else the first."""
    return next((e for e in estimates if ball(e) == wanted), next(iter(estimates), None))


def _rates(report: Report, robust: Estimate | None) -> Iterator[Estimate]:
    norm = report.plan.norm
    for probe in report.plan.probes:
        rates = [
            e for e in _all(report, "compression_rate") if (e.norm, e.probe) == ("l2", probe.kind)
        ]
        if rates:
            attacked = [e for e in rates if robust and ball(e, norm) == ball(robust)]
            yield (attacked or rates)[0]


def _ranked(pairs: list[Pair]) -> list[Pair]:
    """By aligned robust accuracy; those without one last, by anchor accuracy."""

    def key(pair: Pair) -> tuple[float, float, str]:
        robust, anchor = (-e.value if e else 1.0 for e in (pair[0].robust, pair[0].anchor))
        return robust, anchor, pair[0].name

    scores = [row.robust.value for row, _ in pairs if row.robust]
    places = []
    for row, report in sorted(pairs, key=key):
        mine = row.robust
        rank = 1 + sum(score > mine.value for score in scores) if mine else None
        places.append((row.model_copy(update={"rank": rank}), report))
    return places
