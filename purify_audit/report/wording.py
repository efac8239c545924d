"""Numbers, radii and purifiers as people write them."""

from purify_audit.spec.architectures import AutoencoderArgs, SequentialArgs
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


def interval(estimate: Estimate) -> str:
    """A value with its interval: ± half its width for means, both ends for proportions."""
    if estimate.lower is None or estimate.upper is None:
        return f"{estimate.value:.3f} [dim](no interval)[/]"
    if estimate.metric.endswith("_accuracy"):
        return f"{estimate.value:.1%} [dim]({estimate.lower:.1%} to {estimate.upper:.1%})[/]"
    half = (estimate.upper - estimate.lower) / 2
    digits = 3 if abs(estimate.value) < 100 else 1
    return f"{estimate.value:.{digits}f} [dim]±{half:.{digits}f}[/]"


def accuracy(estimate: Estimate | None) -> str:
    """A share with both ends of its interval, short; a dash where there is none."""
    if estimate is None:
        return "[dim]—[/]"
    if estimate.lower is None or estimate.upper is None:
        return f"{estimate.value:.1%}"
    ends = f"{100 * estimate.lower:.0f}–{100 * estimate.upper:.0f}"
    return f"{estimate.value:.1%} [dim]{ends}[/]"


def radius(eps: float | None) -> str:
    """A radius as people write it; `given` where a file of perturbed images fixed it."""
    return "given" if eps is None else radius_text(eps)
