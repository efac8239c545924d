"""The page's sections on compression rates over images, randomness and distances."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from markupsafe import Markup

from purify_audit.render.html.parts import Figure, at, row, several_radii, unit_axis
from purify_audit.render.html.plots import Axis, Curve, Row, bars, boxes, curves, forest, histograms
from purify_audit.render.html.svg import drawable
from purify_audit.report.schema import Report
from purify_audit.report.wording import count, interval_text, norm_text, plain, radius, value_text
from purify_audit.spec.norms import NORMS
from purify_audit.statistics.compression_rows import CompressionSamples
from purify_audit.statistics.estimates import Estimate


def distributions(report: Report, samples: CompressionSamples | None) -> list[Figure]:
    """The distribution of rates over images: histograms of rows, or the report's quantiles."""
    figures = []
    for norm in NORMS:
        ident, title = f"spread-{norm}", f"Compression rate by image, {norm_text(norm)}"
        rows = _quantile_rows(report, norm) if samples is None else _spread(report, samples, norm)
        if not rows:
            continue
        axis = Axis("rate of an image, mean over its draws and directions", reference=1.0)
        if samples is None:
            svg, caption = boxes(ident, title, rows, axis), "Whiskers 5 to 95%, box 25 to 75%."
        else:
            at_first = "" if len(report.plan.eps) == 1 else f" at {radius(report.plan.eps[0])}"
            svg = histograms(ident, title, rows, axis)
            caption = f"Heights are counts of images{at_first}, each probe to its own scale."
        figures.append(Figure(title, Markup(svg), caption))
    return figures


def _quantile_rows(report: Report, norm: str) -> list[Row]:
    found = [q for q in report.quantiles if (q.metric, q.norm) == ("compression_rate", norm)]
    many = len({q.eps for q in found}) > 1
    rows = []
    for q in found:
        name = f"{q.probe} · {radius(q.eps)}" if many else str(q.probe)
        low, middle, high = (plain(q.quantiles[k]) for k in (0, 2, 4))
        value = q.quantiles[2] if all(map(drawable, q.quantiles)) else None
        more = q.quantiles if value is not None else ()
        rows.append(Row(name, f"median {middle}, {low} to {high}", value, more=more))
    return rows


def _spread(report: Report, samples: CompressionSamples, norm: str) -> list[Row]:
    """One row for each probe at its first radius, with the rate of each image."""
    from purify_audit.statistics.compression import per_image_means, probe_names

    rows, found = samples.probes, []
    delta, change = getattr(rows, f"delta_{norm}"), getattr(rows, f"change_{norm}")
    for place, names in enumerate(probe_names(report.plan)):
        sound = (rows.probe == place) & (rows.radius == 0) & (delta > 0)
        for rank, name in enumerate(names[:4]):
            mask = sound & (rows.direction == rank) if len(names) > 1 else sound
            values = per_image_means(rows.image[mask], change[mask] / delta[mask]).tolist()
            kept = tuple(sorted(v for v in values if drawable(v)))
            if kept:
                middle, lost = kept[len(kept) // 2], len(values) - len(kept)
                rest = f", {lost} not finite: not drawn" if lost else ""
                text = f"median {plain(middle)}, {count(len(kept), 'image')}{rest}"
                found.append(Row(name, text, middle, more=kept))
            elif values:
                found.append(Row(name, f"{len(values)} not finite: not drawn", None))
    return found


def radius_curves(report: Report) -> list[Figure]:
    """Rate against radius, if several radii were probed."""
    figures = []
    for norm in NORMS:
        found = [e for e in report.estimates if _is_rate(e, norm) and e.eps is not None]
        title = f"Compression rate against radius, {norm_text(norm)}"
        if several_radii(found):
            across = Axis(f"radius ε ({norm_text(report.plan.norm)}, pixel units)")
            up = Axis("rate", reference=1.0)
            lines = by_line(found, lambda e: str(e.probe))
            svg = curves(f"radius-{norm}", title, lines, across, up)
            figures.append(Figure(title, Markup(svg), "Vertical lines are intervals."))
    return figures


def _is_rate(e: Estimate, norm: str) -> bool:
    return e.metric == "compression_rate" and e.norm == norm


def by_line(found: list[Estimate], name: Callable[[Estimate], str]) -> list[Curve]:
    """Estimates as curves over their radii."""
    lines: dict[str, list[Estimate]] = {}
    for e in sorted(found, key=lambda e: e.eps or 0.0):
        lines.setdefault(name(e), []).append(e)
    return [
        Curve(label, tuple((e.eps or 0.0, row(e, f"{label} {radius(e.eps)}")) for e in points))
        for label, points in lines.items()
    ]


def randomness(report: Report, samples: CompressionSamples | None) -> list[Figure]:
    """The share of variance that the draw explains, and its two parts in pixel units."""
    found = [e for e in report.estimates if e.metric == "randomness_share"]
    if not found:
        return []
    many = several_radii(found)
    rows = [replace(row(e, at(e, many)), shown=_percent(e)) for e in found]
    title = "Share of variance that the draw explains"
    svg = forest("randomness", title, rows, unit_axis("share of Var P(x+δ; ξ)", rows))
    figures = [Figure(title, Markup(svg), "The rest is explained by the perturbation.")]
    parts = [] if samples is None else list(_variances(report, samples))
    if parts:
        title = "Variance of the output, summed over pixels"
        svg = bars("variances", title, parts, Axis("squared pixel units", reference=0.0))
        caption = "Between draws: due to ξ. Within draws: due to δ. Means over images."
        figures.append(Figure(title, Markup(svg), caption))
    return figures


def _percent(e: Estimate) -> str:
    share = "clean_accuracy"  # a metric written in per cent
    return f"{value_text(share, e.value)} {interval_text(share, e.lower, e.upper)}"


def _variances(report: Report, samples: CompressionSamples) -> Iterator[Row]:
    rows = samples.variances
    for place, probe in enumerate(report.plan.probes):
        mask = (rows.probe == place) & (rows.radius == 0)
        for name in ("between", "within"):
            values = [v for v in getattr(rows, f"{name}_draws")[mask].tolist() if drawable(v)]
            if values:
                mean = sum(values) / len(values)
                yield Row(f"{probe.kind} · {name} draws", plain(mean), mean)


def geometry(report: Report) -> list[Figure]:
    """Distances from the clean image in both norms."""
    first = next((e for e in report.estimates if _is_rate(e, "l2")), None)
    if first is None:
        return []
    names = {
        "distance_delta": "perturbed",
        "distance_anchor": "purified clean",
        "distance_purified": "purified perturbed",
    }
    figures = []
    caption = f"‖δ‖, ‖P(x) − x‖ and ‖P(x+δ) − x‖; probe {first.probe} at {radius(first.eps)}."
    for norm in NORMS:
        found = {m: report.find(m, norm, None if m.endswith("anchor") else first) for m in names}
        rows = [row(e, names[m]) for m, e in found.items() if e is not None]
        title = f"Distance from the clean image, {norm_text(norm)}"
        if rows:
            svg = bars(f"distance-{norm}", title, rows, Axis("pixel units", reference=0.0))
            figures.append(Figure(title, Markup(svg), caption))
    return figures
