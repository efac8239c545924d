"""Attacks on images: restarts, aligned or fresh draws, and which images are kept."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from purify_audit.attack.apgd import apgd
from purify_audit.attack.ball import Ball
from purify_audit.attack.early_stopping import EarlyStopping
from purify_audit.attack.gradients import GradientKind
from purify_audit.attack.objective import Defence, Draws, Objective
from purify_audit.attack.pgd import AttackOutput, Best, LossOracle, pgd
from purify_audit.attack.square import square
from purify_audit.core.errors import PlanError
from purify_audit.core.noise import Noise, Stream
from purify_audit.images.image_set import ImageSet
from purify_audit.models.protocols import Purifier, is_differentiable
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.spec.attack_plan import (
    PREDICTION_STEPS,
    PREDICTION_STEPS_DIRECT,
    WARM_STEPS,
    AttackPlan,
)
from purify_audit.spec.norms import Norm
from purify_audit.spec.samplers import DDIMSampler, DDPMSampler, OneStepSampler

Randomness = Literal["aligned", "fresh"]
Start = tuple[int, Tensor]
"""The number of a restart, and where it begins."""

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


def first_of(on: Targets, count: int) -> Targets:
    """The first images."""
    return Targets(on.x[:count], on.labels[:count], on.ids[:count])


def attack_objective(
    defence: Defence, on: Targets, plan: AttackPlan, norm: Norm, eps: float
) -> Objective:
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
    objective: Objective, ball: Ball, plan: AttackPlan, randomness: Randomness = "aligned"
) -> AttackOutput:
    """Attack with every restart of a plan.

    Aligned: the best image of all by the attack's own draws. Fresh: the last image of each
    restart, since the best by draws that change would be the luckiest; between restarts a set of
    draws decides that neither attacks nor scores.

    Raises:
        Stopped: the run was asked to end; nothing of this attack is kept.
    """
    best, fooled, losses = Best(ball.x), list[float](), list[float]()
    fresh = randomness == "fresh"
    aligned = EarlyStopping(objective) if plan.early_stop else objective
    for restart, start in enumerate(_starts(objective, ball, plan, fresh)):
        if fresh:
            drawn = replace(objective, draws=partial(plan.fresh, restart))
            made = _once(objective, drawn, ball, plan, start)
            x, margins = made.last, _under(objective, plan.selection(), made.last)
        else:
            made = _once(objective, aligned, ball, plan, start)
            x, margins = made.x, made.margins
        before = fooled[-1] if fooled else 0.0
        best.keep(x, margins)
        fooled += [max(before, share) for share in made.fooled[:-1]] + [best.share()]
        losses += made.losses
    return AttackOutput(best.x, best.chosen(), best.x, tuple(fooled), tuple(losses))


def _starts(objective: Objective, ball: Ball, plan: AttackPlan, fresh: bool) -> Iterator[Start]:
    """Where each restart begins: one warm start if there is one, the image, then random points."""
    short = one_step(objective.defence.purifier)
    count = plan.restarts
    if short is not None and plan.warm_start and plan.optimiser != "square":
        yield 0, _warm(objective, ball, plan, short, fresh)
        count -= 1
    for restart in range(count):
        number = restart + plan.restarts - count
        yield number, ball.x if restart == 0 else _random_start(objective, ball, number)


def _warm(
    objective: Objective, ball: Ball, plan: AttackPlan, short: DiffusionPurifier, fresh: bool
) -> Tensor:
    """Where an attack ends on the purifier that denoises in one step from the same noisy image."""
    easy = _easy(objective, short)
    if fresh:
        easy = replace(easy, draws=plan.warm)
    made = pgd(easy, ball, ball.x, WARM_STEPS, plan.step_size * ball.eps)
    return made.last if fresh else made.x


def _easy(objective: Objective, short: Purifier) -> Objective:
    """The same objective with a cheaper purifier, and with gradients of it if there are any."""
    able = objective.gradient != "none" and is_differentiable(short)
    kind: GradientKind = "exact" if able else "none"
    defence = replace(objective.defence, purifier=short)
    return replace(objective, defence=defence, gradient=kind, surrogate=None)


def predict(objective: Objective, ball: Ball) -> Tensor:
    """Images that predict an aligned attack's verdicts, at a fiftieth of its cost.

    A short attack on the purifier that noises the same and denoises in one step; where there is
    no such shortcut (one evaluation in all), a very short one on the purifier itself. Scored by
    the whole purifier, they give the predicted robust accuracy (`docs/method.md`, section 13).
    """
    short = one_step(objective.defence.purifier)
    if short is not None:
        return pgd(_easy(objective, short), ball, ball.x, PREDICTION_STEPS, ball.eps).x
    whole = _easy(objective, objective.defence.purifier)
    return pgd(whole, ball, ball.x, PREDICTION_STEPS_DIRECT, 2.0 * ball.eps).x


def _under(objective: Objective, draws: Draws, x: Tensor) -> Tensor:
    return replace(objective, draws=lambda step: draws).evaluate(x, 0).margins


def _once(
    objective: Objective, climbed: LossOracle, ball: Ball, plan: AttackPlan, start: Start
) -> AttackOutput:
    restart, x = start
    match plan.optimiser:
        case "pgd":
            return pgd(climbed, ball, x, plan.steps, plan.step_size * ball.eps)
        case "apgd":
            return apgd(climbed, ball, x, plan.steps)
        case "square":
            return square(climbed, ball, objective.defence.seed, objective.ids, plan.steps, restart)


def _random_start(objective: Objective, ball: Ball, restart: int) -> Tensor:
    addresses = Noise(
        objective.defence.seed,
        objective.ids,
        (restart,) * len(objective.ids),
        Stream.START,
        ball.x.device,
    )
    return ball.start(addresses.uniform(0, tuple(ball.x.shape[1:])), addresses.uniform(2, ()))


def one_step(purifier: Purifier) -> DiffusionPurifier | None:
    """The purifier that noises the same and denoises at once; none where that is no shortcut."""
    if not isinstance(purifier, DiffusionPurifier):
        return None
    sampler = purifier.card.sampler
    if purifier.evaluations == sampler.rounds:
        return None
    clip = isinstance(sampler, DDPMSampler | DDIMSampler) and sampler.clip
    changes = {"sampler": OneStepSampler(clip=clip, clamp=sampler.clamp, rounds=sampler.rounds)}
    return replace(purifier, card=purifier.card.model_copy(update=changes))


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
