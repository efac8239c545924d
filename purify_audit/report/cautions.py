"""Cautions for readers of a comparison, as sentences. No torch."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from purify_audit.report.ranking import Association, Pair, Row, ball
from purify_audit.report.schema import Report
from purify_audit.report.wording import coefficient, listed, spread_text
from purify_audit.statistics.correlation import FEWEST
from purify_audit.statistics.estimates import Correlation, Estimate

_NAMED = 3  # names in a sentence before "and 4 more"


def cautions(pairs: list[Pair], associations: tuple[Association, ...]) -> Iterator[str]:
    """Sentences to read before believing a comparison."""
    rows = tuple(row for row, _ in pairs)
    yield from _incomparable(pairs)
    yield from _unsound(pairs)
    yield from _undecided(rows)
    yield from _without_correlation(rows, associations)
    yield from _wrong_order(associations)


def _incomparable(pairs: list[Pair]) -> Iterator[str]:
    """Differences between the reports other than the purifier."""
    yield from _differ("The images differ", ((row.name, _images(r)) for row, r in pairs))
    yield from _differ("The classifiers differ", ((row.name, _classifier(r)) for row, r in pairs))
    attacks = ((row.name, _attack(row.robust, r)) for row, r in pairs if row.robust)
    yield from _differ("The attacks differ", attacks)
    for probe in dict.fromkeys(str(e.probe) for row, _ in pairs for e in row.rates):
        sizes = ((row.name, _probe(row, r, probe)) for row, r in pairs)
        yield from _differ(f"Probe {probe} differs", ((n, size) for n, size in sizes if size))
    yield from _differ(
        "The levels of intervals differ", ((w.name, f"{r.plan.level:.1%}") for w, r in pairs)
    )


def _differ(what: str, values: Iterable[tuple[str, str]]) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for name, value in values:
        groups.setdefault(value, []).append(name)
    if len(groups) > 1:
        parts = (f"{value} in {listed(names, _NAMED)}" for value, names in groups.items())
        yield f"{what}: {'; '.join(parts)}."


def _images(report: Report) -> str:
    data = report.data
    return f"{len(data.ids)} of {data.source} (digest {data.digest[:8]})"


def _classifier(report: Report) -> str:
    model = report.classifier
    return "none" if model is None else f"{model.card.name} ({model.sha256[:8]})"


def _attack(robust: Estimate, report: Report) -> str:
    """Ball of an attack, and the settings that decide its strength."""
    parts, plan = [ball(robust), f"{robust.n_images} images"], report.plan.attack
    if plan is not None:
        parts += [f"{plan.optimiser} of {plan.steps} steps", f"step {plan.step_size:g}"]
        parts += [f"{plan.targets} targets"] if plan.optimiser == "portfolio" else []
        parts += [f"{plan.draws} draws", f"{plan.restarts} restarts"]
        parts += [f"{plan.loss} loss", f"{plan.gradient} gradient"]
    return ", ".join(parts)


def _probe(row: Row, report: Report, name: str) -> str | None:
    """Ball and settings of a probe of a report."""
    rate = row.get("compression_rate", name)
    if rate is None:
        return None
    if name == "file":
        return f"perturbed images of digest {str(report.data.user_images_digest)[:8]}"
    settings = next(p for p in report.plan.probes if p.kind == name).model_dump(exclude={"kind"})
    parts = (f"{key} {value}" for key, value in settings.items() if value is not None)
    return ", ".join((ball(rate, row.norm), *parts))


def _unsound(pairs: list[Pair]) -> Iterator[str]:
    """Reports that are partial, have errors, or count twice."""
    if partial := [row.name for row, _ in pairs if row.status == "partial"]:
        yield f"Partial, stopped before the plan was complete: {listed(partial, _NAMED)}."
    if errors := [row.name for row, _ in pairs if row.errors]:
        yield f"With errors among the findings, so not to be trusted: {listed(errors, _NAMED)}."
    same: dict[str, list[str]] = {}
    for row, r in pairs:
        same.setdefault(r.checkpoint.sha256 + r.checkpoint.card.model_dump_json(), []).append(
            row.name
        )
    for names in same.values():
        if len(names) > 1:
            yield f"The same purifier counts {len(names)} times: {listed(names, _NAMED)}."


def _undecided(rows: tuple[Row, ...]) -> Iterator[str]:
    """Neighbours in the ranking that the images do not separate."""
    attacked = [row.robust for row in rows if row.robust]
    close = sum(
        a.lower is None or b.upper is None or a.lower <= b.upper for a, b in pairwise(attacked)
    )
    if close:
        yield (
            f"{close} of {len(attacked) - 1} pairs of neighbours in the ranking have overlapping"
            " intervals: which one is ahead may be due to chance."
        )


def _without_correlation(
    rows: tuple[Row, ...], associations: tuple[Association, ...]
) -> Iterator[str]:
    """Correlations not computed for lack of reports or of variation."""
    attacked = sum(row.robust is not None for row in rows)
    if attacked < FEWEST:
        yield (
            f"{attacked} of {len(rows)} reports have an aligned robust accuracy: with fewer than"
            f" {FEWEST} no correlation is reported."
        )
        return
    for a in associations:
        n, value = a.correlations[0].n, a.correlations[0].value
        if n < FEWEST:
            yield f"No correlation of the {a.title} is reported: only {n} attacked reports have it."
        elif value is None:
            yield f"No correlation of the {a.title}: it or the aligned robust accuracy is constant."


def _wrong_order(associations: tuple[Association, ...]) -> Iterator[str]:
    """Rates that do not order the purifiers: a lower rate should mean more robustness."""
    groups: dict[str, list[str]] = {"does not": [], "does not significantly": []}
    for a in associations:
        doubtful = [c for c in a.correlations if c.value is not None and not _negative(c)]
        if a.quantity == "compression_rate" and a.correlations[0].n >= FEWEST and doubtful:
            c, value = doubtful[0], doubtful[0].value or 0.0
            within = "no interval"
            if c.lower is not None and c.upper is not None:
                within = f"{c.level:.0%} interval {spread_text(c.lower, c.upper)}"
            verb = "does not" if value > 0 else "does not significantly"
            groups[verb].append(f"{a.probe} ({c.kind} {coefficient(value)}, {within})")
    for verb, probes in groups.items():
        if probes:
            yield (
                f"The compression rate {verb} order these purifiers by robustness:"
                f" {'; '.join(probes)}. Compare the anchor accuracy too."
            )


def _negative(c: Correlation) -> bool:
    """Whether a correlation is significantly below 0; without an interval the test decides."""
    if c.upper is not None:
        return c.upper < 0
    return c.value is not None and c.value < 0 and c.p is not None and c.p <= 1.0 - c.level
