"""What an audit did not test, as sentences."""

from collections.abc import Iterator

from purify_audit.render.wording import visible
from purify_audit.report.schema import Report
from purify_audit.report.wording import attack_text, count, norm_text
from purify_audit.spec.notation import radius_text

LAST = "No measurement proves robustness: a stronger attack may exist."


def untested(report: Report) -> tuple[str, ...]:
    """What the audit did not test, most important first, and `LAST` at the end."""
    return (*_unfinished(report), *_attack(report), *_compression(report), *_doubts(report), LAST)


def _unfinished(report: Report) -> Iterator[str]:
    if report.status == "partial":
        most = max((e.n_images for e in report.estimates), default=0)
        yield (
            f"The audit ended early: its estimates use at most {most} of the"
            f" {count(report.plan.images, 'image')} planned."
        )


def _attack(report: Report) -> Iterator[str]:
    plan = report.plan.attack
    if report.classifier is None:
        yield "There was no classifier, so no accuracy was measured, clean or robust."
    if report.attack is None or plan is None:
        yield "Nothing was attacked, so robust accuracy was not measured."
        return
    if plan.predict_only:
        yield (
            "Robust accuracy was predicted by a short transfer attack, not"
            " measured by an attack on the whole purifier."
        )
        return
    radii = _radii(report, "aligned_robust_accuracy")
    if not radii:
        yield "No attack was completed, so robust accuracy was not measured."
        return
    yield (
        f"Only {attack_text(plan)} in {norm_text(plan.norm)} at {radii} was run; other norms and"
        " radii were not attacked."
    )


def _compression(report: Report) -> Iterator[str]:
    rates = [e for e in report.estimates if e.metric == "compression_rate"]
    if not rates:
        yield "Compression was not measured."
        return
    probes = ", ".join(dict.fromkeys(str(e.probe) for e in rates))
    radii = _radii(report, "compression_rate") or "their given size"
    yield (
        f"Compression was measured only for the probes {probes} in {norm_text(report.plan.norm)} at"
        f" {radii}; the worst-case direction of an image may be amplified more."
    )
    if report.classifier is not None:
        yield (
            "Accuracies are those of one classifier; they may differ for another behind the same"
            " purifier."
        )
    yield (
        f"Only {count(len(report.data.ids), 'image')} of {visible(report.data.source, 200)} were"
        " used; the intervals hold for images of the same distribution only."
    )
    if getattr(report.checkpoint.card, "randomised", False):
        draws = count(report.plan.draws, "draw")
        yield f"The purifier is random, and rates are estimated from {draws} of each image."


_DOUBTS = {
    "PA307": "The attack had not converged (PA307): more steps or restarts may lower the robust"
    " accuracy further.",
    "PA310": "The attack did not follow the exact gradient (PA310), so the robust accuracy is an"
    " upper bound.",
    "PA311": "The attack was not compared with others (PA311), so its strength is unchecked.",
}


def _doubts(report: Report) -> Iterator[str]:
    codes = {f.code for f in report.findings}
    yield from (sentence for code, sentence in _DOUBTS.items() if code in codes)


def _radii(report: Report, metric: str) -> str:
    """The radii of a metric's estimates; empty without estimates."""
    eps = sorted({e.eps for e in report.estimates if e.metric == metric and e.eps is not None})
    if not eps:
        return ""
    return f"{'radius' if len(eps) == 1 else 'radii'} {', '.join(map(radius_text, eps))}"
