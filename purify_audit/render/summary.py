"""Sentences and tables about a report, built once for the terminal, HTML and Markdown."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from purify_audit.report.schema import AttackInfo, Report
from purify_audit.report.wording import (
    attack_text,
    count,
    estimate_text,
    fresh_text,
    interval_text,
    listed,
    norm_text,
    plain,
    radius,
    value_text,
)
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.statistics.estimates import Estimate

_SCORES = {
    "aligned": "the attack's own draws (aligned)",
    "heldout": "one held-out draw",
    "mean": "mean of {}",
    "worst_of_k": "worst of {}",
    "vote": "majority vote of {}",
}
"""How a robust accuracy is scored, by the first part of the metric's name."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of plain text.

    Attributes:
        title: its caption.
        columns: headings; the first column heads its row.
        rows: cells.
        words: columns of words rather than numbers, besides the first.
        note: text below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[int, ...] = ()
    note: str = ""


def summary(report: Report) -> Iterator[str]:
    """What the main numbers of an audit mean, one sentence each."""
    rates = [e for e in report.estimates if e.metric == "compression_rate" and e.norm == "l2"]
    if rates:
        yield from _compression(report, rates)
    if report.attack is not None:
        yield from _inflation(report)
        yield from _broken_by(report.attack)
        yield from _prediction(report)
        yield from _disagreement(report.attack)


def _compression(report: Report, rates: list[Estimate]) -> Iterator[str]:
    first = rates[0]
    yield (
        f"Purification scales a {first.probe} perturbation of radius {radius(first.eps)} to"
        f" {first.value:.0%} of its ℓ2 length{_spread(report, first)}."
    )
    power = next((e for e in rates if e.probe == "power" and e.eps == first.eps), None)
    if power is not None:
        yield (
            f"In the direction found by power iteration it is {power.value:.0%}: close to what an"
            " attacker can reach, not what a random direction does."
        )
    unaligned = report.find("unaligned_ratio", "l2", first)
    if unaligned is not None and first.value > 0:
        yield (
            "The unaligned ratio (a fresh draw on one side) is"
            f" {unaligned.value / first.value:.1f} times the compression rate."
        )
    yield from distance_sentence(report, first)
    clean, anchor = (report.find(f"{which}_accuracy", None) for which in ("clean", "anchor"))
    if clean is not None and anchor is not None:
        yield (
            f"Accuracy is {estimate_text(clean)} on clean images and {estimate_text(anchor)} on"
            " purified clean images."
        )


def _spread(report: Report, e: Estimate) -> str:
    for q in report.quantiles:
        if (q.metric, q.norm, q.probe, q.eps) == (e.metric, e.norm, e.probe, e.eps):
            return f" (5% to 95% of images: {q.quantiles[0]:.0%} to {q.quantiles[4]:.0%})"
    return ""


def distance_sentence(report: Report, first: Estimate) -> Iterator[str]:
    """Whether purification moves perturbed images towards the clean ones, judged on intervals."""
    purified, delta = (report.find(m, "l2", first) for m in ("distance_purified", "distance_delta"))
    if purified is None or delta is None or delta.value <= 0:
        return
    relation = "about as far from the clean image as"
    if purified.lower is not None and delta.upper is not None and purified.lower > delta.upper:
        relation = "farther from the clean image than"
    elif purified.upper is not None and delta.lower is not None and purified.upper < delta.lower:
        relation = "closer to the clean image than"
    times = plain(purified.value / delta.value)
    yield f"The purified image is {relation} the perturbed one: {times} times its ℓ2 distance."


def _inflation(report: Report) -> Iterator[str]:
    plan = report.plan.attack
    assert plan is not None, "a report of an attack has its plan"
    for e in report.estimates:
        if e.metric != "randomness_inflation" or e.eps is None:
            continue
        aligned = _find(report, "aligned_robust_accuracy", "aligned", e.eps)
        usual = _find(report, "mean_robust_accuracy", "fresh", e.eps)
        if aligned is None or usual is None:
            continue
        low, high = (value_text(found.metric, found.value) for found in (aligned, usual))
        sure = e.lower is None or e.lower > 0 or e.value <= 0
        yield (
            f"At ε = {radius(e.eps)}, robust accuracy is {low} under the aligned attack and {high}"
            " by the usual protocol (fresh attack, held-out draws): an inflation by randomness of"
            f" {estimate_text(e)} points{'' if sure else ', not significantly above 0'}. Budgets:"
            f" {attack_text(plan)}; {fresh_text(plan)}."
        )


