"""Training loops that the shipped models share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify_audit.models.networks import build_network
from purify_audit.models.purifiers.schedule import noise_schedule
from purify_audit.spec.card import DiffusionCard, FeedforwardCard

Images = Callable[[int], Tensor]
"""Pixels in [0, 1] of one batch, from the number of the training step."""


@dataclass(frozen=True)
class Recipe:
    """How long, how fast, and in which arithmetic."""

    iterations: int
    rate: float
    clip: float = float("inf")  # largest norm of a gradient
    decay: float = 0.999  # of the average of weights
    bfloat16: bool = False  # convolutions in bfloat16, images in channels-last order


def train_denoiser(
    card: DiffusionCard, recipe: Recipe, images: Images, times: Callable[[int], Tensor]
) -> dict[str, Tensor]:
    """The averaged weights of a network that predicts eps (Ho et al. 2020, algorithm 1)."""
    low, high = card.data_range
    abar = torch.tensor(noise_schedule(card.schedule).abar, dtype=torch.float32)
    network, average = build_network(card), build_network(card)
    average.load_state_dict(network.state_dict())

    def loss(step: int) -> Tensor:
        clean = images(step) * (high - low) + low
        t, eps = times(len(clean)), torch.randn_like(clean)
        left = abar[t][:, None, None, None]
        noisy = left.sqrt() * clean + (1 - left).sqrt() * eps
        return F.mse_loss(_forward(network, recipe, noisy, t.float()), eps)

    def keep(step: int) -> None:
        decay = min(recipe.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)

    _optimise(network, recipe, loss, keep)
    return average.state_dict()


def train_autoencoder_on(
    card: FeedforwardCard, recipe: Recipe, images: Images, highest_sigma: float
) -> dict[str, Tensor]:
    """The weights of a network that restores images with noise of a random size added."""
    network = build_network(card)

    def loss(step: int) -> Tensor:
        clean = images(step)
        sigma = highest_sigma * torch.rand(len(clean), 1, 1, 1)
        noisy = clean + sigma * torch.randn_like(clean)
        return F.mse_loss(_forward(network, recipe, noisy), clean)

    _optimise(network, recipe, loss, lambda step: None)
    return network.state_dict()


def _forward(network: nn.Module, recipe: Recipe, x: Tensor, *times: Tensor) -> Tensor:
    if recipe.bfloat16:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        out: Tensor = network(x, *times)
    return out.float()


def _optimise(
    network: nn.Module,
    recipe: Recipe,
    loss_at: Callable[[int], Tensor],
    after: Callable[[int], None],
) -> None:
    """AdamW, its rate falling along a cosine."""
    if recipe.bfloat16:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=1e-2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.iterations)
    for step in range(recipe.iterations):
        loss = loss_at(step)
        optimiser.zero_grad()
        loss.backward()
        if recipe.clip < float("inf"):
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimiser.step()
        cosine.step()
        after(step)
        if step % 200 == 199:
            print(f"step {step + 1}: loss {loss.item():.5f}", flush=True)
