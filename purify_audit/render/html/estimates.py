"""The page's section of estimates: every one with its interval, as plots and as a table."""

from dataclasses import replace

from markupsafe import Markup

from purify_audit.render.html.parts import Figure, at, row, several_radii, unit_axis
from purify_audit.render.html.plots import MOST_LANES, Axis, Row, forest
from purify_audit.render.html.svg import span
from purify_audit.render.summary import Table
from purify_audit.report.schema import Report
from purify_audit.report.wording import estimate_text, norm_text, radius
from purify_audit.statistics.estimates import Estimate
from purify_audit.statistics.metrics import METRICS, metric_info

MOST_ROWS = 300  # of a table; the rest is in the report
_MOST_PLOTS = 16

_SINGLE = ("clean_accuracy", "anchor_accuracy", "predicted_robust_accuracy", "bare_robust_accuracy")
_ELSEWHERE = ("distance_", "randomness_share")  # metrics of other sections
_TITLES = {
    "compression_rate": "Compression rate",
    "unaligned_ratio": "Unaligned ratio",
    "rms_gain": "RMS gain",
}
_AXES = {
    "compression_rate": "‖P(x+δ) − P(x)‖ / ‖δ‖, one draw on both sides",
    "unaligned_ratio": "the same ratio with a fresh draw on one side",
    "rms_gain": "root mean square of the rate",
}
_CAPTIONS = {
    "compression_rate": "Below 1 a perturbation is compressed, above 1 it is amplified.",
    "unaligned_ratio": "Its excess over the compression rate is due to randomness.",
    "rms_gain": "For a linear purifier: its Frobenius norm over the square root of its dimension.",
}
_NAMES = {
    "clean_accuracy": "clean images",
    "anchor_accuracy": "purified clean images",
    "predicted_robust_accuracy": "predicted robust",
    "bare_robust_accuracy": "without purifier",
    "randomness_inflation": "inflation by randomness",
}


def forests(report: Report) -> list[Figure]:
    """Every estimate except distances and shares of variance: a dot and an interval each."""
    groups: dict[tuple[str, str, str], list[Estimate]] = {}
    probes = {e.probe: place for place, e in reversed(list(enumerate(report.estimates)))}
    order: dict[str, float] = {name: place for place, name in enumerate(METRICS)}
    order["rms_gain"] = order["unaligned_ratio"] + 0.5  # both norms of a ratio side by side
    for e in sorted(report.estimates, key=lambda e: order.get(e.metric, len(order))):
        if not e.metric.startswith(_ELSEWHERE):
            group = groups.setdefault(_group(e), [])
            if not (e.metric.endswith("_control") and any(_alike(e, other) for other in group)):
                group.append(e)
    for group in groups.values():
        group.sort(key=lambda e: (order.get(e.metric, 0), probes[e.probe], e.eps or 0.0))
    return [_forest(n, *g) for n, g in enumerate(list(groups.items())[:_MOST_PLOTS])]


def _alike(e: Estimate, other: Estimate) -> bool:
    """Whether two controls are the same: clean images are scored once for all attacks and radii."""
    return (e.metric, e.value, e.n_images) == (other.metric, other.value, other.n_images)


def _group(e: Estimate) -> tuple[str, str, str]:
    """Title, axis and caption of the plot that an estimate belongs to."""
    if e.metric in _TITLES:
        return f"{_TITLES[e.metric]}, {norm_text(e.norm)}", _AXES[e.metric], _CAPTIONS[e.metric]
    if e.metric in _SINGLE:
        return "Accuracy", "share of images classified correctly", ""
    if e.metric.endswith("_control"):
        caption = "Clean images, scored as often as attacked ones."
        return "Clean control", "share of images classified correctly", caption
    where = f", {norm_text(e.norm)} {radius(e.eps)}"
    if metric_info(e.metric).kind == "difference":
        caption = "Paired by image. Excess: clean control minus robust accuracy."
        return f"Differences of accuracies{where}", "percentage points", caption
    if "robust_accuracy" in e.metric:
        caption = "Scored by · attack. An attack gives an upper bound of robust accuracy."
        return f"Robust accuracy{where}", "share of images classified correctly", caption
    return f"{e.metric} {norm_text(e.norm)}", "", ""


def _forest(n: int, heading: tuple[str, str, str], found: list[Estimate]) -> Figure:
    title, axis, caption = heading
    many = several_radii(found)
    rows = [row(e, _label(e, many)) for e in found]
    if metric_info(found[0].metric).kind == "share":
        across = unit_axis(axis, rows)
    elif metric_info(found[0].metric).kind == "difference":
        rows = [_in_points(r) for r in rows]
        across = Axis(axis, reference=0.0)
    else:
        reference = 1.0 if found[0].metric in ("compression_rate", "unaligned_ratio") else None
        ends = span([0.0, reference, *(v for r in rows for v in (r.value, r.lower, r.upper))])
        across = Axis(axis, ends=ends, reference=reference)
    more = len(rows) - MOST_LANES
    caption += f" {more} more are in the table below." if more > 0 else ""
    return Figure(title, Markup(forest(f"estimates-{n}", title, rows, across)), caption.strip())


def _in_points(r: Row) -> Row:
    value, lower, upper = (None if v is None else 100 * v for v in (r.value, r.lower, r.upper))
    return replace(r, value=value, lower=lower, upper=upper)


def _label(e: Estimate, many: bool) -> str:
    if e.metric in _TITLES:
        return at(e, many)
    if e.metric in _NAMES:
        where = f" · {radius(e.eps)}" if many and e.eps is not None else ""
        return _NAMES[e.metric] + where
    name = e.metric.removesuffix("_control").removesuffix("_excess")
    name = name.removesuffix("_robust_accuracy").replace("_", " ").replace("heldout", "held-out")
    if e.metric.endswith("_control"):
        return "without purifier" if name == "bare" else name
    return name if e.probe is None else f"{name} · {e.probe}"


def estimate_table(report: Report) -> Table:
    """Every estimate as text."""
    rows = tuple(
        (
            e.metric,
            ", ".join(part for part in (norm_text(e.norm), e.probe or "", _eps(e)) if part) or "—",
            estimate_text(e),
            f"{e.level:.4g}",
            str(e.n_images),
            "—" if e.n_draws is None else str(e.n_draws),
            e.method,
        )
        for e in report.estimates[:MOST_ROWS]
    )
    more = len(report.estimates) - len(rows)
    columns = ("metric", "of", "value and interval", "level", "images", "draws", "method")
    note = f"{more} more are in the report itself." if more > 0 else ""
    return Table("All estimates", columns, rows, words=(1, 6), note=note)


def _eps(e: Estimate) -> str:
    return "" if e.eps is None else f"ε {radius(e.eps)}"