def _find(report: Report, metric: str, probe: str, eps: float) -> Estimate | None:
    found = (e for e in report.estimates if (e.metric, e.probe, e.eps) == (metric, probe, eps))
    return next(found, None)


def _prediction(report: Report) -> Iterator[str]:
    for e in report.estimates:
        if e.metric == "predicted_robust_accuracy":
            yield (
                f"Aligned robust accuracy at ε = {radius(e.eps)}, predicted by a short transfer"
                f" attack: {estimate_text(e)} (an upper bound)."
            )


def _broken_by(info: AttackInfo) -> Iterator[str]:
    runs = Counter(image.broken_by for image in info.images if image.broken_by is not None)
    if runs:
        names = listed(f"{name} {n}" for name, n in runs.most_common())
        yield f"Images by the run that broke them, at the first radius: {names}."
    reached = info.convergence
    if reached is not None and reached.standing:
        yield (
            f"An independent attack with runs twice as long broke {reached.broken} of the"
            f" {reached.standing} images that the main attack left among {reached.images}: at most"
            f" {reached.upper:.0%} of such images, with 95% confidence. By itself it leaves"
            f" {reached.continued:.1%}, the main attack {reached.robust_accuracy:.1%}."
        )


def _disagreement(info: AttackInfo) -> Iterator[str]:
    for text, ids in (
        (
            "Fooled although among the most compressed quarter",
            info.fooled_despite_compression,
        ),
        (
            "Robust although among the least compressed quarter",
            info.robust_without_compression,
        ),
    ):
        if ids:
            yield f"{text}: image ids {listed(ids)}."


def robust_accuracy_tables(report: Report) -> list[Table]:
    """For each of the first 8 radii: robust accuracy by scoring and attack."""
    plan = report.plan.attack
    if plan is None or plan.predict_only or report.attack is None:
        return []
    return [_robust_accuracy(report, plan, eps) for eps in plan.eps[:8]]


def _robust_accuracy(report: Report, plan: AttackPlan, eps: float) -> Table:
    at_eps = {(e.metric, e.probe): e for e in reversed(report.estimates) if e.eps == eps}
    names = [n for n in ("aligned", "fresh") if ("aligned_robust_accuracy", n) in at_eps]
    held_out = count(plan.held_out, "held-out draw")
    rows = []
    for score, text in _SCORES.items():
        metric = f"{score}_robust_accuracy"
        cells = [at_eps.get((metric, name)) for name in names or ["aligned"]]
        cells += [at_eps.get((f"{metric}_{end}", "aligned")) for end in ("control", "excess")]
        rows.append((text.format(held_out), *map(estimate_text, cells)))
    bare = at_eps.get(("bare_robust_accuracy", "bare"))
    control = at_eps.get(("bare_robust_accuracy_control", "bare"))
    filler = [""] * (len(names) - 1)
    bare_cells = (estimate_text(bare), *filler, estimate_text(control), "")
    rows.append(("classifier without purifier", *bare_cells))
    attacks = [f"{name} attack" for name in names or ["aligned"]]
    return Table(
        f"Robust accuracy, {norm_text(plan.norm)} {radius(eps)}",
        ("scored by", *attacks, "clean control", "excess, points"),
        tuple(rows),
        note="Excess: clean control minus aligned robust accuracy, paired by image."
        + (" Fresh attack: new draws at every step." if "fresh" in names else ""),
    )


def fuzziness_table(info: AttackInfo) -> Table:
    """Images by the number of held-out draws that they fool."""
    rows = tuple(
        (
            "clean" if f.eps is None else f"{f.attack} attack, {radius(f.eps)}",
            *map(str, (f.fool_all, f.fool_some, f.fool_none)),
            f"{f.quantiles[0]:.0%} to {f.quantiles[4]:.0%}",
        )
        for f in info.fuzziness[:20]
    )
    columns = ("images", "fool all draws", "some", "none", "share of draws, 5% to 95%")
    return Table("Images by how many held-out draws they fool", columns, rows)


def flips_table(info: AttackInfo) -> Table:
    """How often random directions change a decision, by their length."""
    rows = tuple(
        (f"{p.radius:.2g}", *(_share(*values) for values in (p.bare, p.purified)))
        for p in info.caps
    )
    columns = ("ℓ2 length", "bare classifier", "purified")
    return Table("Decisions changed by random directions", columns, rows)


def _share(value: float, lower: float | None, upper: float | None) -> str:
    if lower is None or upper is None:
        return f"{value:.1%}"
    return f"{value:.1%} {interval_text('clean_accuracy', lower, upper)}"
