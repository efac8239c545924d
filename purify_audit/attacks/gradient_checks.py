"""Checks that gradients are correct and useful, before an attack."""

import copy
import dataclasses
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from purify_audit.attacks.attack import shorter_chain
from purify_audit.attacks.gradients import Head, exact, steps_of
from purify_audit.attacks.losses import Loss, loss_rows
from purify_audit.attacks.objective import Objective
from purify_audit.core.errors import InputError
from purify_audit.core.findings import Finding, finding
from purify_audit.core.noise import Noise, Stream
from purify_audit.core.records import printable
from purify_audit.models.protocols import Classifier, Purifier, Step
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.purifiers.engine import in_float32

CHECKED_CELLS = 8
"""Images whose gradients are compared with references in float64."""

_SHORT_CHAIN = 3
_NUDGE = 1e-5  # of central differences, l2 and pixel units, in float64
_LIMITS = {  # rounding of the same operations; kinks of ReLU and clips; rounding of a long chain
    "unrolled_error": 1e-8,
    "difference_error": 1e-3,
    "float32_error": 1e-2,
}
_COARSE_NUDGE = 3e-3  # in float32; a smaller one would measure rounding
_LOWER_PRECISION = 0.1  # such an error leaves a cosine of 0.995 with the true gradient
_COARSE_LIMITS = _LIMITS | {"unrolled_error": 1e-3, "difference_error": 0.1}
_INSIDE, _BESIDE = 0.05, 0.04  # distance from the ends of the range, and from the image
_NEARBY = 0.04  # of `Objective.reach`: a hundredth of a perturbation
_SHATTERED = 0.3
_SURROGATE_STEPS = 5
_VANISHING = 1e-7  # of the loss's gradient at P(x)
_USELESS_SHARE = 0.25
_HUGE = 1e9  # replaces NaN and infinity

_Model = TypeVar("_Model")


def in_float64(model: _Model) -> _Model:
    """A copy of a purifier or classifier whose networks and tensors are float64.

    The model itself if it computes in the precision of its input (`any_precision`).
    """
    if getattr(model, "any_precision", False):
        return model
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


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """A float32 model with float64 input and output."""

    model: Any

    def __call__(self, x: Tensor, *noise: Noise) -> Tensor:
        y: Tensor = self.model(x.float(), *noise)
        return y.to(x.dtype)


def _precise(model: _Model, *call: Any) -> tuple[_Model, str | None]:
    """A model in float64; or, if a call of it fails, the float32 model and the error.

    User code and graphs may fix dtypes internally.
    """
    try:
        wide: Any = in_float64(model)
        with torch.no_grad():
            wide(*call)
    except (InputError, RuntimeError, TypeError) as error:
        return cast(_Model, _Rounded(model)), printable(str(error).partition("\n")[0])
    return wide, None


