"""Attacks with restarts, under aligned or fresh draws, and a transfer attack to predict them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from purify_audit.attacks.apgd import apgd
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.early_stopping import EarlyStopping
from purify_audit.attacks.gradients import GradientKind
from purify_audit.attacks.objective import Defence, Objective
from purify_audit.attacks.pgd import AttackOutput, BestIterate, LossOracle, pgd
from purify_audit.attacks.square import square
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
_REACH = 0.25  # step of the finite difference of `none`, over the length of a typical perturbation


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
    """The images of a labelled set as tensors on a device."""
    assert images.labels is not None, "the caller has checked that there are labels"
    x = torch.from_numpy(images.pixels.copy()).to(device)
    return Targets(x, torch.from_numpy(images.labels.copy()).to(device), tuple(images.ids.tolist()))


def first_of(images: Targets, count: int) -> Targets:
    """The first images."""
    return Targets(images.x[:count], images.labels[:count], images.ids[:count])


def attack_objective(
    defence: Defence, images: Targets, plan: AttackPlan, norm: Norm, eps: float
) -> Objective:
    """The objective of a plan's attack, under the aligned draws."""
    size = math.sqrt(images.x[0].numel()) if norm == "linf" else 1.0
    aligned = plan.aligned()
    return Objective(
        defence=defence,
        ids=images.ids,
        labels=images.labels,
        draws=lambda step: aligned,
        loss=plan.loss,
        gradient=plan.gradient,
        surrogate=_surrogate(defence.purifier, plan),
        reach=_REACH * eps * size,
    )


def attack(
    objective: Objective, ball: Ball, plan: AttackPlan, randomness: Randomness = "aligned"
) -> AttackOutput:
    """Attack with all restarts of a plan.

    Aligned: every step uses the same draws, and the best iterate under them is kept. Fresh: every
    step uses new draws; the last iterate of each restart is taken (the best one under changing
    draws would be selected by luck), and a third set of draws selects among restarts.

    Raises:
        Stopped: the run was stopped; the results of this attack are lost.
    """
    best, fooled, losses = BestIterate(ball.x), list[float](), list[float]()
    fresh = randomness == "fresh"
    aligned = EarlyStopping(objective) if plan.early_stop else objective
    for restart, (number, start) in enumerate(_starts(objective, ball, plan, fresh)):
        if fresh:
            redrawn = replace(objective, draws=partial(plan.fresh, restart))
            output = _run(objective, redrawn, ball, plan, number, start)
            selecting = replace(objective, draws=lambda step: plan.selection())
            x, margins = output.last, selecting.evaluate(output.last, 0).margins
        else:
            output = _run(objective, aligned, ball, plan, number, start)
            x, margins = output.x, output.margins
        before = fooled[-1] if fooled else 0.0
        best.keep(x, margins)
        fooled += [max(before, share) for share in output.fooled[:-1]] + [best.share()]
        losses += output.losses
    return AttackOutput(best.x, best.best_margins(), best.x, tuple(fooled), tuple(losses))


def _starts(
    objective: Objective, ball: Ball, plan: AttackPlan, fresh: bool
) -> Iterator[tuple[int, Tensor]]:
    """Number and start of each restart: a warm start if any, the image, then random points."""
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
    """Adversarial images for the purifier that denoises the same noisy image in one step."""
    transferred = _with_purifier(objective, short)
    if fresh:
        transferred = replace(transferred, draws=plan.warm)
    output = pgd(transferred, ball, ball.x, WARM_STEPS, plan.step_size * ball.eps)
    return output.last if fresh else output.x


def _with_purifier(objective: Objective, purifier: Purifier) -> Objective:
    """The objective of another purifier, with exact gradients if it is differentiable."""
    exact = objective.gradient != "none" and is_differentiable(purifier)
    kind: GradientKind = "exact" if exact else "none"
    defence = replace(objective.defence, purifier=purifier)
    return replace(objective, defence=defence, gradient=kind, surrogate=None)


def predict(objective: Objective, ball: Ball) -> Tensor:
    """Transfer attack on the one-step purifier; predicts aligned robust accuracy.

    It costs a fiftieth of the aligned attack. Where the purifier needs one evaluation anyway, it
    is a very short attack on the purifier itself. Scored under the whole purifier, its images
    give the predicted robust accuracy (`docs/method.md`, section 13).

    Returns:
        Adversarial images [n, c, h, w].
    """
    short = one_step(objective.defence.purifier)
    if short is not None:
        return pgd(_with_purifier(objective, short), ball, ball.x, PREDICTION_STEPS, ball.eps).x
    whole = _with_purifier(objective, objective.defence.purifier)
    return pgd(whole, ball, ball.x, PREDICTION_STEPS_DIRECT, 2.0 * ball.eps).x


def _run(
    objective: Objective,
    oracle: LossOracle,
    ball: Ball,
    plan: AttackPlan,
    restart: int,
    start: Tensor,
) -> AttackOutput:
    match plan.optimiser:
        case "pgd":
            return pgd(oracle, ball, start, plan.steps, plan.step_size * ball.eps)
        case "apgd":
            return apgd(oracle, ball, start, plan.steps)
        case "square":
            return square(oracle, ball, objective.defence.seed, objective.ids, plan.steps, restart)


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
    """The purifier with the same forward noise and one denoising step; none if no cheaper."""
    if not isinstance(purifier, DiffusionPurifier):
        return None
    sampler = purifier.card.sampler
    if purifier.evaluations == sampler.rounds:
        return None
    clip = isinstance(sampler, DDPMSampler | DDIMSampler) and sampler.clip
    changes = {"sampler": OneStepSampler(clip=clip, clamp=sampler.clamp, rounds=sampler.rounds)}
    return replace(purifier, card=purifier.card.model_copy(update=changes))


def shorter_chain(purifier: DiffusionPurifier, steps: int) -> DiffusionPurifier:
    """The same purifier with at most `steps` steps in its chain."""
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
