"""Sanity checks of an attack, without which its robust accuracy is not reliable.

After Carlini et al., "On evaluating adversarial robustness" (2019), and Tramèr et al., "On
adaptive attacks to adversarial example defenses" (NeurIPS 2020). The checks of its
gradient are in `gradient_checks`.
"""

import math
import sys

import numpy as np
from scipy.special import bdtrc
from torch import Tensor

from purify_audit.attacks.ball import Ball
from purify_audit.attacks.objective import Objective
from purify_audit.attacks.pgd import AttackOutput
from purify_audit.core.findings import Finding, finding

_REPLAY_TOLERANCE = 1e-4  # of a margin
_UNBOUNDED_ACCURACY = 0.1
_UNCONVERGED = 0.03
_SIGNIFICANCE = 0.05


def check_attack(objective: Objective, ball: Ball, attacked: AttackOutput) -> list[Finding]:
    """Check the main attack: reproducibility, increasing loss, convergence, the constraint."""
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
    return findings + _unconverged(attacked) + _outside(ball, attacked.x)


def _unconverged(attacked: AttackOutput) -> list[Finding]:
    half, end = attacked.fooled[len(attacked.fooled) // 2], attacked.fooled[-1]
    if (end - half) <= _UNCONVERGED or (end - half) * len(attacked.x) <= 1.5:
        return []
    return [
        finding(
            "PA307",
            f"Robust accuracy was {1 - half:.1%} half-way through the attack,"
            f" {1 - end:.1%} at the end.",
            {"robust_half_way": 1 - half, "robust_at_the_end": 1 - end},
        )
    ]


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
    name: str, other: np.ndarray, main: np.ndarray, labels: np.ndarray
) -> list[Finding]:
    """Whether another attack fools images that the main one does not, more than the reverse.

    One-sided sign test on images that only one of the two fools (McNemar 1947).

    Args:
        name: of the other attack.
        other: predicted labels under its images [n, K].
        main: predicted labels under the main attack's images [n, K].
        labels: true labels [n].
    """
    correct = [(predicted == labels[:, None]).mean(1) for predicted in (other, main)]
    wins = int((correct[0] < correct[1]).sum())
    losses = int((correct[0] > correct[1]).sum())
    if wins == 0 or float(bdtrc(wins - 1, wins + losses, 0.5)) > _SIGNIFICANCE:
        return []
    return [
        finding(
            "PA306",
            f"The {name} attack is stronger than the main attack on {wins} images and weaker on"
            f" {losses}: robust accuracy {correct[0].mean():.1%}, not {correct[1].mean():.1%}.",
            {"attack": name, "wins": wins, "losses": losses},
        )
    ]


def _plain(value: float) -> float:
    """A finite number, for JSON."""
    return value if math.isfinite(value) else math.copysign(sys.float_info.max, value)
