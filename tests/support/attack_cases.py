"""Attack plans, and defences whose worst case is known or which record what is asked of them."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from purify_audit.attacks.activation_memory import ActivationMemory
from purify_audit.attacks.attack import Targets, attack, attack_objective
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.objective import Defence
from purify_audit.core.noise import Noise
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_purifier
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.spec.card import DiffusionCard, ImageSpec

CPU = torch.device("cpu")
MODELS = Path(__file__).parents[2] / "models"
NORMS = ["linf", "l2"]
LOSSES = ["ce", "margin", "dlr"]
SEED = 17


def uniform(*shape, seed=0):
    """float64 in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grey(n, shape=(3, 4, 4), spread=0.1, seed=1):
    return (0.5 + spread * (2.0 * uniform(n, *shape, seed=seed) - 1.0)).float()


def plan(**changes):
    settings = {
        "norm": "linf",
        "eps": (0.1,),
        "optimiser": "pgd",
        "steps": 5,
        "draws": 1,
        "restarts": 1,
        "held_out": 4,
        "square_queries": 10,
        "microbatch": 64,
    }
    return AttackPlan(**settings | changes)


class Linear:
    """P(x; ξ) = A x + s z, on images of one shape."""

    def __init__(self, a, s=0.0, shape=(3, 4, 4)):
        c, h, w = shape
        self.image = ImageSpec(channels=c, height=h, width=w)
        self.a, self.s, self.randomised, self.evaluations = a, s, s > 0, 1

    def __call__(self, x, noise):
        y = (x.flatten(1) @ self.a.T.to(x.dtype)).reshape(x.shape)
        return y + self.s * noise.normal(0, tuple(x.shape[1:])).to(x.dtype)


class Scores:
    """Logits W y + b."""

    def __init__(self, w, b):
        self.w, self.b, self.classes = w, b, len(w)

    def __call__(self, y):
        return y.flatten(1) @ self.w.T.to(y.dtype) + self.b.to(y.dtype)


def defence(purifier, classifier, microbatch=64, tick=None, seed=SEED):
    told = () if tick is None else (tick,)
    return Defence(purifier, classifier, CPU, seed, microbatch, *told)


def on(x, labels, first_id=100):
    return Targets(x, torch.as_tensor(labels), tuple(range(first_id, first_id + len(x))))


def inside(ball, z):
    assert float(ball.size(z).max()) <= ball.eps * (1 + 1e-6) + 1e-7
    assert float(z.min()) >= 0.0
    assert float(z.max()) <= 1.0
    return True


def dual(norm, w):
    """Rise of a linear function w [..., d] over a step of length 1."""
    return w.abs().sum(-1) if norm == "linf" else w.square().sum(-1).sqrt()


class Bent:
    """Pixel by pixel: x + 0.3 sin(5 x + z), z the draw's; three evaluations, let us say."""

    image, randomised, evaluations = ImageSpec(channels=1, height=2, width=3), True, 3

    def __call__(self, x, noise):
        return x + 0.3 * torch.sin(5.0 * x + noise.normal(0, tuple(x.shape[1:])).to(x.dtype))


class First:
    """The first pixels are the logits."""

    classes = 4

    def __call__(self, y):
        return 3.0 * y.flatten(1)[:, :4]


