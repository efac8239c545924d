"""Baseline implementations without batching across images; their numbers equal the tool's.

Every function takes the tool's addressed noise, so that its numbers can be compared with the
tool's (`tests/audit/test_scale.py`), not only its time.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from purify_audit.attacks.losses import Loss, loss_rows
from purify_audit.core.noise import Noise, Stream
from purify_audit.images.image_set import ImageSet, choose, load_images
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_purifier
from purify_audit.models.protocols import Classifier, Purifier
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.spec.card import DiffusionCard

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


class Linear:
    """A linear classifier with addressed, untrained weights, of negligible cost."""

    classes = 10

    def __init__(self, purifier: Purifier) -> None:
        """Weights for the purifier's images."""
        self.image = purifier.image
        size = int(np.prod(self.image.shape))
        rows = tuple(range(self.classes))
        self.weight = Noise(7, rows, (0,) * self.classes).normal(0, (size,)) / size**0.5

    def __call__(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = x.flatten(1) @ self.weight.T
        return logits


def chain(name: str, t_star: int, steps: int, kind: str = "ddim") -> DiffusionPurifier:
    """A shipped diffusion model with a chain of the given number of steps."""
    checkpoint = read_checkpoint(ROOT / "models" / f"{name}.safetensors")
    assert isinstance(checkpoint.card, DiffusionCard)
    changes = {"t_star": t_star, "sampler": {"kind": kind, "steps": steps}}
    card = DiffusionCard.model_validate(checkpoint.card.model_dump() | changes)
    purifier = load_purifier(checkpoint, CPU, card)
    assert isinstance(purifier, DiffusionPurifier)
    return purifier


def pictures(purifier: Purifier, n: int) -> ImageSet:
    """The first n bundled digits; for other image shapes, addressed noise around mid-grey."""
    if purifier.image.shape == (1, 8, 8):
        return choose(load_images("digits"), n, 0)
    noise = Noise(3, tuple(range(n)), (0,) * n)
    pixels = 0.25 + 0.5 * noise.uniform(0, purifier.image.shape)
    return ImageSet(pixels.numpy(), np.arange(n) % 10, np.arange(n), "grey noise")


def address(seed: int, ids: list[int], draws: list[int]) -> Noise:
    """The noise of purifications, as the tool addresses it."""
    return Noise(seed, tuple(ids), tuple(draws), Stream.PURIFY)


def serial_changes(
    purifier: Purifier, seed: int, images: ImageSet, attacked: np.ndarray, draws: int
) -> np.ndarray:
    """‖P(x+δ; ξ) − P(x; ξ)‖₂ [n, draws, m], one purification at a time, every anchor anew.

    Args:
        purifier: what is measured.
        seed: of the noise.
        images: n of them.
        attacked: their perturbed versions [n, m, c, h, w].
        draws: of each image.
    """
    return _changes(purifier, seed, images, attacked, (draws, 1))


def batched_changes(
    purifier: Purifier, seed: int, images: ImageSet, attacked: np.ndarray, draws: int
) -> np.ndarray:
    """The same with all perturbed versions of an image in one batch, and as many anchors."""
    return _changes(purifier, seed, images, attacked, (draws, attacked.shape[1]))


def _changes(
    purifier: Purifier, seed: int, images: ImageSet, attacked: np.ndarray, of: tuple[int, int]
) -> np.ndarray:
    (n, m), (draws, size) = attacked.shape[:2], of
    changes = np.zeros((n, draws, m))
    with torch.inference_mode():
        for i in range(n):
            for k in range(draws):
                noise = address(seed, [int(images.ids[i])] * size, [k] * size)
                for j in range(0, m, size):
                    near = torch.from_numpy(attacked[i, j : j + size].copy())
                    clean = torch.from_numpy(images.pixels[i : i + 1].repeat(size, 0))
                    moved = purifier(near, noise).double() - purifier(clean, noise)
                    changes[i, k, j : j + size] = moved.flatten(1).norm(dim=1).numpy()
    return changes


def graph_gradient(
    purifier: Purifier, classifier: Classifier, on: tuple[Tensor, Tensor], noise: Noise
) -> Tensor:
    """Gradient at x of the sum of margin losses, by autograd through the whole chain."""
    x, labels = on
    loss: Loss = "margin"
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        losses = loss_rows(classifier(purifier(leaf, noise)), labels, loss)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return gradient


def serial_gradient(
    parts: tuple[Purifier, Classifier], seed: int, images: ImageSet, draws: int, size: int = 1
) -> Tensor:
    """Mean over draws of `graph_gradient`, in a loop over draws and over so many images at a time.

    Args:
        parts: the purifier and the classifier behind it.
        seed: of the noise.
        images: n of them, labelled.
        draws: of the expectation over transformations (EOT).
        size: images in a batch.
    """
    purifier, classifier = parts
    assert images.labels is not None
    x, labels = torch.from_numpy(images.pixels.copy()), torch.from_numpy(images.labels.copy())
    total = torch.zeros_like(x)
    for k in range(draws):
        for first in range(0, len(x), size):
            rows = slice(first, first + size)
            ids = images.ids[rows].tolist()
            noise = address(seed, ids, [k] * len(ids))
            total[rows] += graph_gradient(purifier, classifier, (x[rows], labels[rows]), noise)
    return total / draws
