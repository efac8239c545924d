"""Scoring: what the defence makes of attacked images under every randomness that matters."""

import numpy as np
import torch
from torch import Tensor

from purify_audit.attack.attack import Targets
from purify_audit.attack.ball import Ball
from purify_audit.attack.losses import margins
from purify_audit.attack.objective import Defence, Draws
from purify_audit.compression.perturbations import apply, directions, scale_to_ball
from purify_audit.core.noise import Noise
from purify_audit.images.image_set import ImageSet
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.spec.norms import Norm
from purify_audit.spec.probes import SphereProbe
from purify_audit.statistics.attack_rows import CapRows, Scored

CAP_DIRECTIONS = 4
CAP_SCALES = (0.5, 1.0, 2.0, 4.0)
BISECTIONS = 6


def predicted(defence: Defence, x: Tensor, ids: tuple[int, ...], draws: Draws) -> np.ndarray:
    """Predicted labels int64 [n, k] of images x [n, c, h, w] under k draws each."""
    if not draws:
        return np.zeros((len(x), 0), np.int64)
    labels: np.ndarray = defence.logits(x, ids, draws).argmax(2).cpu().numpy()
    return labels


def clean_labels(
    defence: Defence, on: Targets, plan: AttackPlan
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of clean images: labels and margins under the aligned draws, labels under those that score.

    Shapes [n, K], [n, K] and [n, H].
    """
    logits = defence.logits(on.x, on.ids, plan.aligned())
    labels = on.labels.repeat_interleave(logits.shape[1])
    size = margins(logits.flatten(0, 1), labels).reshape(logits.shape[:2])
    held_out = predicted(defence, on.x, on.ids, plan.scoring())
    return logits.argmax(2).cpu().numpy(), size.cpu().numpy(), held_out


def score(
    defence: Defence,
    on: Targets,
    ball: Ball,
    attacked: tuple[str, Tensor],
    draws: tuple[Draws, Draws],
) -> Scored:
    """Score an attack's images.

    Args:
        defence: what was attacked.
        on: the clean images, and their labels.
        ball: what the attack was allowed.
        attacked: the attack's name and its images.
        draws: the aligned ones, and those held out.
    """
    (name, x), (aligned, held_out) = attacked, draws
    changes, deltas = _distances(defence, on, x, aligned)
    return Scored(
        name=name,
        eps=ball.eps,
        images=x.cpu().numpy(),
        aligned=predicted(defence, x, on.ids, aligned),
        held_out=predicted(defence, x, on.ids, held_out),
        change_l2=changes["l2"],
        delta_l2=deltas["l2"],
        change_linf=changes["linf"],
        delta_linf=deltas["linf"],
        fooling_radius=_falls_at(defence, on, ball, x, aligned),
    )


def _distances(
    defence: Defence, on: Targets, x: Tensor, draws: Draws
) -> tuple[dict[Norm, np.ndarray], dict[Norm, np.ndarray]]:
    """‖P(x+δ) − P(x)‖ [n, k] and ‖δ‖ [n], by norm, in float64."""

    def purify(rows: Tensor, noise: Noise, labels: Tensor) -> tuple[Tensor]:
        with torch.no_grad():
            return (defence.purifier(rows, noise),)

    cost = defence.purifier.evaluations
    moved, anchors = (defence.rows(purify, z, on.ids, on.labels, draws, cost)[0] for z in (x, on.x))
    change, delta = moved.double() - anchors.double(), x.double() - on.x.double()
    orders: dict[Norm, float] = {"l2": 2.0, "linf": float("inf")}
    return (
        {n: change.flatten(2).norm(p, 2).cpu().numpy() for n, p in orders.items()},
        {n: delta.flatten(1).norm(p, 1).cpu().numpy() for n, p in orders.items()},
    )


def _falls_at(defence: Defence, on: Targets, ball: Ball, x: Tensor, draws: Draws) -> np.ndarray:
    """Bisection between x and its attacked image for the radius at which half the draws fall.

    An upper bound of the smallest radius: the direction is the attack's at the full one.
    """

    def fallen(z: Tensor) -> Tensor:
        wrong = defence.logits(z, on.ids, draws).argmax(2) != on.labels[:, None]
        return wrong.double().mean(1) >= 0.5

    low = torch.zeros(len(x), device=x.device)
    high = torch.ones_like(low)
    falls, already = fallen(x), fallen(on.x)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fell = fallen(on.x + middle[:, None, None, None] * (x - on.x))
        high, low = torch.where(fell, middle, high), torch.where(fell, low, middle)
    radius = high.double() * ball.size(x)
    radius = torch.where(falls, radius, torch.inf)
    out: np.ndarray = torch.where(already, 0.0, radius).cpu().numpy()
    return out


def caps(defence: Defence, bare: Defence, images: ImageSet, eps: float, norm: Norm) -> CapRows:
    """How often a random direction flips a decision, by radius: the adversarial region, unattacked.

    Directions are uniform on the l2 sphere; the radii are multiples of the attack's (of its
    length in l2, ε√d, when the ball is l-inf). Liu and Wei's picture of a cap of the hypersphere.
    """
    shape = images.image_shape
    length = eps * (float(np.sqrt(np.prod(shape))) if norm == "linf" else 1.0)
    radii = np.array([scale * length for scale in CAP_SCALES])
    v = directions(SphereProbe(), shape, images.ids, CAP_DIRECTIONS, defence.seed)
    points = [apply(images.pixels, scale_to_ball(v, "sphere", "l2", r)) for r in radii]
    stacked = np.concatenate([images.pixels[:, None], *points], 1)
    flat = torch.from_numpy(stacked.reshape(-1, *shape)).to(defence.device)
    ids = tuple(np.repeat(images.ids, stacked.shape[1]).tolist())
    flips = []
    for which in (bare, defence):
        labels = predicted(which, flat, ids, (0,)).reshape(stacked.shape[:2])
        changed = labels[:, 1:] != labels[:, :1]
        flips.append(changed.reshape(len(images), len(radii), -1).mean(2))
    return CapRows(radii, *flips)
