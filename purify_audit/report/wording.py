"""How numbers, intervals, radii, purifiers and attacks are written in every output format."""

import math
from collections.abc import Iterable
from typing import Protocol

from purify_audit.spec.architectures import AutoencoderArgs, SequentialArgs
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.spec.card import (
    CodeCard,
    DiffusionCard,
    FeedforwardCard,
    GraphCard,
    PurifierCard,
    TransformCard,
)
from purify_audit.spec.notation import radius_text
from purify_audit.statistics.estimates import Estimate
from purify_audit.statistics.metrics import metric_info

NONE = "—"
"""Stands for a missing number."""


def describe(card: PurifierCard) -> str:
    """A purifier in a few words."""
    match card:
        case DiffusionCard(sampler=sampler, t_star=t_star):
            return f"diffusion, {sampler.kind} sampler, t* = {t_star}"
        case FeedforwardCard(sigma=sigma):
            auto = isinstance(card.network, AutoencoderArgs | SequentialArgs)
            restores = "denoising autoencoder" if auto else f"{card.network.arch} denoiser"
            return f"noise of {sigma:g}, then denoise" if sigma else restores
        case TransformCard(transform=transform):
            return f"input transformation {transform.kind}"
        case CodeCard(network=code):
            return f"code, {code.factory}"
        case GraphCard(network=graph):
            return f"exported graph ({graph.container})"


def number(value: float) -> str:
    """A number with up to four significant digits."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def plain(value: float) -> str:
    """A number with three decimals, or four significant digits if it is small or large."""
    size = abs(value)
    text = f"{value:.3f}" if size == 0 or 5e-3 <= size < 100 else f"{value:.4g}"
    return text.replace("-", "−")


def value_text(metric: str, value: float | None) -> str:
    """A value of a metric: shares in per cent, differences of shares in points, else a number."""
    if value is None or not math.isfinite(value):
        return NONE
    match metric_info(metric).kind:
        case "share":
            return f"{value:.1%}".replace("-", "−")
        case "difference":
            return f"{100 * value:+.1f}".replace("-", "−")
    return plain(value)


def interval_text(metric: str, lower: float | None, upper: float | None) -> str:
    """An interval as `[lower, upper]`, in the unit of `value_text`."""
    if lower is None or upper is None:
        return "no interval"
    ends = (value_text(metric, end).removesuffix("%").lstrip("+") for end in (lower, upper))
    return f"[{', '.join(ends)}]"


def estimate_text(e: Estimate | None) -> str:
    """A value with its interval: `62.5% [35.4, 84.8]`."""
    if e is None:
        return NONE
    return f"{value_text(e.metric, e.value)} {interval_text(e.metric, e.lower, e.upper)}"


def short_text(e: Estimate | None) -> str:
    """As `estimate_text` for narrow columns: `62.5% 35.4–84.8`, `0.412 ±0.013`."""
    if e is None or e.lower is None or e.upper is None:
        return estimate_text(e)
    if e.metric.endswith("_accuracy"):
        return f"{e.value:.1%} {100 * e.lower:.1f}–{100 * e.upper:.1f}"
    half = (e.upper - e.lower) / 2
    return f"{plain(e.value)} ±{half:.{3 if abs(e.value) < 100 else 1}f}"


def coefficient(value: float) -> str:
    """A correlation coefficient."""
    return f"{value:.2f}".replace("-", "−")


def spread_text(low: float, high: float) -> str:
    """The two ends of a range of coefficients."""
    return f"{coefficient(low)} to {coefficient(high)}"


def radius(eps: float | None) -> str:
    """A radius, in 255ths where that is shorter; `given` if a file of perturbed images set it."""
    return "given" if eps is None else radius_text(eps)


def norm_text(norm: str | None) -> str:
    """A norm in the notation of the literature."""
    return {"l1": "ℓ1", "l2": "ℓ2", "linf": "ℓ∞"}.get(str(norm), "" if norm is None else norm)


class _Located(Protocol):
    """An estimate, quantiles or a rule: of a metric in a norm, with a probe and a radius."""

    @property
    def metric(self) -> str | None: ...
    @property
    def norm(self) -> str | None: ...
    @property
    def probe(self) -> str | None: ...
    @property
    def eps(self) -> float | None: ...


def at(of: _Located) -> str:
    """Norm, probe and radius of an estimate or a rule, as far as it has them."""
    return ", ".join(p for p in (of.norm, of.probe, of.eps and radius_text(of.eps)) if p)


def named(of: _Located) -> str:
    """A metric with its norm, probe and radius, e.g. `compression_rate (l2, sign, 0.15)`."""
    return f"{of.metric} ({at(of)})" if at(of) else str(of.metric)


def count(n: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def listed(items: Iterable[object], most: int = 12) -> str:
    """Items separated by commas; those beyond `most` are counted."""
    texts = list(map(str, items))
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def attack_text(plan: AttackPlan) -> str:
    """An attack in a few words."""
    draws = "1 draw" if plan.draws == 1 else f"EOT over {plan.draws} draws"
    search = "no gradient" if plan.optimiser == "square" else f"{plan.gradient} gradient"
    name = f"{plan.optimiser.upper()}-{plan.steps}"
    if plan.optimiser == "portfolio":
        name = f"portfolio of {plan.steps} steps, {count(plan.targets, 'target')}"
    restarts = count(plan.restarts, "restart")
    return f"{name}, {draws}, {search}, {restarts}, {plan.loss} loss"


def fresh_text(plan: AttackPlan) -> str:
    """The budget of the attack under fresh draws in a few words."""
    return (
        f"EOT over {count(plan.fresh_draws, 'draw')}, {plan.fresh_steps} steps and"
        f" {-(-plan.fresh_steps // 2)} for each of {count(plan.targets, 'target')}"
    )
