"""What an audit did not test, in sentences: what its numbers say nothing about."""

from collections.abc import Iterator

from purify_audit.render.wording import visible
from purify_audit.report.schema import Report
from purify_audit.spec.notation import radius_text

LAST = "No measurement proves robustness: a stronger attack than those tried may exist."


def untested(report: Report) -> tuple[str, ...]:
    """What the audit did not test, the widest gap first, and `LAST` at the end."""
    return (*_unfinished(report), *_attacked(report), *_measured(report), *_doubts(report), LAST)


def _unfinished(report: Report) -> Iterator[str]:
    if report.status == "partial":
        most = max((e.n_images for e in report.estimates), default=0)
        yield (
            f"The audit ended early: its estimates rest on at most {most} of the"
            f" {_count(report.plan.images, 'image')} planned."
        )


def _attacked(report: Report) -> Iterator[str]:
    how = report.plan.attack
    if report.classifier is None:
        yield "There was no classifier, so no accuracy was measured, clean or robust."
    if report.attack is None or how is None:
        yield "Nothing was attacked, so robust accuracy was not measured."
        return
    if how.predict_only:
        yield (
            "Robust accuracy was predicted_scores by a short attack through one step of the purifier, and"
            " not measured by an attack on all of it."
        )
        return
    radii = _radii(report, "aligned_robust_accuracy")
    if not radii:
        yield "No attack was carried through, so robust accuracy was not measured."
        return
    yield (
        f"One attack was tried ({how.optimiser.upper()}, {how.gradient} gradient,"
        f" {_count(how.steps, 'step')}, {_count(how.draws, 'draw')},"
        f" {_count(how.restarts, 'restart')}) in {how.norm} at {radii}; in other norms and at"
        " other radii nothing was attacked."
    )


def _measured(report: Report) -> Iterator[str]:
    rates = [e for e in report.estimates if e.metric == "compression_rate"]
    if not rates:
        yield "Compression was not measured."
        return
    probes = ", ".join(dict.fromkeys(str(e.probe) for e in rates))
    radii = _radii(report, "compression_rate") or "the size in which they were given"
    yield (
        f"Compression was measured only by the probes {probes} in a ball of {report.plan.norm} at"
        f" {radii}; the worst direction of an image may be stretched more."
    )
    if report.classifier is not None:
        yield (
            "Accuracies are those of one classifier; another behind the same purifier may fare"
            " otherwise."
        )
    yield (
        f"Only {_count(len(report.data.ids), 'image')} of {visible(report.data.source, 200)} were"
        " used; the intervals speak for images like them, not for others."
    )
    if getattr(report.checkpoint.card, "randomised", False):
        draws = _count(report.plan.draws, "draw")
        yield f"The purifier is random, and rates stand on {draws} of each image."


_DOUBTS = {
    "PA307": "The attack had not converged (PA307): more steps or restarts may lower the robust"
    " accuracy further.",
    "PA310": "The attack did not follow the exact gradient (PA310), so the robust accuracy is an"
    " upper bound.",
    "PA311": "The attack was not held against others (PA311), so its strength is unchecked.",
}


def _doubts(report: Report) -> Iterator[str]:
    found = {f.code for f in report.findings}
    yield from (sentence for code, sentence in _DOUBTS.items() if code in found)


def _radii(report: Report, metric: str) -> str:
    """The radii at which there are estimates of a metric; empty where there are none."""
    eps = sorted({e.eps for e in report.estimates if e.metric == metric and e.eps is not None})
    if not eps:
        return ""
    return f"{'radius' if len(eps) == 1 else 'radii'} {', '.join(map(radius_text, eps))}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