class Case:
    """n images near grey, P(x; ξ) = A x + s z, logits W y + b; labels as the clean defence says."""

    def __init__(self, n, classes, s=0.0, d=48):
        self.x = grey(n)
        self.a = torch.eye(d).double() + 0.5 * normal(d, d, seed=3) / math.sqrt(d)
        self.w = normal(classes, d, seed=4) / math.sqrt(d)
        self.b = -self.w @ self.a @ torch.full((d,), 0.5, dtype=torch.float64)
        self.purifier, self.scores = Linear(self.a, s), Scores(self.w, self.b)
        clean = self.logits()
        self.labels = clean.argmax(1)
        self.on = on(self.x, self.labels)
        self.defence = defence(self.purifier, self.scores, n)

    def logits(self, shift=0.0):
        return (self.x.double().flatten(1) @ self.a.T + shift) @ self.w.T + self.b

    def dual(self, norm):
        """Fall of z_y − z_j for a step of length 1, [n, classes]; 0 where j = y."""
        return dual(norm, (self.w[self.labels][:, None] - self.w[None]) @ self.a)

    def gaps(self, shift=0.0):
        """z_y − z_j, infinite for j = y."""
        z = self.logits(shift)
        gap = z.gather(1, self.labels[:, None]) - z
        return gap.scatter(1, self.labels[:, None], torch.inf)

    def radii(self, norm, shift=0.0):
        """Distance of each image from the decision boundary."""
        return (self.gaps(shift) / self.dual(norm)).min(1).values

    def worst(self, norm, eps, shift=0.0):
        """The lowest margin in the ball, over all classes."""
        return (self.gaps(shift) - eps * self.dual(norm)).min(1).values

    def shift(self, draw):
        z = Noise(SEED, self.on.ids, (draw,) * len(self.x)).normal(0, tuple(self.x.shape[1:]))
        return self.purifier.s * z.double().flatten(1)


class Noted:
    """Another purifier; notes images and draws of every pass that is not for a gradient."""

    randomised, evaluations = True, 1

    def __init__(self, purifier):
        self.purifier, self.image = purifier, purifier.image
        self.seen = []

    def __call__(self, x, noise):
        if not torch.is_grad_enabled():
            self.seen.append((x.clone(), noise.draws))
        return self.purifier(x, noise)

    def passes(self, n):
        """Images [n, …] and draws of each pass, one micro-batch each."""
        return [
            (x.reshape(n, -1, *x.shape[1:])[:, 0], draws[: len(draws) // n])
            for x, draws in self.seen
        ]


def bent_attack(n=6, k=2, norm="linf", eps=0.15, **changes):
    """An attack on `Bent`, everything in one micro-batch."""
    how = plan(norm=norm, eps=(eps,), draws=k, microbatch=n * k, **changes)
    noted = Noted(Bent())
    x = uniform(16, 1, 2, 3, seed=6).float()[:n]
    which = replace(defence(noted, First(), n * k), activations=ActivationMemory(budget=0))
    objective = attack_objective(which, on(x, torch.arange(n) % 4), how, norm, eps)
    ball = Ball(x, norm, eps)
    return objective, ball, how, attack(objective, ball, how), noted.passes(n)


def order(margins):
    return [(int((m <= 0).sum()), -float(m.mean())) for m in margins]


def digits_purifier(sampler, t_star=60):
    """The shipped diffusion purifier with another chain."""
    checkpoint = read_checkpoint(MODELS / "digits-ddpm.safetensors")
    changes = {"t_star": t_star, "sampler": sampler}
    card = DiffusionCard.model_validate(checkpoint.card.model_dump() | changes)
    return load_purifier(checkpoint, CPU, card)


@dataclass(frozen=True)
class Request:
    """What an attack asked of a defence at once: rows of images under draws.

    Attributes:
        purifier: the defence's.
        ids: image ids.
        draws: draw ids.
        x: the images.
        logits: [n, k, classes].
        gradient: whether for a gradient.
    """

    purifier: object
    ids: tuple[int, ...]
    draws: tuple[int, ...]
    x: torch.Tensor
    logits: torch.Tensor
    gradient: bool


def listen(monkeypatch):
    """A list to which everything that defences are asked from now on is appended."""
    asked, rows = [], Defence.rows

    def heard(defence, compute, x, ids, labels, draws, evaluations):
        results = rows(defence, compute, x, ids, labels, draws, evaluations)
        logits = results[1] if len(results) == 3 else results[0]
        asked.append(Request(defence.purifier, ids, draws, x, logits, len(results) == 3))
        return results

    monkeypatch.setattr(Defence, "rows", heard)
    return asked
