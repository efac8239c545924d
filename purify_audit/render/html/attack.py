"""The page's sections on the attack: protocols, inflation, decisions flipped, images and fates."""

from collections.abc import Iterator

from markupsafe import Markup

from purify_audit.render.html.parts import Figure, Table, norm_text, shown
from purify_audit.render.html.pictures import Gallery, gallery
from purify_audit.render.html.plots import Axis, Curve, Row, curves, scatter
from purify_audit.render.html.rates import by_line
from purify_audit.render.html.svg import drawable
from purify_audit.report.schema import AttackInfo, Report
from purify_audit.report.wording import radius
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.statistics.attack_rows import AttackSamples
from purify_audit.statistics.estimates import Correlation, Estimate, ImageVerdict

MOST_POINTS = 2000
"""Of one scatter plot; of more images every so many are drawn."""

_MOST_SCATTERS = 6
_PROTOCOLS = {
    "aligned": "the attack's own draws (aligned)",
    "heldout": "one draw it never saw",
    "mean": "mean of {} held-out {}",
    "worst_of_k": "worst of {} held-out {}",
    "vote": "vote of {} held-out {}",
}


def told(how: AttackPlan) -> str:
    """An attack in a few words."""
    draws = "1 draw" if how.draws == 1 else f"expectation over {how.draws} draws"
    search = "no gradient" if how.optimiser == "square" else f"{how.gradient} gradient"
    restarts = "1 restart" if how.restarts == 1 else f"{how.restarts} restarts"
    return f"{how.optimiser.upper()}-{how.steps}, {draws}, {search}, {restarts}, {how.loss} loss"


def matrices(report: Report) -> list[Table]:
    """For every radius: robust accuracy by how it is scored and whose images they are."""
    how = report.plan.attack
    if how is None or how.predict_only or report.attack is None:
        return []
    return [_matrix(report, how, eps) for eps in how.eps[:8]]


def _matrix(report: Report, how: AttackPlan, eps: float) -> Table:
    names = [n for n in ("aligned", "fresh") if _find(report, "aligned_robust_accuracy", n, eps)]
    rows = []
    for protocol, words in _PROTOCOLS.items():
        metric = f"{protocol}_robust_accuracy"
        cells = [shown(_find(report, metric, name, eps)) for name in names]
        control = shown(_find(report, f"{metric}_control", "aligned", eps))
        excess = shown(_find(report, f"{metric}_excess", "aligned", eps))
        rows.append(
            (
                words.format(how.held_out, "draw" if how.held_out == 1 else "draws"),
                *cells,
                control,
                excess,
            )
        )
    bare, control = (
        shown(_find(report, f"bare_robust_accuracy{end}", "bare", eps)) for end in ("", "_control")
    )
    filler = ("",) * max(0, len(names) - 1)
    rows.append(("classifier without purifier", bare, *filler, control, ""))
    columns = ("scored by", *(f"{n} attack" for n in names), "clean control", "excess, points")
    return Table(
        f"Robust accuracy, {norm_text(how.norm)} {radius(eps)}",
        columns if names else ("scored by", "attack", *columns[1:]),
        tuple(r if names else (r[0], "—", *r[1:]) if len(r) == 3 else r for r in rows),
        note="Excess: clean control minus robust accuracy of the aligned attack, image by image.",
    )


def inflations(report: Report) -> Iterator[str]:
    """What randomness hides, at every radius."""
    for e in report.estimates:
        if e.metric == "randomness_inflation" and e.eps is not None:
            aligned = _find(report, "aligned_robust_accuracy", "aligned", e.eps)
            usual = _find(report, "mean_robust_accuracy", "fresh", e.eps)
            if aligned is None or usual is None:
                continue
            sure = "" if e.lower is None or e.lower > 0 or e.value <= 0 else ", not surely above 0"
            yield (
                f"At {radius(e.eps)} the aligned attack leaves {aligned.value:.1%}, the usual"
                f" protocol reports {usual.value:.1%}: randomness inflates robust accuracy by"
                f" {shown(e)} points{sure}."
            )


def predictions(report: Report) -> Iterator[str]:
    """What was predicted_scores of the aligned attack, at every radius."""
    for e in report.estimates:
        if e.metric == "predicted_robust_accuracy":
            yield (
                f"Predicted without the full attack, at {radius(e.eps)}: {shown(e)} aligned"
                " robust accuracy."
            )


def _find(report: Report, metric: str, name: str, eps: float) -> Estimate | None:
    for e in report.estimates:
        if (e.metric, e.probe, e.eps) == (metric, name, eps):
            return e
    return None


def accuracy_curves(report: Report) -> list[Figure]:
    """Robust accuracy against radius, where several were attacked."""
    how, names = report.plan.attack, {}
    for metric, probe, label in (
        ("aligned_robust_accuracy", "aligned", "aligned"),
        ("mean_robust_accuracy", "fresh", "usual"),
        ("bare_robust_accuracy", "bare", "no purifier"),
    ):
        names[metric, probe] = label
    found = [e for e in report.estimates if (e.metric, str(e.probe)) in names]
    if how is None or len({e.eps for e in found}) < 2:
        return []
    lines = by_line(found, lambda e: names[e.metric, str(e.probe)])
    title = "Robust accuracy against radius"
    across = Axis(f"radius ε ({norm_text(how.norm)}, pixel units)")
    svg = curves("accuracy-radius", title, lines, across, Axis("", True, (0.0, 1.0)))
    return [Figure(title, Markup(svg), "Vertical strokes are intervals.")]


