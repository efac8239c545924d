"""Sanity checks of an attack, without which its robust accuracy is not reliable.

After Carlini et al., "On evaluating adversarial robustness" (2019), and Tramèr et al., "On
adaptive attacks to adversarial example defenses" (NeurIPS 2020). The checks of its
gradient are in `gradient_checks`.
"""

import math
import sys

import numpy as np
from scipy.special import bdtrc, bdtri
from torch import Tensor

from purify_audit.attacks.ball import Ball
from purify_audit.attacks.objective import Objective
from purify_audit.attacks.pgd import AttackOutput
from purify_audit.core.findings import Finding, finding
from purify_audit.statistics.estimates import Convergence

_REPLAY_TOLERANCE = 1e-4  # of a margin
_UNBOUNDED_ACCURACY = 0.1
_UNCONVERGED = 0.03  # of the compared images
_LEFT_BEHIND = 0.1  # of the compared images
_SIGNIFICANCE = 0.05


def check_attack(objective: Objective, ball: Ball, attacked: AttackOutput) -> list[Finding]:
    """Check the main attack: reproducibility, increasing loss, the constraint."""
    again = objective.evaluate(attacked.x, 0).margins
    gap = float((again.double() - attacked.margins.double()).abs().nan_to_num(1e9).max())
    findings = []
    if gap > 0.0:
        findings.append(
            finding(
                "PA303",
                f"A margin computed again differs by up to {gap:.3g}.",
                {"largest_difference": gap},
                severity=None if gap > _REPLAY_TOLERANCE else "warning",
            )
        )
    first, last = attacked.losses[0], max(attacked.losses[1:], default=attacked.losses[0])
    if (
        not last > first and attacked.fooled[0] < 1.0
    ):  # else every image is fooled, and may have been dropped
        findings.append(
            finding(
                "PA304",
                f"The mean loss was {first:.4g} at the start and never above {last:.4g} later.",
                {"first": _plain(first), "highest_later": _plain(last)},
            )
        )
    return findings + _outside(ball, attacked.x)


def _outside(ball: Ball, x: Tensor) -> list[Finding]:
    """Rounding may add a unit in the last place of a pixel, and of the radius."""
    excess = float((ball.size(x) - ball.eps).max())
    beyond = max(float(-x.min()), float(x.max()) - 1.0, 0.0)
    if excess <= 1e-6 + 1e-6 * ball.eps and beyond == 0.0:
        return []
    return [
        finding(
            "PA308",
            f"An image exceeds the radius by {excess:.3g} or [0, 1] by {beyond:.3g}.",
            {"beyond_radius": excess, "beyond_range": beyond},
        )
    ]


def check_unbounded(radius: float, aligned: np.ndarray, labels: np.ndarray) -> list[Finding]:
    """Check that an attack with a radius large enough to fool every image does so."""
    robust = float((aligned == labels[:, None]).mean())
    if robust <= _UNBOUNDED_ACCURACY:
        return []
    return [
        finding(
            "PA305",
            f"With a radius of {radius:g} the attack leaves a robust accuracy of {robust:.1%}.",
            {"radius": radius, "aligned_robust_accuracy": robust},
        )
    ]


def check_stronger(
    name: str, other: np.ndarray, main: np.ndarray, labels: np.ndarray, *, same_draws: bool = True
) -> list[Finding]:
    """Whether another attack fools images that the main one does not.

    An error where it does so on significantly more images than the reverse, by a one-sided sign
    test on images that only one of the two fools (McNemar 1947); for information otherwise.

    Args:
        name: of the other attack.
        other: predicted labels under its images [n, K].
        main: predicted labels under the main attack's images [n, K].
        labels: true labels [n].
        same_draws: whether both were run under the same draws; if not, single images tell nothing.
    """
    correct = [(predicted == labels[:, None]).mean(1) for predicted in (other, main)]
    wins = int((correct[0] < correct[1]).sum())
    losses = int((correct[0] > correct[1]).sum())
    masked = wins > 0 and float(bdtrc(wins - 1, wins + losses, 0.5)) <= _SIGNIFICANCE
    if wins == 0 or not (masked or same_draws):
        return []
    return [
        finding(
            "PA306",
            f"The {name} attack is stronger than the main attack on {wins} images and weaker on"
            f" {losses}: robust accuracy {correct[0].mean():.1%}, not {correct[1].mean():.1%}.",
            {"attack": name, "wins": wins, "losses": losses},
            severity=None if masked else "info",
        )
    ]


def convergence(other: np.ndarray, main: np.ndarray, labels: np.ndarray) -> Convergence:
    """What an independent continuation still breaks.

    Args:
        other: predicted labels under the continuation's images [n, K].
        main: predicted labels under the main attack's images [n, K].
        labels: true labels [n].
    """
    correct = [(predicted == labels[:, None]).mean(1) for predicted in (other, main)]
    standing = correct[1] > 0
    left, broken = int(standing.sum()), int((standing & (correct[0] < correct[1])).sum())
    return Convergence(
        images=len(labels),
        standing=left,
        broken=broken,
        upper=float(bdtri(broken, left, _SIGNIFICANCE)) if broken < left else 1.0,
        robust_accuracy=float(correct[1].mean()),
        continued=float(correct[0].mean()),
    )


def check_convergence(reached: Convergence) -> list[Finding]:
    """A warning where the continuation broke more than a few of the images; else information.

    Also a warning where it is much weaker than the main attack with its starts from other attacks:
    then the gradient did not find those images, and would not find others.
    """
    found = []
    if reached.continued - reached.robust_accuracy > _LEFT_BEHIND:
        found.append(
            finding(
                "PA307",
                f"An independent attack with runs twice as long leaves {reached.continued:.1%},"
                f" the main attack {reached.robust_accuracy:.1%}: the images that it found are"
                " not where the gradient leads, which may be masked.",
                {"continued": reached.continued, "robust_accuracy": reached.robust_accuracy},
            )
        )
    if not reached.broken:
        return found
    few = reached.broken <= max(1.0, _UNCONVERGED * reached.images)
    return [
        *found,
        finding(
            "PA307",
            f"An independent attack with runs twice as long broke {reached.broken} of the"
            f" {reached.standing} images that the main attack had left (at most"
            f" {reached.upper:.0%} of such images, with 95% confidence).",
            {"standing": reached.standing, "broken": reached.broken, "upper": reached.upper},
            severity="info" if few else None,
        ),
    ]


def _plain(value: float) -> float:
    """A finite number, for JSON."""
    return value if math.isfinite(value) else math.copysign(sys.float_info.max, value)
