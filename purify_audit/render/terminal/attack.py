"""The attack's part of a report as a person reads it in a terminal."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from purify_audit.render.terminal.style import TABLE
from purify_audit.report.schema import AttackInfo, Report
from purify_audit.report.wording import accuracy, radius
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.statistics.estimates import Estimate

_PROTOCOLS = {
    "aligned": "aligned: the attack's own draws",
    "heldout": "one draw never seen",
    "mean": "mean of {} fresh draws",
    "worst_of_k": "worst of {}",
    "vote": "vote of {}",
}


def attack_parts(report: Report) -> Iterator[RenderableType]:
    """Tables and sentences about the attack."""
    info, how = report.attack, report.plan.attack
    assert info is not None, "the caller has looked"
    assert how is not None, "a report of an attack has its plan"
    yield Text()
    for eps in () if how.predict_only else how.eps:
        yield _matrix(report, how, eps)
        yield from (Text.from_markup(line) for line in _headline(report, how, eps))
    yield from (Text.from_markup(line) for line in _predictions(report))
    yield Text()
    if info.fuzziness:
        yield _fuzziness(info)
    if info.caps:
        yield _caps(info)
    if info.correlations:
        yield _ranks(info)
    yield from (Text.from_markup(line) for line in _reading(info))


def _matrix(report: Report, how: AttackPlan, eps: float) -> Table:
    attacks = [
        name for name in ("aligned", "fresh") if _find(report, "aligned_robust_accuracy", name, eps)
    ]
    table = Table(
        title=f"Robust accuracy, {how.norm} {radius(eps)}, {_told(how)}, {report.plan.level:.0%}"
        " intervals",
        **TABLE,
    )
    table.add_column("scored by")
    for name in attacks:
        table.add_column(f"{name} attack", justify="right")
    table.add_column("clean control", justify="right")
    table.add_column("excess (aligned)", justify="right")
    for protocol, words in _PROTOCOLS.items():
        metric = f"{protocol}_robust_accuracy"
        found = [_find(report, metric, name, eps) for name in attacks]
        control = _find(report, f"{metric}_control", "aligned", eps)
        excess = _find(report, f"{metric}_excess", "aligned", eps)
        cells = [accuracy(e) for e in (*found, control)]
        points = "—" if excess is None else f"{100 * excess.value:.1f} points"
        table.add_row(words.format(how.held_out), *cells, points)
    bare = _find(report, "bare_robust_accuracy", "bare", eps)
    control = _find(report, "bare_robust_accuracy_control", "bare", eps)
    filler = [""] * (len(attacks) - 1)
    table.add_row("classifier without purifier", accuracy(bare), *filler, accuracy(control), "")
    return table


def _told(how: AttackPlan) -> str:
    steps = f"{how.optimiser.upper()}-{how.steps}"
    draws = "1 draw" if how.draws == 1 else f"EOT over {how.draws} draws"
    gradient = "" if how.optimiser == "square" else f", {how.gradient} gradient"
    return f"{steps}, {draws}{gradient}"


def _headline(report: Report, how: AttackPlan, eps: float) -> Iterator[str]:
    aligned = _find(report, "aligned_robust_accuracy", "aligned", eps)
    usual = _find(report, "mean_robust_accuracy", "fresh", eps)
    gap = _find(report, "randomness_inflation", "fresh", eps)
    if aligned is None or usual is None or gap is None:
        return
    sure = "" if gap.lower is None or gap.lower > 0 or gap.value <= 0 else ", not surely above 0"
    yield (
        f"[bold]Aligned {aligned.value:.1%}, usual protocol {usual.value:.1%}: inflation"
        f" {100 * gap.value:.1f} points[/]"
        f" [dim]({100 * (gap.lower or 0):.1f} to {100 * (gap.upper or 0):.1f}{sure})[/]."
    )


def _predictions(report: Report) -> Iterator[str]:
    for e in report.estimates:
        if e.metric == "predicted_robust_accuracy":
            yield (
                f"Predicted without the attack, {e.norm} {radius(e.eps)}: {accuracy(e)} aligned"
                " robust accuracy."
            )


def _fuzziness(info: AttackInfo) -> Table:
    table = Table(title="Images by how many of the held-out draws they fool", **TABLE)
    for column in ("images", "all draws", "only some", "none", "share of draws, 5% to 95%"):
        table.add_column(column, justify="left" if column == "images" else "right")
    for f in info.fuzziness:
        whose = "clean" if f.eps is None else f"{f.attack} attack, {radius(f.eps)}"
        spread = f"{f.quantiles[0]:.0%} to {f.quantiles[4]:.0%}"
        table.add_row(whose, *map(str, (f.fool_all, f.fool_some, f.fool_none)), spread)
    return table


def _caps(info: AttackInfo) -> Table:
    table = Table(title="Decisions that random directions flip", **TABLE)
    for column in ("length (l2)", "bare classifier", "purified"):
        table.add_column(column, justify="right")
    for point in info.caps:
        shares = [f"{v[0]:.1%}" for v in (point.bare, point.purified)]
        table.add_row(f"{point.radius:.2g}", *shares)
    return table


def _ranks(info: AttackInfo) -> Table:
    table = Table(title="Rank correlation with the radius at which an image falls", **TABLE)
    for column in ("compression rate", "Spearman", "images"):
        table.add_column(column, justify="left" if column[0] == "c" else "right")
    for name, c in info.correlations.items():
        ends = (
            "" if c.lower is None or c.upper is None else f" [dim]{c.lower:.2f} to {c.upper:.2f}[/]"
        )
        value = "undefined" if c.value is None else f"{c.value:.2f}{ends}"
        table.add_row("along the attack" if name == "attack" else name, value, str(c.n))
    return table


def _reading(info: AttackInfo) -> Iterator[str]:
    """Sentences that say what the numbers mean, and no more than they do."""
    names = {
        "cosine_draws": "two draws",
        "cosine_bpda": "BPDA and exact",
        "cosine_surrogate": "a shorter chain and exact",
        "cosine_none": "finite differences and exact",
    }
    told = [f"{words} {info.gradients[n]:.2f}" for n, words in names.items() if n in info.gradients]
    if told:
        yield f"Cosine between gradients: {', '.join(told)}."
    for words, ids in (
        ("compresses most, yet they fall", info.fooled_despite_compression),
        ("compresses least, yet they stand", info.robust_without_compression),
    ):
        if ids:
            shown = ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if ids[8:] else "")
            yield f"Images around which the purifier {words}: {shown}."


def _find(report: Report, metric: str, name: str, eps: float) -> Estimate | None:
    for e in report.estimates:
        if (e.metric, e.probe, e.eps) == (metric, name, eps):
            return e
    return None
