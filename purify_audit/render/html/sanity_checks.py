"""The page's section on whether the attack is any good: its checks, which ran and which fired."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from purify_audit.render.html.parts import Table, value_text
from purify_audit.report.schema import Report
from purify_audit.report.wording import radius
from purify_audit.statistics.attack_rows import AttackSamples, Scored

State = Literal["passed", "fired", "not run", "not enforced", "unknown"]

_CHECKS = {
    "PA301": "the gradient is the derivative of the whole defence",
    "PA302": "the gradient is not zero, vanishing, constant or shattered",
    "PA303": "the defence, run again, gives the margins that the attack saw",
    "PA304": "the loss rises",
    "PA305": "a nearly unbounded attack breaks nearly everything",
    "PA306": "no attack with less knowledge fools more images",
    "PA307": "the second half of the steps and the last restart change little",
    "PA308": "attacked images lie in the ball and in [0, 1]",
    "PA310": "the attack follows the exact gradient",
    "PA311": "the attack was held against others",
}
_OF_GRADIENTS = ("PA301", "PA302")
_OTHERS = ("unbounded", "bpda", "square")  # in the order in which they are run
_GRADIENT_NUMBERS = {
    "unrolled_error": "exact gradient against unrolled autograd, relative error",
    "difference_error": "exact gradient against central differences, relative error",
    "float32_error": "gradient as it is followed against float64, relative error",
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
        code: the finding that it makes when it fails.
        what: what must hold.
        state: what became of it.
        told: the finding's sentence, or why it did not run.
    """

    code: str
    what: str
    state: State
    told: str


def checks(report: Report, attacks: AttackSamples | None) -> list[Check]:
    """Every check of the attack, as far as the report and its rows tell whether it ran."""
    if report.attack is None:
        return []
    reached = _reached(attacks)
    fired: dict[str, list[str]] = {}
    for f in report.findings:
        fired.setdefault(f.code, []).append(f.sentence)
    return [
        Check(code, what, "fired", " ".join(fired[code]))
        if code in fired
        else Check(code, what, *_unfired(code, report, "PA311" in fired, reached))
        for code, what in _CHECKS.items()
    ]


def _reached(attacks: AttackSamples | None) -> bool:
    """Whether other attacks were begun, which come after the main attack's own checks."""
    return attacks is not None and any(attacks.find(name) for name in _OTHERS)


def _unfired(code: str, report: Report, ended_early: bool, reached: bool) -> tuple[State, str]:
    """What became of a check that is not among the findings."""
    how = report.plan.attack
    assert how is not None, "a report of an attack has its plan"
    assert report.attack is not None, "the caller has looked"
    if code in _OF_GRADIENTS:
        if not report.attack.gradients:
            return "not run", "No gradient goes through both purifier and classifier."
        if how.optimiser == "square" or how.gradient != "exact":
            return "not enforced", "Measured below; the attack did not follow this gradient."
        return "passed", ""
    if code == "PA310":
        return "passed", ""
    if how.predict_only:
        return "not run", "Robust accuracy was only predicted_scores."
    if ended_early and not (reached and code != "PA306"):
        return "unknown", "The run ended before all checks were done."
    return "passed", ""


def gradient_numbers(report: Report) -> Table | None:
    """What the checks of the gradient measured."""
    measured = {} if report.attack is None else report.attack.gradients
    names = [*(n for n in _GRADIENT_NUMBERS if n in measured)]
    names += [n for n in measured if n not in _GRADIENT_NUMBERS]
    rows = tuple(
        (_GRADIENT_NUMBERS.get(n, n), f"{measured[n]:.3g}".replace("-", "−")) for n in names[:30]
    )
    return Table("Gradients", ("what was compared", "value"), rows) if rows else None


def held_against(report: Report, attacks: AttackSamples | None) -> Table | None:
    """The attacks that the main one was held against, and what they leave standing."""
    if attacks is None or attacks.find("aligned") is None:
        return None
    others = [s for s in attacks.scored if s.name not in ("aligned", "fresh", "bare")]
    columns = ("attack", "radius", "images", "it leaves", "the main one leaves", "verdict")
    rows = tuple(_against(report, attacks, other) for other in others)
    note = "On the same images, image by image (one-sided sign test), at the first radius."
    return Table("Held against other attacks", columns, rows, words=(5,), note=note)


def _against(report: Report, attacks: AttackSamples, other: Scored) -> tuple[str, ...]:
    at = None if other.name == "unbounded" else other.eps
    main, labels = attacks.find("aligned", at), attacks.labels[: len(other.aligned)]
    cells = (_standing(attack, labels) for attack in (other, main))
    verdict = _verdict(report, attacks, other)
    return (other.name, radius(other.eps), str(len(labels)), *cells, verdict)


def _standing(attack: Scored | None, labels: np.ndarray) -> str:
    """The share of images and aligned draws that an attack leaves right, of the first images."""
    if attack is None or not len(labels):
        return "—"
    right = attack.aligned[: len(labels)] == labels[:, None]
    return value_text("aligned_robust_accuracy", float(right.mean()))


def _verdict(report: Report, attacks: AttackSamples, other: Scored) -> str:
    """What the checks said of another attack."""
    if other.name == "unbounded":
        failed = any(f.code == "PA305" for f in report.findings)
        return "leaves too much (PA305)" if failed else "breaks nearly everything"
    if other is not attacks.find(other.name):
        return "not tested at this radius"
    found = [f.evidence.get("attack") for f in report.findings if f.code == "PA306"]
    if other.name in found:
        return "beats it (PA306)"
    if other.name == "predicted" and not _reached(attacks):
        return "not tested: the run ended early"
    return "does not beat it"


def fewer_images(attacks: AttackSamples | None) -> list[str]:
    """On how few images the attack was held against others, where that is not all of them."""
    if attacks is None:
        return []
    partly = [s for s in attacks.scored if len(s.aligned) < len(attacks.ids)]
    counts = ", ".join(f"{s.name} on {len(s.aligned)}" for s in partly)
    told = f"The attack was held against others on the first images only: {counts}."
    return [f"{told[:-1]} of {len(attacks.ids)}."] if partly else []
