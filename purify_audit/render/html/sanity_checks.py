"""The page's section on the soundness of the attack: which checks ran, passed or failed."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from purify_audit.render.summary import Table
from purify_audit.report.schema import Report
from purify_audit.report.wording import radius, value_text
from purify_audit.statistics.attack_rows import AttackSamples, Scored

State = Literal["passed", "failed", "not run", "not enforced", "unknown"]

_CHECKS = {
    "PA301": "the gradient is that of the whole defence",
    "PA302": "the gradient is not zero, vanishing, constant or shattered",
    "PA303": "the defence, run again, gives the attack's margins",
    "PA304": "the loss increases",
    "PA305": "an almost unbounded attack fools almost all images",
    "PA306": "no comparison attack is stronger",
    "PA307": "an independent continuation breaks few of the images that stand",
    "PA308": "attacked images are in the ball and in [0, 1]",
    "PA310": "the attack follows the exact gradient",
    "PA311": "the attack was compared with others",
}
_OF_GRADIENTS = ("PA301", "PA302")
_OTHERS = ("unbounded", "other-ids", "continuation", "bpda", "square")  # in order
_GRADIENT_NUMBERS = {
    "unrolled_error": "exact gradient against unrolled autograd, relative error",
    "difference_error": "exact gradient against central differences, relative error",
    "float32_error": "gradient of the attack against float64, relative error",
    "gradient_zero": "share of images whose gradient is zero",
    "gradient_not_finite": "share of images whose gradient is not finite",
    "gradient_vanishing": "share of images whose gradient vanishes",
    "cosine_nearby": "cosine with the gradient a hundredth of a perturbation away",
    "cosine_draws": "cosine between the gradients of two draws",
    "cosine_bpda": "cosine of BPDA with the exact gradient",
    "cosine_surrogate": "cosine of a shorter chain with the exact gradient",
    "cosine_none": "cosine of finite differences with the exact gradient",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One check of the attack.

    Attributes:
        code: of the finding if it fails.
        requirement: what must hold.
        state: its result.
        text: the finding's sentence, or why it did not run.
    """

    code: str
    requirement: str
    state: State
    text: str


def checks(report: Report, attacks: AttackSamples | None) -> list[Check]:
    """Every check of the attack; whether it ran follows from the report and its rows."""
    if report.attack is None:
        return []
    reached = _reached(attacks)
    failed: dict[str, list[str]] = {}
    told: dict[str, list[str]] = {}
    for f in report.findings:
        (told if f.severity == "info" else failed).setdefault(f.code, []).append(f.sentence)
    return [
        Check(code, text, "failed", " ".join(failed[code]))
        if code in failed
        else Check(code, text, *_not_failed(code, report, "PA311" in failed, reached, told))
        for code, text in _CHECKS.items()
    ]


def _reached(attacks: AttackSamples | None) -> bool:
    """Whether comparison attacks began, which run after the main attack's own checks."""
    return attacks is not None and any(attacks.find(name) for name in _OTHERS)


def _not_failed(
    code: str, report: Report, ended_early: bool, reached: bool, told: dict[str, list[str]]
) -> tuple[State, str]:
    """The result of a check that is not among the warnings and errors."""
    plan = report.plan.attack
    assert plan is not None, "a report of an attack has its plan"
    assert report.attack is not None, "the caller checks"
    if code in _OF_GRADIENTS:
        if not report.attack.gradients:
            return "not run", "The defence has no gradient."
        if plan.optimiser == "square" or plan.gradient != "exact":
            return "not enforced", "Measured below; the attack does not use this gradient."
        return "passed", ""
    if code == "PA310":
        return "passed", ""
    if plan.predict_only:
        return "not run", "Robust accuracy was only predicted."
    if ended_early and not (reached and code != "PA306"):
        return "unknown", "The run ended before all checks were done."
    return "passed", " ".join(told.get(code, []))


def gradient_numbers(report: Report) -> Table | None:
    """Errors and cosines measured by the checks of the gradient."""
    measured = {} if report.attack is None else report.attack.gradients
    names = [*(n for n in _GRADIENT_NUMBERS if n in measured)]
    names += [n for n in measured if n not in _GRADIENT_NUMBERS]
    rows = tuple(
        (_GRADIENT_NUMBERS.get(n, n), f"{measured[n]:.3g}".replace("-", "−")) for n in names[:30]
    )
    return Table("Gradients", ("comparison", "value"), rows) if rows else None


def comparison_table(report: Report, attacks: AttackSamples | None) -> Table | None:
    """The comparison attacks and their robust accuracy, beside that of the main attack."""
    if attacks is None or attacks.find("aligned") is None:
        return None
    main = ("aligned", "fresh", "fresh-vote", "fresh-worst", "bare")
    others = [s for s in attacks.scored if s.name not in main]
    columns = ("attack", "radius", "images", "robust accuracy", "of all attacks", "result")
    rows = tuple(_comparison(report, attacks, other) for other in others)
    note = "All attacks: the lowest of each image over everything that was run on it."
    return Table("Comparison attacks", columns, rows, words=(5,), note=note)


def _comparison(report: Report, attacks: AttackSamples, other: Scored) -> tuple[str, ...]:
    at = None if other.name == "unbounded" else other.eps
    main, labels = attacks.find("aligned", at), attacks.labels[: len(other.aligned)]
    cells = (_robust(attack, labels) for attack in (other, main))
    verdict = _verdict(report, attacks, other)
    return (other.name, radius(other.eps), str(len(labels)), *cells, verdict)


def _robust(attack: Scored | None, labels: np.ndarray) -> str:
    """The share of (image, aligned draw) pairs that resist an attack, over the first images."""
    if attack is None or not len(labels):
        return "—"
    right = attack.aligned[: len(labels)] == labels[:, None]
    return value_text("aligned_robust_accuracy", float(right.mean()))


def _verdict(report: Report, attacks: AttackSamples, other: Scored) -> str:
    """The result of the checks for a comparison attack."""
    if other.name == "unbounded":
        failed = any(f.code == "PA305" for f in report.findings)
        return "fools too few (PA305)" if failed else "fools almost all"
    if other is not attacks.find(other.name):
        return "not tested at this radius"
    found = [f.evidence.get("attack") for f in report.findings if f.code == "PA306"]
    if other.name in found:
        return "stronger (PA306)"
    if other.name == "predicted" and not _reached(attacks):
        return "not tested: the run ended early"
    return "not stronger"


def fewer_images(attacks: AttackSamples | None) -> list[str]:
    """The number of images of comparison attacks, if not all."""
    if attacks is None:
        return []
    partly = [s for s in attacks.scored if len(s.aligned) < len(attacks.ids)]
    counts = ", ".join(f"{s.name} on {len(s.aligned)}" for s in partly)
    text = f"Comparison attacks ran on the first images only: {counts} of {len(attacks.ids)}."
    return [text] if partly else []
