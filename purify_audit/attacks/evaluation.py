"""Evaluate adversarial examples under aligned and held-out draws."""

import numpy as np
import torch
from torch import Tensor

from purify_audit.attacks.attack import Targets
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.losses import margins
from purify_audit.attacks.objective import Defence, Draws
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
_NO_CHANGES: dict[Norm, np.ndarray] = {}


def predicted(defence: Defence, x: Tensor, ids: tuple[int, ...], draws: Draws) -> np.ndarray:
    """Predicted labels int64 [n, k] of images x [n, c, h, w] under k draws each."""
    if not draws:
        return np.zeros((len(x), 0), np.int64)
    labels: np.ndarray = defence.logits(x, ids, draws).argmax(2).cpu().numpy()
    return labels


def clean_labels(
    defence: Defence, clean: Targets, plan: AttackPlan
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions for clean images.

    Returns:
        Labels [n, K] and margins [n, K] under the aligned draws, labels [n, H] under the scoring
        draws.
    """
    logits = defence.logits(clean.x, clean.ids, plan.aligned())
    labels = clean.labels.repeat_interleave(logits.shape[1])
    size = margins(logits.flatten(0, 1), labels).reshape(logits.shape[:2])
    held_out = predicted(defence, clean.x, clean.ids, plan.scoring())
    return logits.argmax(2).cpu().numpy(), size.cpu().numpy(), held_out


def score(
    defence: Defence,
    clean: Targets,
    ball: Ball,
    name: str,
    x: Tensor,
    aligned: Draws,
    held_out: Draws = (),
    *,
    whole: bool = False,
) -> Scored:
    """Evaluate an attack's images under aligned and held-out draws.

    Args:
        defence: the attacked model.
        clean: the clean images and their labels.
        ball: the attack's constraint.
        name: the attack's name.
        x: its images [n, c, h, w].
        aligned: the K draws that the attack optimised.
        held_out: the H scoring draws.
        whole: whether to measure changes of the output and the smallest fooling radius, which are
            NaN otherwise.
    """
    changes, radius = _NO_CHANGES, np.full(len(x), np.nan)
    if whole:
        changes = _changes(defence, clean, x, aligned)
        radius = _fooling_radius(defence, clean, ball, x, aligned)
    delta = (x.double() - clean.x.double()).flatten(1)
    unmeasured = np.full((len(x), len(aligned)), np.nan)
    return Scored(
        name=name,
        eps=ball.eps,
        images=x.cpu().numpy(),
        aligned=predicted(defence, x, clean.ids, aligned),
        held_out=predicted(defence, x, clean.ids, held_out),
        change_l2=changes.get("l2", unmeasured),
        delta_l2=delta.norm(dim=1).cpu().numpy(),
        change_linf=changes.get("linf", unmeasured),
        delta_linf=delta.abs().amax(1).cpu().numpy(),
        fooling_radius=radius,
        made_by=np.full(len(x), -1),
    )


def _changes(defence: Defence, clean: Targets, x: Tensor, draws: Draws) -> dict[Norm, np.ndarray]:
    """‖P(x+δ) − P(x)‖ [n, k] by norm, in float64."""

    def purify(rows: Tensor, noise: Noise, labels: Tensor) -> tuple[Tensor]:
        with torch.no_grad():
            return (defence.purifier(rows, noise),)

    cost = defence.purifier.evaluations
    moved, anchors = (
        defence.rows(purify, z, clean.ids, clean.labels, draws, cost)[0] for z in (x, clean.x)
    )
    change = (moved.double() - anchors.double()).flatten(2)
    orders: dict[Norm, float] = {"l2": 2.0, "linf": float("inf")}
    return {norm: change.norm(p, 2).cpu().numpy() for norm, p in orders.items()}


def _fooling_radius(
    defence: Defence, clean: Targets, ball: Ball, x: Tensor, draws: Draws
) -> np.ndarray:
    """Radius at which half the draws are fooled, by bisection from the clean image to x [n].

    An upper bound of the smallest such radius, since the direction is that of the attack.
    """

    def fooled(z: Tensor) -> Tensor:
        wrong = defence.logits(z, clean.ids, draws).argmax(2) != clean.labels[:, None]
        return wrong.double().mean(1) >= 0.5

    low = torch.zeros(len(x), device=x.device)
    high = torch.ones_like(low)
    fooled_at_x, misclassified = fooled(x), fooled(clean.x)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        hit = fooled(clean.x + middle[:, None, None, None] * (x - clean.x))
        high, low = torch.where(hit, middle, high), torch.where(hit, low, middle)
    radius = high.double() * ball.size(x)
    radius = torch.where(fooled_at_x, radius, torch.inf)
    out: np.ndarray = torch.where(misclassified, 0.0, radius).cpu().numpy()
    return out


def random_direction_flips(
    defence: Defence, bare: Defence, images: ImageSet, eps: float, norm: Norm
) -> CapRows:
    """How often a random direction changes the predicted label, by radius, without an attack.

    It estimates the adversarial region that Liu and Wei picture as a cap of the hypersphere.
    Directions are uniform on the l2 sphere; the radii are multiples of the largest l2 norm in the
    attack's ball: ε√d for l-inf, ε for l2, and for l1, where no pixel changes by more than 1,
    min(ε, √ε).
    """
    shape = images.image_shape
    root = float(np.sqrt(np.prod(shape)))
    length = {"linf": eps * root, "l2": eps, "l1": min(eps, float(np.sqrt(eps)))}[norm]
    radii = np.array([scale * length for scale in CAP_SCALES])
    v = directions(SphereProbe(), shape, images.ids, CAP_DIRECTIONS, defence.seed)
    points = [apply(images.pixels, scale_to_ball(v, "sphere", "l2", r)) for r in radii]
    stacked = np.concatenate([images.pixels[:, None], *points], 1)
    flat = torch.from_numpy(stacked.reshape(-1, *shape)).to(defence.device)
    ids = tuple(np.repeat(images.ids, stacked.shape[1]).tolist())
    flips = []
    for model in (bare, defence):
        labels = predicted(model, flat, ids, (0,)).reshape(stacked.shape[:2])
        changed = labels[:, 1:] != labels[:, :1]
        flips.append(changed.reshape(len(images), len(radii), -1).mean(2))
    return CapRows(radii, *flips)