def fuzziness(info: AttackInfo) -> Table | None:
    """How many of the held-out draws images fool."""
    rows = tuple(
        (
            "clean" if f.eps is None else f"{f.attack} attack, {radius(f.eps)}",
            *map(str, (f.fool_all, f.fool_some, f.fool_none)),
            f"{f.quantiles[0]:.0%} to {f.quantiles[4]:.0%}",
        )
        for f in info.fuzziness[:20]
    )
    columns = ("images", "fool all draws", "only some", "none", "share of draws, 5 to 95%")
    return Table("Images by how many held-out draws they fool", columns, rows) if rows else None


def caps(info: AttackInfo) -> list[Figure]:
    """Decisions that random directions flip, by their length."""
    lines = []
    for name, label in (("purified", "purified"), ("bare", "bare")):
        points = []
        for point in info.caps:
            value, lower, upper = getattr(point, name)
            words = f"{value:.1%} at {point.radius:.3g}"
            points.append((point.radius, Row(label, words, value, lower, upper)))
        lines.append(Curve(label, tuple(points)))
    if not info.caps:
        return []
    title = "Decisions that random directions flip"
    across, up = Axis("length of the direction (ℓ2, pixel units)"), Axis("", True, (0.0, 1.0))
    caption = "For the classifier alone (bare) and behind the purifier."
    return [Figure(title, Markup(curves("caps", title, lines, across, up)), caption)]


def fates(info: AttackInfo, eps: float) -> list[Figure]:
    """Each image's compression rate against where it falls; eps: the radius that was attacked."""
    names = list(dict.fromkeys(name for v in info.images for name in v.rates))[:_MOST_SCATTERS]
    return [f for n, name in enumerate(names) if (f := _fate(n, name, info, eps)) is not None]


def _fate(n: int, name: str, info: AttackInfo, eps: float) -> Figure | None:
    kept = [v for v in info.images if drawable(v.rates.get(name)) and _placed(v)]
    if not kept:
        return None
    drawn = kept[:: -(-len(kept) // MOST_POINTS)]
    points = [(v.rates[name], v.fooling_radius) for v in drawn]
    stand = sum(v.fooling_radius is None for v in kept)
    whose = "along the attack" if name == "attack" else f"of probe {name}"
    title = f"Rate {whose} against fate"
    parts = [f"{stand} of {len(kept)} images stand at every radius. Dashed: {radius(eps)}."]
    if len(drawn) < len(kept):
        parts.append(f"{len(drawn)} of them are drawn, every so many.")
    if name in info.correlations:
        parts.append(_correlation(info.correlations[name]))
    x = Axis("compression rate of the image (ℓ2)")
    svg = scatter(f"fate-{n}", (title, " ".join(parts)), points, x, Axis("", reference=eps))
    return Figure(title, Markup(svg), " ".join(parts))


def _placed(v: ImageVerdict) -> bool:
    return v.fooling_radius is None or drawable(v.fooling_radius)


def _correlation(c: Correlation) -> str:
    if c.value is None:
        return f"{c.kind.title()} correlation: undefined ({c.n} images)."
    ends = "" if c.lower is None or c.upper is None else f" [{c.lower:.2f}, {c.upper:.2f}]"
    p = "" if c.p is None else f", p = {c.p:.2g}"
    told = f"{c.kind.title()} {c.value:.2f}{ends}{p}, {c.n} images."
    return told.replace("-", "−")


def disagreements(info: AttackInfo) -> Iterator[str]:
    """Images that compression and attack see differently."""
    for words, ids in (
        ("compresses most, yet they fall", info.fooled_despite_compression),
        ("compresses least, yet they stand", info.robust_without_compression),
    ):
        if ids:
            named = ", ".join(map(str, ids[:12]))
            more = f" and {len(ids) - 12} more" if len(ids) > 12 else ""
            yield f"Images around which the purifier {words}: {named}{more}."


def example_images(attacks: AttackSamples | None, budget: int) -> Gallery | None:
    """The worst and the best images as tiles, where there are any."""
    if attacks is None or attacks.example_images is None or not len(attacks.example_images.ids):
        return None
    return gallery(attacks.example_images, budget)


def fate_of(info: AttackInfo, eps: float) -> dict[int, tuple[int, str]]:
    """Image id -> its label, and what becomes of it at the radius attacked and beyond."""
    return {v.image: (v.label, _fate_text(v, eps)) for v in info.images}


def _fate_text(v: ImageVerdict, eps: float) -> str:
    if v.fooling_radius is None:
        return "stands at every radius"
    stands = f"stands at {radius(eps)}, " if v.fooling_radius > eps else ""
    return f"{stands}falls at {v.fooling_radius:.3g}"
