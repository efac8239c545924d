"""Is the attack any good? Checks that must pass before its figure means anything.

After Carlini et al., "On evaluating adversarial robustness" (2019), and Tramèr et al., "On
adaptive attacks to adversarial example defenses" (NeurIPS 2020).
"""

import copy
import dataclasses
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from scipy.special import bdtrc
from torch import Tensor, nn

from purify_audit.attack.ball import Ball
from purify_audit.attack.gradients import GradientKind, exact, steps_of
from purify_audit.attack.losses import loss_rows
from purify_audit.attack.objective import Objective
from purify_audit.attack.pgd import Attacked
from purify_audit.attack.run import shorter_chain
from purify_audit.findings import Finding, finding
from purify_audit.noise import Noise, Stream
from purify_audit.purifiers.diffusion import DiffusionPurifier

CHECKED = 4
"""Images whose gradients are checked in float64."""

_SHORT_CHAIN = 3
_NUDGE = 1e-5  # of central differences, l2 and pixel units, in float64
_GRADIENT_TOLERANCE = 1e-3  # of central differences; kinks of ReLU and clips lie between
_UNROLLED_TOLERANCE = 1e-8  # the same operations in another order of freeing memory
_VANISHING = 1e-7  # of the loss's gradient at P(x)
_USELESS_SHARE = 0.25
_REPLAY_TOLERANCE = 1e-4  # of a margin
_UNBOUNDED_ACCURACY = 0.1
_UNCONVERGED = 0.03
_SIGNIFICANCE = 0.05

_Model = TypeVar("_Model")


def in_float64(model: _Model) -> _Model:
    """A copy of a purifier or classifier whose networks and tensors are float64."""
    fields = dataclasses.fields(model) if dataclasses.is_dataclass(model) else None
    names = [f.name for f in fields] if fields else list(getattr(model, "__dict__", {}))
    wide: dict[str, object] = {}
    for name in names:
        value = getattr(model, name)
        if isinstance(value, nn.Module):
            wide[name] = copy.deepcopy(value).double()
        elif isinstance(value, Tensor) and value.is_floating_point():
            wide[name] = value.double()
    if fields:
        return replace(model, **wide)  # type: ignore[type-var]
    other = copy.copy(model)
    for name, value in wide.items():
        setattr(other, name, value)
    return other


def check_gradient(aim: Objective, x: Tensor) -> tuple[list[Finding], dict[str, float]]:
    """Exact gradients against unrolled autograd and against central differences, in float64.

    Args:
        aim: the attack's objective; its first images are checked, under its first draw.
        x: the clean images.

    Returns:
        Findings, and the errors: `unrolled_error`, relative, of a short chain; and
        `difference_error`, over the length of the gradient, of the whole one, both medians.
    """
    n = min(CHECKED, len(x))
    x, labels = x[:n].double(), aim.labels[:n]
    noise = Noise(aim.defence.seed, aim.ids[:n], (aim.draws(0)[0],) * n, Stream.PURIFY, x.device)
    purifier = in_float64(aim.defence.purifier)
    classifier = in_float64(aim.defence.classifier)

    def head(y: Tensor) -> tuple[Tensor, Tensor]:
        logits = classifier(y)
        return loss_rows(logits, labels, aim.loss), logits

    def loss(z: Tensor) -> Tensor:
        with torch.no_grad():
            return head(purifier(z, noise))[0]

    short = purifier
    if isinstance(purifier, DiffusionPurifier):
        short = shorter_chain(purifier, _SHORT_CHAIN)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        total = head(short(leaf, noise))[0].sum()
        (unrolled,) = (
            torch.autograd.grad(total, leaf, allow_unused=True) if total.requires_grad else (None,)
        )
    unrolled = torch.zeros_like(x) if unrolled is None else unrolled
    stored = exact(steps_of(short, noise), head, x).at_input
    gradient = exact(steps_of(purifier, noise), head, x).at_input
    errors = {
        "unrolled_error": _median(_size(stored - unrolled) / _size(unrolled).clamp(min=1e-30)),
        "difference_error": _median(_difference_errors(loss, gradient, x, noise)),
    }
    limits = {"unrolled_error": _UNROLLED_TOLERANCE, "difference_error": _GRADIENT_TOLERANCE}
    if all(errors[name] <= limit for name, limit in limits.items()):
        return [], errors
    told = "unrolled autograd by {unrolled_error:.2g}, from central differences by"
    return [
        finding(
            "PA301",
            f"The gradient differs from {told} {{difference_error:.2g}} (relative).".format(
                **errors
            ),
            dict(errors),
        )
    ], errors


def _difference_errors(loss: object, gradient: Tensor, x: Tensor, noise: Noise) -> Tensor:
    """|central difference − g · u| over the larger of |g| and the difference, for two u [2n]."""
    assert callable(loss)
    size = _size(gradient)
    along = gradient / size.clamp(min=1e-30)[:, None, None, None]
    apart = replace(noise, stream=Stream.START).normal(1, tuple(x.shape[1:])).to(x.dtype)
    apart = apart / _size(apart)[:, None, None, None]
    found = []
    for u in (torch.where(size[:, None, None, None] > 0, along, apart), apart):
        slope = (loss(x + _NUDGE * u) - loss(x - _NUDGE * u)) / (2 * _NUDGE)
        promised = (gradient * u).flatten(1).sum(1)
        scale = torch.maximum(size, slope.abs()).clamp(min=1e-30)
        found.append(((slope - promised) / scale).abs().nan_to_num(1.0))
    return torch.stack(found).amax(0)


