"""Gradients of a loss through a purification: the exact one, and published approximations.

Exact: gradient checkpointing at every step of the chain. Its states are stored, and one step at a
time is recomputed and differentiated, last to first (Kassis et al. 2024 and others). Noise is
addressed, so the recomputation is equal bit for bit; memory is that of one step, whatever the
length of the chain. The last steps are not recomputed if their activations fit into memory
(`activation_memory`).
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
"""How ∂L/∂x is computed from g = ∂L/∂y at y = P(x).

`exact`: Jᵀ g. `bpda`: g itself, as if P were the identity (Athalye, Carlini and Wagner 2018).
`surrogate`: Jᵀ g of a shorter chain (Lee and Kim 2023). `none`: J g by one finite difference, which
needs no gradient of P; for a denoiser J is symmetric (Tweedie), for a chain nearly so.
"""

_Graph = tuple[Tensor, Tensor]
"""Input and output of a step, connected by autograd's graph."""


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
    """A purification as a chain of steps; a single step if the purifier is not `Chained`."""
    if isinstance(purifier, Chained):
        return purifier.chain(noise)
    return [lambda x: purifier(x, noise)]


def exact(steps: Iterable[Step], head: Head, x: Tensor, kept: int = 0) -> Gradient:
    """Jᵀ g by stored states and one vector–Jacobian product a step.

    Every step is differentiated separately, whether its graph is stored or recomputed: the result
    has the same bits for any `kept`, if steps have the same output with and without a graph.

    Args:
        steps: of the purification.
        head: the loss of its output.
        x: images [n, c, h, w].
        kept: how many of the last steps keep their graph; the others run twice.
    """
    chain, states, graphs = list(steps), [x], list[_Graph]()
    recomputed = max(0, len(chain) - kept)
    with torch.no_grad():
        for step in chain[:recomputed]:
            states.append(step(states[-1]))
    y = states.pop()
    for step in chain[recomputed:]:
        graphs.append(_graph(step, y))
        y = graphs[-1][1].detach()
    losses, logits, g = _head_gradient(head, y)
    while graphs:
        g = _vjp(graphs.pop(), g)
    while states:
        g = _vjp(_graph(chain[len(states) - 1], states.pop()), g)
    return Gradient(losses, logits, g)


def bpda(steps: Iterable[Step], head: Head, x: Tensor) -> Gradient:
    """The gradient at P(x), used as the gradient at x."""
    with torch.no_grad():
        for step in steps:
            x = step(x)
    return Gradient(*_head_gradient(head, x))


def secant(purify: Step, head: Head, x: Tensor, reach: float) -> Gradient:
    """J g from one more purification: (P(x + h g/‖g‖) − P(x)) ‖g‖ / h.

    Args:
        purify: the whole purification, under one draw for each row.
        head: the loss of its output.
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


def _vjp(graph: _Graph, g: Tensor) -> Tensor:
    """Jᵀ g of one step; zero where autograd finds no path from output to input."""
    x, y = graph
    if not y.requires_grad:
        return torch.zeros_like(x)
    (product,) = torch.autograd.grad(y, x, g, allow_unused=True)
    return torch.zeros_like(x) if product is None else product
