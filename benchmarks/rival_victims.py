"""Purifiers under one draw as deterministic models, for attacks of other libraries.

The image that a row comes from is recognised (the row is in its ball), and the row gets that
image's noise. Network evaluations are counted as in `Objective.gradient_evaluations`: a forward
pass of a row costs the purifier's E, its backward pass 2 E, recomputation included.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from common import CLASSIFIER, DDPM, MODELS, ROOT
from third_party import CIFAR, DDPM_MNIST, LENET, MNIST, RESNET56
from torch import Tensor, nn

from purify_audit.attacks.objective import Defence, Objective
from purify_audit.core.noise import Noise, Stream
from purify_audit.images.image_set import load_images
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.convert import attach_card
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.protocols import Purifier
from purify_audit.models.user_code.factory import code_checkpoint
from purify_audit.spec.card import DiffusionCard

CPU = torch.device("cpu")
DRAW = (0,)
DIGITS_EPS = 0.2

DIGITS: dict[str, tuple[str, int, int]] = {  # sampler, steps, t*
    "ddpm:steps=10 t*=60": ("ddpm", 10, 60),
    "ddpm:steps=10 t*=100": ("ddpm", 10, 100),
    "ddpm:steps=10 t*=200": ("ddpm", 10, 200),
    "ddim:steps=10 t*=100": ("ddim", 10, 100),
    "ddim:steps=5 t*=40": ("ddim", 5, 40),
    "ddim:steps=5 t*=20": ("ddim", 5, 20),
    "one-step t*=60": ("one-step", 0, 60),
    "one-step t*=150": ("one-step", 0, 150),
}
AUTOENCODER, CIFAR_DDPM, MNIST_DDPM = "digits-autoencoder", "cifar10-ddpm", "mnist-ddpm"
COUNTS = {CIFAR_DDPM: 32, MNIST_DDPM: 32}  # images; else 64


@dataclass(frozen=True)
class Victim:
    """A purifier before a classifier, and the images to attack.

    Attributes:
        defence: both.
        x: clean images [n, c, h, w].
        labels: int64 [n].
        ids: of the images.
        eps: radius, l-inf.
    """

    defence: Defence
    x: Tensor
    labels: Tensor
    ids: tuple[int, ...]
    eps: float

    def first(self, count: int) -> "Victim":
        """The same with the first images only."""
        n = slice(count)
        return Victim(self.defence, self.x[n], self.labels[n], self.ids[n], self.eps)

    def correct(self, x: Tensor) -> Tensor:
        """Which images the defence classifies correctly under the draw, bool [n]."""
        return self.defence.logits(x, self.ids, DRAW)[:, 0].argmax(1) == self.labels


class AlignedModel(nn.Module):
    """Logits of a defence under one draw of every image, whichever rows it is given.

    Attributes:
        evaluations: network evaluations so far.
        unsure: rows so far that are not in the ball of exactly one image; they count as the
            nearest image's.
    """

    def __init__(self, victim: Victim) -> None:
        """For the images of a victim."""
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells the device
        self.victim = victim
        self.evaluations = self.unsure = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits [m, classes] of rows [m, c, h, w]."""
        defence, distances = self.victim.defence, self._distances(x.detach())
        self.unsure += int(((distances <= self.victim.eps + 1e-6).sum(1) != 1).sum())
        ids = tuple(self.victim.ids[row] for row in distances.argmin(1).tolist())
        noise = Noise(defence.seed, ids, DRAW * len(ids), Stream.PURIFY, defence.device)
        logits = defence.classifier(defence.purifier(x, noise))
        cost = len(x) * defence.purifier.evaluations
        self._add(cost)
        if logits.requires_grad:
            logits.register_hook(partial(self._add, 2 * cost))  # type: ignore[no-untyped-call]
        return logits

    def _distances(self, x: Tensor) -> Tensor:
        """L-inf distances of rows [m] from the clean images [n]."""
        return torch.stack([(x - c).abs().flatten(1).amax(1) for c in self.victim.x], 1)

    def _add(self, evaluations: int, gradient: Tensor | None = None) -> None:
        """Count; also a hook, which runs in every backward pass."""
        self.evaluations += evaluations


def victim(name: str, folder: Path, work: Path) -> Victim:
    """A purifier by name, with its classifier and images."""
    if name in (CIFAR_DDPM, MNIST_DDPM):
        models = {CIFAR_DDPM: (RESNET56, CIFAR), MNIST_DDPM: (LENET, MNIST)}
        (weights, card), (source, eps, _) = models[name]
        judge = attach_card(folder / weights, ROOT / "examples" / card, work / weights, CPU)
        top, _, bottom = eps.partition("/")
        data, radius = str(folder / source), float(top) / float(bottom or 1)
    else:
        judge, data, radius = read_checkpoint(CLASSIFIER), "digits", DIGITS_EPS
    images, n = load_images(data), COUNTS.get(name, 64)
    assert images.labels is not None
    x, labels = (torch.from_numpy(part[:n].copy()) for part in (images.pixels, images.labels))
    defence = Defence(purifier(name, folder), load_classifier(judge, CPU), CPU, 0, n)
    return Victim(defence, x, labels.long(), tuple(images.ids[:n].tolist()), radius)


def purifier(name: str, folder: Path) -> Purifier:
    """A purifier by name."""
    if name in DIGITS:
        kind, steps, t_star = DIGITS[name]
        checkpoint = read_checkpoint(DDPM)
        sampler = {"kind": kind} | ({"steps": steps} if steps else {})
        card = checkpoint.card.model_dump() | {"t_star": t_star, "sampler": sampler}
        return load_purifier(checkpoint, CPU, DiffusionCard.model_validate(card))
    if name == MNIST_DDPM:
        settings = {"weights": str(folder / DDPM_MNIST), "t_star": "200", "steps": "10"}
        code = f"{ROOT}/examples/mnist_ddpm.py:purifier"
        return load_purifier(code_checkpoint(code, settings, None), CPU)
    return load_purifier(read_checkpoint(MODELS / f"{name}.safetensors"), CPU)


def check(target: Victim) -> None:
    """Check that logits and gradients are the defence's own, for some rows in another order."""
    signs = Noise(0, target.ids, DRAW * len(target.ids), Stream.START).signs(0, target.x.shape[1:])
    z = (target.x + target.eps * signs).clamp(0, 1)
    rows = torch.arange(0, len(z), 2).flip(0)
    labels, own = target.labels, target.defence.logits(z, target.ids, DRAW)[rows, 0]
    objective = Objective(target.defence, target.ids, labels, lambda step: DRAW, "ce")
    wanted = objective.loss_and_grad(z, 0).gradient
    assert wanted is not None
    model, leaf = AlignedModel(target), z[rows].requires_grad_()
    logits = model(leaf)
    loss = nn.functional.cross_entropy(logits, labels[rows], reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    scale = float(own.abs().max()), float(wanted.abs().max())
    torch.testing.assert_close(logits.detach(), own, rtol=0, atol=1e-4 * scale[0])
    torch.testing.assert_close(gradient, wanted[rows], rtol=0, atol=1e-3 * scale[1])
    assert model.evaluations == len(rows) * objective.gradient_evaluations