def check_gradient(objective: Objective, x: Tensor) -> tuple[list[Finding], dict[str, float]]:
    """Compare exact gradients with unrolled autograd, central differences and float32.

    Points near the images are used, where no two pixels are equal and none is at the end of its
    range: they avoid the kinks of clips and sorts, and a purifier cannot recognise an image.

    Args:
        objective: the attack's objective; its first images are checked, under its first draw.
        x: the clean images [n, c, h, w].

    Returns:
        Findings (PA301), and relative errors over images: `unrolled_error` of a short chain
        (maximum), `difference_error` of the whole chain over the gradient's length (median), and
        `float32_error` of the attack's own gradient, in float32 or the precision of the purifier's
        engine, against float64 (median).
    """
    n = min(CHECKED_CELLS, len(x))
    labels, address = objective.labels[:n], (objective.ids[:n], (objective.draws(0)[0],) * n)
    noise = Noise(objective.defence.seed, *address, Stream.PURIFY, x.device)
    u = replace(noise, stream=Stream.START).uniform(3, tuple(x.shape[1:]))
    near = (_INSIDE + (1.0 - 2.0 * _INSIDE) * x[:n] + _BESIDE * (2.0 * u - 1.0)).float()
    wide = near.double()
    purifier, refusal = _precise(objective.defence.purifier, wide, noise)
    classifier, other = _precise(objective.defence.classifier, wide)
    head, refusal = _head(classifier, labels, objective.loss), refusal or other
    nudge, limits = (_NUDGE, _LIMITS) if refusal is None else (_COARSE_NUDGE, _COARSE_LIMITS)
    if in_float32(objective.defence.purifier) is not None:
        limits = limits | {"float32_error": _LOWER_PRECISION}

    def loss(z: Tensor) -> Tensor:
        with torch.no_grad():
            return head(purifier(z, noise))[0]

    short = purifier
    if isinstance(purifier, DiffusionPurifier):
        short = shorter_chain(purifier, _SHORT_CHAIN)
    unrolled = _unrolled(lambda z: head(short(z, noise))[0].sum(), wide)
    stored = exact(steps_of(short, noise), head, wide).at_input
    gradient = exact(steps_of(purifier, noise), head, wide).at_input
    narrow_head = _head(objective.defence.classifier, labels, objective.loss)
    narrow = exact(steps_of(objective.defence.purifier, noise), narrow_head, near).at_input
    errors = {
        "unrolled_error": _worst(_size(stored - unrolled), _size(unrolled)),
        "difference_error": _median(_difference_errors(loss, gradient, wide, noise, nudge)),
        "float32_error": _median(_size(narrow - gradient) / _size(gradient).clamp(min=1e-30)),
    }
    if all(errors[name] <= limit for name, limit in limits.items()):
        text = f"The gradient could be checked in float32 only: {refusal}."
        coarse = finding("PA301", text, dict(errors), severity="warning")
        return [] if refusal is None else [coarse], errors
    text = (
        f"The gradient differs from unrolled autograd by {errors['unrolled_error']:.2g}, from"
        f" central differences by {errors['difference_error']:.2g}, and in the attack's precision"
        f" from float64 by {errors['float32_error']:.2g} (relative)."
    )
    return [finding("PA301", text, dict(errors))], errors


def _head(classifier: Classifier, labels: Tensor, loss: Loss) -> Head:
    def head(y: Tensor) -> tuple[Tensor, Tensor]:
        logits = classifier(y)
        return loss_rows(logits, labels, loss), logits

    return head


