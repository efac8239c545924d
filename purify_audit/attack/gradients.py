"""Gradients of a loss through a purification: the exact one, and what the literature used instead.

Exact: the states of the chain are kept, and one step at a time is run again and differentiated,
last to first (Kassis et al. 2024 and others do the same). Noise is addressed, so the second run is
the first one, bit for bit; memory is that of one step, whatever the length of the chain. Where
there is memory for the graphs of some last steps, these are not run again (`kept_graphs`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from purify_audit.core.noise import Noise
from purify_audit.models.protocols import Chained, Purifier, Step

Head = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Purified images [n, c, h, w] to (losses [n], logits [n, classes])."""

GradientKind = Literal["exact", "bpda", "surrogate", "none"]
"""How the gradient at x is had from g, the loss's gradient at y = P(x).

`exact`: Jᵀ g. `bpda`: g itself, as if P were the identity (Athalye, Carlini and Wagner 2018).
`surrogate`: Jᵀ g of a shorter chain (Lee and Kim 2023). `none`: J g by one finite difference, which
needs no gradient of P; for a denoiser J is symmetric (Tweedie), for a chain nearly so.
"""

_Graph = tuple[Tensor, Tensor]
"""What a step was given and what it made of it, with autograd's graph between them."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """A loss and its gradient at some images.

    Attributes:
        losses: [n].
        logits: [n, classes].
        at_input: gradient of the sum of losses at x, [n, c, h, w].
    """

    losses: Tensor
    logits: Tensor
    at_input: Tensor


def steps_of(purifier: Purifier, noise: Noise) -> Iterable[Step]:
    """A purification as steps; one step where the purifier tells none."""
    if isinstance(purifier, Chained):
        return purifier.chain(noise)
    return [lambda x: purifier(x, noise)]


def exact(steps: Iterable[Step], head: Head, x: Tensor, kept: int = 0) -> Gradient:
    """Jᵀ g by stored states and one vector–Jacobian product a step.

    Every step is differentiated by itself, whether its graph was kept or is made anew: the result
    is the same to the bit for any `kept`, if steps give the same bits with a graph and without.

    Args:
        steps: of the purification.
        head: the loss behind it.
        x: images [n, c, h, w].
        kept: how many of the last steps keep their graph from the first run; the others run twice.
    """
    walked, states, graphs = list(steps), [x], list[_Graph]()
    again = max(0, len(walked) - kept)
    with torch.no_grad():
        for step in walked[:again]:
            states.append(step(states[-1]))
    y = states.pop()
    for step in walked[again:]:
        graphs.append(_graph(step, y))
        y = graphs[-1][1].detach()
    losses, logits, g = _head_gradient(head, y)
    while graphs:
        g = _pull_back(graphs.pop(), g)
    while states:
        g = _pull_back(_graph(walked[len(states) - 1], states.pop()), g)
    return Gradient(losses, logits, g)


def bpda(steps: Iterable[Step], head: Head, x: Tensor) -> Gradient:
    """The gradient at P(x), taken for the gradient at x."""
    with torch.no_grad():
        for step in steps:
            x = step(x)
    return Gradient(*_head_gradient(head, x))


def secant(purify: Step, head: Head, x: Tensor, reach: float) -> Gradient:
    """J g from one more purification: (P(x + h g/‖g‖) − P(x)) ‖g‖ / h.

    Args:
        purify: the whole purification, under one draw for each row.
        head: the loss behind it.
        x: images [n, c, h, w].
        reach: h, in l2 and pixel units.
    """
    with torch.no_grad():
        y = purify(x)
    losses, logits, g = _head_gradient(head, y)
    top = g.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-38)
    scaled = g / top  # a length in float32 would underflow
    size = torch.linalg.vector_norm(scaled, dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    with torch.no_grad():
        moved = purify(x + reach * scaled / size)
    return Gradient(losses, logits, (moved - y) * (size / reach) * top)


def _head_gradient(head: Head, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, logits, and the gradient of the losses' sum at y."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        losses, logits = head(y)
        (g,) = torch.autograd.grad(losses.sum(), y)
    return losses.detach(), logits.detach(), g


def _graph(step: Step, x: Tensor) -> _Graph:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return leaf, step(leaf)


def _pull_back(graph: _Graph, g: Tensor) -> Tensor:
    """Jᵀ g of one step; zero where the step lets no gradient through, as autograd says."""
    x, y = graph
    if not y.requires_grad:
        return torch.zeros_like(x)
    (pulled,) = torch.autograd.grad(y, x, g, allow_unused=True)
    return torch.zeros_like(x) if pulled is None else pulled
