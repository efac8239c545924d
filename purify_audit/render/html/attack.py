"""The page's figures on the attack: radii, random directions, and results for each image."""

from markupsafe import Markup

from purify_audit.render.html.parts import Figure, several_radii
from purify_audit.render.html.pictures import Gallery, gallery
from purify_audit.render.html.plots import Axis, Curve, Row, curves, scatter
from purify_audit.render.html.rates import by_line
from purify_audit.render.html.svg import drawable
from purify_audit.report.schema import AttackInfo, Report
from purify_audit.report.wording import norm_text, radius
from purify_audit.statistics.attack_rows import AttackSamples
from purify_audit.statistics.estimates import Correlation, ImageVerdict

MOST_POINTS = 2000
"""Points of one scatter plot at most; of more images, every n-th is drawn."""

_MOST_SCATTERS = 6


def accuracy_curves(report: Report) -> list[Figure]:
    """Robust accuracy against radius, where several were attacked."""
    plan = report.plan.attack
    labels = {
        ("aligned_robust_accuracy", "aligned"): "aligned attack",
        ("mean_robust_accuracy", "fresh"): "fresh attack",
        ("bare_robust_accuracy", "bare"): "no purifier",
    }
    found = [e for e in report.estimates if (e.metric, str(e.probe)) in labels]
    if plan is None or not several_radii(found):
        return []
    lines = by_line(found, lambda e: labels[e.metric, str(e.probe)])
    title = "Robust accuracy against radius"
    x = Axis(f"radius ε ({norm_text(plan.norm)}, pixel units)")
    svg = curves("accuracy-radius", title, lines, x, Axis("", True, (0.0, 1.0)))
    return [Figure(title, Markup(svg), "Vertical lines are intervals.")]


def caps(info: AttackInfo) -> list[Figure]:
    """Decisions changed by random directions, by their length."""
    lines = []
    for name in ("purified", "bare"):
        points = []
        for point in info.caps:
            value, lower, upper = getattr(point, name)
            text = f"{value:.1%} at {point.radius:.3g}"
            points.append((point.radius, Row(name, text, value, lower, upper)))
        lines.append(Curve(name, tuple(points)))
    if not info.caps:
        return []
    title = "Decisions changed by random directions"
    x, y = Axis("length of the direction (ℓ2, pixel units)"), Axis("", True, (0.0, 1.0))
    caption = "Of the classifier alone (bare) and behind the purifier."
    return [Figure(title, Markup(curves("caps", title, lines, x, y)), caption)]


def fooling_radii(info: AttackInfo, eps: float) -> list[Figure]:
    """Each image's compression rate against its smallest fooling radius; `eps` was attacked."""
    names = list(dict.fromkeys(name for v in info.images for name in v.rates))[:_MOST_SCATTERS]
    figures = (_scatter(n, name, info, eps) for n, name in enumerate(names))
    return [figure for figure in figures if figure is not None]


def _scatter(n: int, name: str, info: AttackInfo, eps: float) -> Figure | None:
    kept = [v for v in info.images if drawable(v.rates.get(name)) and _placed(v)]
    if not kept:
        return None
    drawn = kept[:: -(-len(kept) // MOST_POINTS)]
    points = [(v.rates[name], v.fooling_radius) for v in drawn]
    resisting = sum(v.fooling_radius is None for v in kept)
    direction = "attack direction" if name == "attack" else f"{name} probe"
    title = f"Compression rate ({direction}) vs. smallest fooling radius"
    parts = [f"{resisting} of {len(kept)} images resist at every radius. Dashed: {radius(eps)}."]
    if len(drawn) < len(kept):
        parts.append(f"{len(drawn)} of them are drawn.")
    if name in info.correlations:
        parts.append(_correlation(info.correlations[name]))
    x = Axis("compression rate of the image (ℓ2)")
    svg = scatter(f"fooling-{n}", (title, " ".join(parts)), points, x, Axis("", reference=eps))
    return Figure(title, Markup(svg), " ".join(parts))


def _placed(v: ImageVerdict) -> bool:
    return v.fooling_radius is None or drawable(v.fooling_radius)


def _correlation(c: Correlation) -> str:
    if c.value is None:
        return f"{c.kind.title()} correlation: undefined ({c.n} images)."
    ends = "" if c.lower is None or c.upper is None else f" [{c.lower:.2f}, {c.upper:.2f}]"
    p = "" if c.p is None else f", p = {c.p:.2g}"
    return f"{c.kind.title()} {c.value:.2f}{ends}{p}, {c.n} images.".replace("-", "−")


def example_images(attacks: AttackSamples | None, budget: int) -> Gallery | None:
    """The worst and the best images as tiles, if there are any."""
    if attacks is None or attacks.example_images is None or not len(attacks.example_images.ids):
        return None
    return gallery(attacks.example_images, budget)


def outcomes(info: AttackInfo, eps: float) -> dict[int, tuple[int, str]]:
    """Image id -> its label, and whether it is fooled at the attacked radius and beyond."""
    return {v.image: (v.label, _outcome(v, eps)) for v in info.images}


def _outcome(v: ImageVerdict, eps: float) -> str:
    if v.fooling_radius is None:
        return "resists at every radius"
    resists = f"resists at {radius(eps)}, " if v.fooling_radius > eps else ""
    return f"{resists}fooled at {v.fooling_radius:.3g}"
