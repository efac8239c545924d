"""The attack of the usual protocol: fresh draws at every step (EOT; Athalye et al. 2018).

Where draws stay secret, an attack maximises its success over the distribution of draws. The
gradient is averaged over `fresh_draws` draws a step; for a diffusion purifier it goes through the
one-step version, whose loss varies less from draw to draw (`docs/adr/015-strongest-attack.md`).
Several runs give candidates; draws that neither a run nor a score uses select among them, for the
mean over draws, for the plurality vote, and for the worst of several draws.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from purify_audit.attacks.ball import Ball
from purify_audit.attacks.losses import margins
from purify_audit.attacks.objective import Objective
from purify_audit.attacks.pgd import pgd
from purify_audit.attacks.portfolio import target_count
from purify_audit.spec.attack_plan import AttackPlan

Aim = Literal["mean", "vote", "worst"]
AIMS: tuple[Aim, ...] = ("mean", "vote", "worst")
CHAIN_DRAWS = 4
"""Draws of a step through the whole chain."""
_WORST_SHARE = 4  # the worst of the draws: one in four of those that select


@dataclass(slots=True)
class _Selected:
    """The best candidate so far of each image for one aim.

    Attributes:
        x: images [n, c, h, w].
        key: what they reach, [n, 2], compared in order; the lowest is best.
    """

    x: Tensor
    key: Tensor

    def keep(self, x: Tensor, key: Tensor) -> None:
        """Keep candidates where they are better."""
        (first, second), (old, older) = key.unbind(1), self.key.unbind(1)
        better = (first < old) | ((first == old) & (second < older))
        self.x = torch.where(better[:, None, None, None], x, self.x)
        self.key = torch.where(better[:, None], key, self.key)


def fresh_attack(
    objective: Objective,
    ball: Ball,
    plan: AttackPlan,
    short: Objective | None,
    others: Mapping[str, Tensor],
) -> dict[Aim, Tensor]:
    """Attack under fresh draws.

    Args:
        objective: of the whole purifier; its own draws are not used.
        ball: the constraint.
        plan: the attack.
        short: the objective of the one-step version; none if there is no cheaper one.
        others: images [n, c, h, w] of other attacks, which are candidates too.

    Returns:
        Images [n, c, h, w] for each aim.
    """
    ids, draws = objective.ids, plan.selection()
    logits = objective.defence.logits(ball.x, ids, draws)
    selected = {aim: _Selected(ball.x, _key(logits, objective.labels, aim)) for aim in AIMS}
    for x in _candidates(objective, ball, plan, short, logits.mean(1), others, selected["mean"]):
        logits = objective.defence.logits(x, ids, draws)
        for aim, best in selected.items():
            best.keep(x, _key(logits, objective.labels, aim))
    return {aim: best.x for aim, best in selected.items()}


def _candidates(
    objective: Objective,
    ball: Ball,
    plan: AttackPlan,
    short: Objective | None,
    logits: Tensor,
    others: Mapping[str, Tensor],
    best: _Selected,
) -> Iterator[Tensor]:
    """Images of other attacks, then of every run; the last begins at the best of those before."""
    yield from others.values()
    easy, size = objective if short is None else short, plan.step_size * ball.eps
    count = target_count(logits.shape[1], plan.targets, objective.loss)
    ranked = logits.scatter(1, objective.labels[:, None], -torch.inf).topk(count, 1).indices
    half = -(-plan.fresh_steps // 2)
    yield _last(easy, ball, plan, _Run(0, plan.fresh_draws, plan.fresh_steps), ball.x, size)
    for rank in range(count):
        run = _Run(rank + 1, -(-plan.fresh_draws // 2), half)
        yield _last(easy.towards(ranked[:, rank]), ball, plan, run, ball.x, size)
    if short is not None:
        run = _Run(count + 1, min(plan.fresh_draws, CHAIN_DRAWS), -(-half // 4))
        yield _last(objective, ball, plan, run, best.x, 0.5 * size)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: its number, which addresses its draws, and its budget."""

    number: int
    draws: int
    steps: int


def _last(
    objective: Objective, ball: Ball, plan: AttackPlan, run: _Run, start: Tensor, size: float
) -> Tensor:
    """The last iterate of PGD: the best one under changing draws would be selected by luck."""
    redrawn = replace(objective, draws=lambda step: plan.fresh(run.number, step)[: run.draws])
    return pgd(redrawn, ball, start, run.steps, size).last


def _key(logits: Tensor, labels: Tensor, aim: Aim) -> Tensor:
    """What an image reaches under the selecting draws [n, k, classes]: [n, 2], low is a success."""
    rows = labels.repeat_interleave(logits.shape[1])
    size = margins(logits.flatten(0, 1), rows).reshape(logits.shape[:2]).double()
    size = size.nan_to_num(nan=1e30)
    match aim:
        case "mean":
            return torch.stack([(size > 0).double().mean(1), size.mean(1)], 1)
        case "worst":
            lowest = size.topk(-(-size.shape[1] // _WORST_SHARE), 1, largest=False).values
            return torch.stack([(size > 0).double().mean(1), lowest.mean(1)], 1)
        case "vote":
            votes = F.one_hot(logits.argmax(2), logits.shape[2]).double().mean(1)
            return torch.stack([margins(votes, labels), size.mean(1)], 1)
