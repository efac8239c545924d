"""Attacks with restarts under aligned draws, and a transfer attack that predicts them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from purify_audit.attacks.apgd import apgd
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.early_stopping import EarlyStopping
from purify_audit.attacks.gradients import GradientKind
from purify_audit.attacks.l1 import STEP_SHARE
from purify_audit.attacks.objective import Defence, Objective
from purify_audit.attacks.pgd import AttackOutput, BestIterate, LossOracle, pgd
from purify_audit.attacks.portfolio import portfolio
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
from purify_audit.statistics.attack_rows import RUNS

NONE: Mapping[str, Tensor] = MappingProxyType({})
_INDEPENDENT = 1000  # number of an independent attack's first restart; plans have fewer
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
    d = images.x[0].numel()
    # l2 length of a typical perturbation of radius 1; in l1 that of one step
    size = {"linf": math.sqrt(d), "l2": 1.0, "l1": 1.0 / math.sqrt(math.ceil(STEP_SHARE * d))}[norm]
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
    objective: Objective,
    ball: Ball,
    plan: AttackPlan,
    others: Mapping[str, Tensor] = NONE,
    *,
    independent: bool = False,
) -> AttackOutput:
    """Attack with all restarts of a plan, under its aligned draws.

    Args:
        objective: the objective (`attack_objective`).
        ball: the constraint.
        plan: the attack.
        others: images [n, c, h, w] of other attacks, by their names in `RUNS`, kept where they are
            better.
        independent: begin elsewhere than the same attack would otherwise, with runs of a portfolio
            twice as long.

    Raises:
        Stopped: the run was stopped; the results of this attack are lost.
    """
    first = _INDEPENDENT if independent else 0
    if plan.optimiser == "portfolio":
        restarts = (_start(objective, ball, first + n) for n in range(plan.restarts))
        longer = 2 if independent else 1
        return portfolio(
            objective, ball, plan, easier(objective, plan), restarts, others, longer=longer
        )
    best, fooled, losses = BestIterate(ball.x), list[float](), list[float]()
    aligned = EarlyStopping(objective) if plan.early_stop else objective
    for number, start in _starts(objective, ball, plan, first):
        output = _run(objective, aligned, ball, plan, number, start)
        before = fooled[-1] if fooled else 0.0
        best.keep(output.x, output.margins)
        fooled += [max(before, share) for share in output.fooled[:-1]] + [best.share()]
        losses += output.losses
    made_by = torch.full_like(objective.labels, RUNS.index("untargeted"))
    for name, x in others.items():
        better = best.keep(x, objective.evaluate(x, 0).margins)
        made_by = torch.where(better, RUNS.index(name), made_by)
    margins, worst = best.best_margins(), -best.best_margins().mean(1)
    fooled = [*fooled[:-1], best.share()]
    return AttackOutput(best.x, margins, best.x, tuple(fooled), tuple(losses), worst, made_by)


def easier(objective: Objective, plan: AttackPlan) -> Objective | None:
    """The objective of the one-step version; none if no cheaper, or if the plan forgoes it."""
    short = one_step(objective.defence.purifier)
    return _with_purifier(objective, short) if short is not None and plan.warm_start else None


def _starts(
    objective: Objective, ball: Ball, plan: AttackPlan, first: int
) -> Iterator[tuple[int, Tensor]]:
    """Number and start of each restart: a warm start if any, the image, then random points."""
    short, count = easier(objective, plan), plan.restarts
    if short is not None and plan.optimiser != "square" and first == 0:
        yield 0, pgd(short, ball, ball.x, WARM_STEPS, plan.step_size * ball.eps).x
        count -= 1
    for restart in range(count):
        number = first + restart + plan.restarts - count
        yield number, _start(objective, ball, number if restart else first)


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
        case "apgd":
            return apgd(oracle, ball, start, plan.steps)
        case "square":
            return square(oracle, ball, objective.defence.seed, objective.ids, plan.steps, restart)
        case _:
            return pgd(oracle, ball, start, plan.steps, plan.step_size * ball.eps)


def _start(objective: Objective, ball: Ball, restart: int) -> Tensor:
    """Where a restart begins: the first at the images, the others at random points."""
    if restart == 0:
        return ball.x
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