def _unrolled(total: Step, x: Tensor) -> Tensor:
    """The gradient of a sum by autograd through the whole graph; zero without a path to x."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        value = total(leaf)
        if not value.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _difference_errors(
    loss: Step, gradient: Tensor, x: Tensor, noise: Noise, nudge: float
) -> Tensor:
    """|central difference − g · u| over the larger of |g| and the difference, for two u [n]."""
    size = _size(gradient)
    along = gradient / size.clamp(min=1e-30)[:, None, None, None]
    apart = replace(noise, stream=Stream.START).normal(1, tuple(x.shape[1:])).to(x.dtype)
    apart = apart / _size(apart)[:, None, None, None]
    found = []
    for u in (torch.where(size[:, None, None, None] > 0, along, apart), apart):
        slope = (loss(x + nudge * u) - loss(x - nudge * u)) / (2 * nudge)
        promised = (gradient * u).flatten(1).sum(1)
        scale = torch.maximum(size, slope.abs()).clamp(min=1e-30)
        found.append(((slope - promised) / scale).abs())
    return torch.stack(found).amax(0)


def check_usefulness(objective: Objective, x: Tensor) -> tuple[list[Finding], dict[str, float]]:
    """Whether gradients at clean images are there at all, and how they agree with one another.

    Returns:
        Findings, and shares and cosines: `gradient_zero`, `gradient_not_finite`,
        `gradient_vanishing` (shares of images), `cosine_nearby` (between the gradients at x and
        a hundredth of the radius away), `cosine_draws` (between two draws'), `cosine_bpda`,
        `cosine_none` and `cosine_surrogate` (of an approximation and the exact gradient, same
        draw), means over images.
    """
    draw = objective.draws(0)[0]
    true = replace(objective, gradient="exact", surrogate=None, draws=lambda step: (draw,))

    def of(other: Objective, at: Tensor = x) -> Tensor:
        return other.row_gradients(at, 0)[:, 0]

    gradient, at_output = of(true), of(replace(true, gradient="bpda"))
    size, top = _size(gradient), _size(at_output)
    results = {
        "gradient_zero": _share(size == 0),
        "gradient_not_finite": _share(~size.isfinite()),
        "gradient_vanishing": _share((size > 0) & (size < _VANISHING * top)),
        "cosine_nearby": _cosine(gradient, of(true, _nearby(objective, x))),
        "cosine_bpda": _cosine(gradient, at_output),
        "cosine_none": _cosine(gradient, of(replace(true, gradient="none"))),
    }
    if objective.defence.purifier.randomised:
        other = replace(true, draws=lambda step: (draw + 1,))
        results["cosine_draws"] = _cosine(gradient, of(other))
    short = surrogate_of(objective.defence.purifier)
    if short is not None:
        near = replace(true, gradient="surrogate", surrogate=short)
        results["cosine_surrogate"] = _cosine(gradient, of(near))
    constant = len(set(objective.labels.tolist())) > 1 and bool((gradient == gradient[:1]).all())
    return _useless(results, constant), results


def usefulness_evaluations(purifier: Purifier) -> int:
    """Network evaluations of `check_usefulness` for each image."""
    each, short = purifier.evaluations, surrogate_of(purifier)
    surrogate = 0 if short is None else each + 3 * short.evaluations
    return (3 + 1 + 3 + 2 + 3 * purifier.randomised) * each + surrogate


def surrogate_of(purifier: Purifier) -> DiffusionPurifier | None:
    """The five-step chain used as a surrogate in the literature; none if it is not shorter."""
    if not isinstance(purifier, DiffusionPurifier):
        return None
    short = shorter_chain(purifier, _SURROGATE_STEPS)
    return short if short != purifier else None


def _nearby(objective: Objective, x: Tensor) -> Tensor:
    """Images a hundredth of a typical perturbation away, in random directions."""
    noise = Noise(
        objective.defence.seed, objective.ids, (0,) * len(objective.ids), Stream.START, x.device
    )
    away = noise.normal(4, tuple(x.shape[1:]))
    return x + _NEARBY * objective.reach * away / _size(away).float()[:, None, None, None]


def _useless(results: dict[str, float], constant: bool) -> list[Finding]:
    bad = sum(results[f"gradient_{fault}"] for fault in ("zero", "not_finite", "vanishing"))
    evidence: dict[str, Any] = {n: v for n, v in results.items() if n.startswith("gradient")}
    if constant:
        text = "The gradient is the same for every image."
    elif bad >= _USELESS_SHARE:
        text = f"The gradient is zero, not finite or vanishingly small for {bad:.0%} of images."
    elif results["cosine_nearby"] < _SHATTERED:
        cosine = results["cosine_nearby"]
        text = (
            f"At a hundredth of the radius the gradient's direction differs (cosine {cosine:.2f})."
        )
        evidence["cosine_nearby"] = cosine
    else:
        return []
    return [finding("PA302", text, evidence)]


def _size(t: Tensor) -> Tensor:
    """Length of each row [n], in float64."""
    length: Tensor = torch.linalg.vector_norm(t.double().flatten(1), dim=1)
    return length


def _median(values: Tensor) -> float:
    return float(values.nan_to_num(nan=_HUGE, posinf=_HUGE).median())


def _worst(error: Tensor, size: Tensor) -> float:
    """The largest error over the size, absolute where that is zero."""
    relative = error / torch.where(size > 0, size, torch.ones_like(size))
    return float(relative.nan_to_num(nan=_HUGE, posinf=_HUGE).max())


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine over rows where both are finite and not zero; 0 where there is none."""
    dots = (a.double() * b.double()).flatten(1).sum(1)
    cosines = dots / (_size(a) * _size(b))
    cosines = cosines[cosines.isfinite()]
    return float(cosines.mean()) if len(cosines) else 0.0