def check_usefulness(aim: Objective, x: Tensor) -> tuple[list[Finding], dict[str, float]]:
    """Whether gradients at clean images are there at all, and how they agree with one another.

    Returns:
        Findings, and shares and cosines: `gradient_zero`, `gradient_not_finite`,
        `gradient_vanishing` (shares of images), `cosine_draws` (between two draws' gradients),
        `cosine_bpda`, `cosine_none` and `cosine_surrogate` (of an approximation and the exact
        gradient, same draw), means over images.
    """
    true = replace(aim, gradient="exact")
    gradient = true.row_gradients(x, 0)[:, 0]
    at_output = replace(aim, gradient="bpda").row_gradients(x, 0)[:, 0]
    size, top = _size(gradient), _size(at_output)
    found = {
        "gradient_zero": float((size == 0).double().mean()),
        "gradient_not_finite": float((~size.isfinite()).double().mean()),
        "gradient_vanishing": float(((size > 0) & (size < _VANISHING * top)).double().mean()),
        "cosine_bpda": _cosine(gradient, at_output),
        "cosine_none": _cosine(gradient, replace(aim, gradient="none").row_gradients(x, 0)[:, 0]),
    }
    if aim.defence.purifier.randomised:
        other = replace(true, draws=lambda step: (aim.draws(0)[0] + 1,)).row_gradients(x, 0)
        found["cosine_draws"] = _cosine(gradient, other[:, 0])
    purifier = aim.defence.purifier
    if (
        isinstance(purifier, DiffusionPurifier)
        and (short := shorter_chain(purifier, 5)) != purifier
    ):
        near = replace(aim, gradient="surrogate", surrogate=short).row_gradients(x, 0)
        found["cosine_surrogate"] = _cosine(gradient, near[:, 0])
    constant = len(set(aim.labels.tolist())) > 1 and bool((gradient == gradient[:1]).all())
    bad = sum(found[f"gradient_{what}"] for what in ("zero", "not_finite", "vanishing"))
    if bad < _USELESS_SHARE and not constant:
        return [], found
    what = "the same for every image" if constant else "zero, not finite or vanishingly small"
    share = 1.0 if constant else bad
    evidence = {name: value for name, value in found.items() if name.startswith("gradient")}
    return [finding("PA302", f"The gradient is {what} for {share:.0%} of images.", {**evidence})], (
        found
    )


def check_attack(aim: Objective, ball: Ball, attacked: Attacked) -> list[Finding]:
    """What the main attack shows of itself: replay, a rising loss, convergence, the ball."""
    again = aim.look(attacked.x, 0).margins
    gap = float((again.double() - attacked.margins.double()).abs().nan_to_num(1e9).max())
    found = []
    if gap > 0.0:
        found.append(
            finding(
                "PA303",
                f"A margin computed again differs by up to {gap:.3g}.",
                {"largest_difference": gap},
                severity=None if gap > _REPLAY_TOLERANCE else "warning",
            )
        )
    first, last = attacked.losses[0], max(attacked.losses[1:], default=attacked.losses[0])
    if not last > first:
        found.append(
            finding(
                "PA304",
                f"The mean loss was {first:.4g} at the start and never above {last:.4g} later.",
                {"first": first, "highest_later": last},
            )
        )
    return found + _unconverged(attacked) + _outside(ball, attacked.x)


def _unconverged(attacked: Attacked) -> list[Finding]:
    half, end = attacked.fooled[len(attacked.fooled) // 2], attacked.fooled[-1]
    if (end - half) <= _UNCONVERGED or (end - half) * len(attacked.x) <= 1.5:
        return []
    return [
        finding(
            "PA307",
            f"Half-way the attack left {1 - half:.1%} of verdicts right, at the end {1 - end:.1%}.",
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
    """Whether an attack that may do nearly anything breaks nearly everything."""
    standing = float((aligned == labels[:, None]).mean())
    if standing <= _UNBOUNDED_ACCURACY:
        return []
    return [
        finding(
            "PA305",
            f"With a radius of {radius:g} the attack still leaves {standing:.1%} right.",
            {"radius": radius, "aligned_robust_accuracy": standing},
        )
    ]


def check_stronger(
    name: GradientKind | str, other: np.ndarray, main: np.ndarray, labels: np.ndarray
) -> list[Finding]:
    """Whether another attack fools images that the main one does not, more than the reverse.

    One-sided sign test on images that only one of the two fools (McNemar 1947).

    Args:
        name: of the other attack.
        other: predicted labels under its images [n, K].
        main: predicted labels under the main attack's images [n, K].
        labels: true labels [n].
    """
    standing = [(which == labels[:, None]).mean(1) for which in (other, main)]
    wins = int((standing[0] < standing[1]).sum())
    losses = int((standing[0] > standing[1]).sum())
    if wins == 0 or float(bdtrc(wins - 1, wins + losses, 0.5)) > _SIGNIFICANCE:
        return []
    return [
        finding(
            "PA306",
            f"The {name} attack breaks {wins} images more than the main attack does, and"
            f" {losses} less: {standing[0].mean():.1%} stand, not {standing[1].mean():.1%}.",
            {"attack": name, "wins": wins, "losses": losses},
        )
    ]


def _size(t: Tensor) -> Tensor:
    """Length of each row [n], in float64."""
    length: Tensor = torch.linalg.vector_norm(t.double().flatten(1), dim=1)
    return length


def _median(values: Tensor) -> float:
    return float(values.median())


def _cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine over rows where both are finite and not zero; 0 where there is none."""
    dots = (a.double() * b.double()).flatten(1).sum(1)
    cosines = dots / (_size(a) * _size(b))
    cosines = cosines[cosines.isfinite()]
    return float(cosines.mean()) if len(cosines) else 0.0
