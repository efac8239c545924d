"""Attacks on images: restarts, aligned or fresh draws, and which images are kept."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from purify_audit.attack.apgd import apgd
from purify_audit.attack.ball import Ball
from purify_audit.attack.objective import Defence, Draws, Objective
from purify_audit.attack.pgd import Attacked, Best, pgd
from purify_audit.attack.square import square
from purify_audit.attack_plan import AttackPlan
from purify_audit.choices import Norm
from purify_audit.errors import PlanError
from purify_audit.images import ImageSet
from purify_audit.noise import Noise, Stream
from purify_audit.purifier import Purifier
from purify_audit.purifiers.diffusion import DiffusionPurifier

Randomness = Literal["aligned", "fresh"]

_REACH = 0.25  # of a typical perturbation: how far the finite difference of `none` goes


@dataclass(frozen=True, slots=True)
class Targets:
    """Images to attack, on the device.

    Attributes:
        x: pixels [n, c, h, w].
        labels: int64 [n].
        ids: image ids.
    """

    x: Tensor
    labels: Tensor
    ids: tuple[int, ...]


def targets(images: ImageSet, device: torch.device) -> Targets:
    """Images of a labelled set, ready to attack."""
    assert images.labels is not None, "an attack needs labels; the caller has checked"
    x = torch.from_numpy(images.pixels.copy()).to(device)
    return Targets(x, torch.from_numpy(images.labels.copy()).to(device), tuple(images.ids.tolist()))


def objective(defence: Defence, on: Targets, plan: AttackPlan, norm: Norm, eps: float) -> Objective:
    """What the attack of a plan raises, under the aligned draws."""
    size = math.sqrt(on.x[0].numel()) if norm == "linf" else 1.0
    aligned = plan.aligned()
    return Objective(
        defence=defence,
        ids=on.ids,
        labels=on.labels,
        draws=lambda step: aligned,
        loss=plan.loss,
        gradient=plan.gradient,
        surrogate=_surrogate(defence.purifier, plan),
        reach=_REACH * eps * size,
    )


def attack(
    aim: Objective, ball: Ball, plan: AttackPlan, randomness: Randomness = "aligned"
) -> Attacked:
    """Attack with every restart of a plan.

    Aligned: the best image of all by the attack's own draws. Fresh: the last image of each
    restart, since the best by draws that change would be the luckiest; between restarts a set of
    draws decides that neither attacks nor scores.

    Raises:
        Stopped: the run was asked to end; nothing of this attack is kept.
    """
    best, fooled, losses = Best(ball.x), list[float](), list[float]()
    for restart in range(plan.restarts):
        if randomness == "aligned":
            made = _once(aim, ball, plan, restart)
            x, margins = made.x, made.margins
        else:
            made = _once(replace(aim, draws=partial(plan.fresh, restart)), ball, plan, restart)
            x, margins = made.last, _under(aim, plan.selection(), made.last)
        before = fooled[-1] if fooled else 0.0
        best.keep(x, margins)
        fooled += [max(before, share) for share in made.fooled[:-1]] + [best.share()]
        losses += made.losses
    return Attacked(best.x, best.chosen(), best.x, tuple(fooled), tuple(losses))


def _under(aim: Objective, draws: Draws, x: Tensor) -> Tensor:
    return replace(aim, draws=lambda step: draws).look(x, 0).margins


def _once(aim: Objective, ball: Ball, plan: AttackPlan, restart: int) -> Attacked:
    start = ball.x if restart == 0 else _random_start(aim, ball, restart)
    match plan.optimiser:
        case "pgd":
            return pgd(aim, ball, start, plan.steps, plan.step_size * ball.eps)
        case "apgd":
            return apgd(aim, ball, start, plan.steps)
        case "square":
            return square(aim, ball, aim.defence.seed, aim.ids, plan.steps, restart)


def _random_start(aim: Objective, ball: Ball, restart: int) -> Tensor:
    addresses = Noise(
        aim.defence.seed, aim.ids, (restart,) * len(aim.ids), Stream.START, ball.x.device
    )
    return ball.start(addresses.uniform(0, tuple(ball.x.shape[1:])))


def shorter_chain(purifier: DiffusionPurifier, steps: int) -> DiffusionPurifier:
    """The same purifier with at most so many steps in its chain."""
    sampler = purifier.card.sampler
    if sampler.kind == "one-step" or purifier.evaluations <= steps * sampler.rounds:
        return purifier
    changes: dict[str, object] = {"steps": steps}
    if "stride" in type(sampler).model_fields:
        changes["stride"] = None
    card = purifier.card.model_copy(update={"sampler": sampler.model_copy(update=changes)})
    return replace(purifier, card=card)


def _surrogate(purifier: Purifier, plan: AttackPlan) -> Purifier | None:
    if plan.gradient != "surrogate":
        return None
    if not isinstance(purifier, DiffusionPurifier):
        raise PlanError("a surrogate gradient needs a diffusion purifier, whose chain it shortens")
    return shorter_chain(purifier, plan.surrogate_steps)
