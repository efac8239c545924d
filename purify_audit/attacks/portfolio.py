"""A portfolio of attacks under aligned draws: many short runs, long ones on what still stands.

Targeted runs after Gowal et al., "An alternative surrogate loss for PGD-based adversarial testing"
(2019, multi-targeted) and Croce and Hein (ICML 2020, APGD-T); transfer from the one-step version
of a diffusion purifier is described in `docs/adr/006-warm-starts.md`. The result of each image is
the best over everything that was run, and images that every draw misclassifies are left alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from purify_audit.attacks.apgd import apgd
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.early_stopping import EarlyStopping
from purify_audit.attacks.losses import Loss
from purify_audit.attacks.losses import margins as margins_of
from purify_audit.attacks.objective import Objective
from purify_audit.attacks.pgd import AttackOutput, BestIterate, pgd
from purify_audit.spec.attack_plan import SHORT_RUN, TRANSFER_STEPS, AttackPlan
from purify_audit.statistics.attack_rows import RUNS

RunName = Literal["transfer", "targeted", "untargeted"]


@dataclass(frozen=True, slots=True)
class Run:
    """One run on the images that still stand.

    Attributes:
        name: transfer (through the one-step version), targeted or untargeted.
        steps: gradients.
        rank: of the target class, the most promising first; none: untargeted.
        adaptive: APGD instead of PGD.
        size: first step of PGD, relative to the radius.
    """

    name: RunName
    steps: int
    rank: int | None = None
    adaptive: bool = False
    size: float = 1.0


def schedule(steps: int, targets: int, *, cheaper: bool, longer: int = 1) -> list[Run]:
    """The runs of one restart, in order.

    Round i attacks the ceil(targets / 2**i) most promising targets for 10 · 2**i steps each, and
    then without a target from the best image so far (successive halving, Jamieson and Talwalkar
    2016). Odd rounds use APGD. Before them every target is tried through the one-step version.

    Args:
        steps: gradients of the purifier for an image that never falls.
        targets: number of target classes.
        cheaper: whether there is a one-step version.
        longer: factor of the lengths of all runs, but not of `steps`.
    """
    runs = list[Run]()
    if cheaper:
        runs = [Run("transfer", TRANSFER_STEPS * longer, rank) for rank in (*range(targets), None)]
    left, level = steps, 0
    while left > 0:
        length = SHORT_RUN * longer * 2**level
        for rank in (*range(-(-targets // 2**level)), None):
            name: RunName = "untargeted" if rank is None else "targeted"
            size = 1.0 if rank is not None or not targets else 0.5  # from the best image so far
            runs += [Run(name, min(length, left), rank, level % 2 == 1, size)] if left else []
            left -= min(length, left)
        level += 1
    return runs


def portfolio(
    objective: Objective,
    ball: Ball,
    plan: AttackPlan,
    short: Objective | None,
    starts: Iterable[Tensor],
    others: Mapping[str, Tensor],
    *,
    longer: int = 1,
) -> AttackOutput:
    """Attack with all restarts of a plan, under its aligned draws.

    Args:
        objective: the objective.
        ball: the constraint.
        plan: the attack.
        short: the objective of the one-step version; none if there is no cheaper one.
        starts: images [n, c, h, w] at which each restart begins.
        others: images [n, c, h, w] of other attacks, by their names in `RUNS`.
        longer: factor of the lengths of runs.
    """
    standing = Standing(objective, ball, plan.targets)
    for name, x in others.items():
        standing.offer(name, x)
    cheaper = short is not None
    for start in starts:
        standing.begin_at(start)
        for run in schedule(plan.steps, standing.targets, cheaper=cheaper, longer=longer):
            standing.run(run, short)
    return standing.result()


def target_count(classes: int, most: int, loss: Loss) -> int:
    """Target classes of each image; the targeted DLR loss needs at least four classes."""
    return 0 if loss == "dlr" and classes < 4 else min(most, classes - 1)


class Standing:
    """The best image so far of each image, and where its targeted runs have come.

    Attributes:
        objective: the objective under the aligned draws.
        ball: the constraint.
        best: the best images so far.
        made_by: index in `RUNS` of the run that made them, int64 [n].
        targets: number of target classes of each image.
        fooled: share of (image, draw) fooled after every run.
        losses: mean of minus the best margins after every run.
    """

    def __init__(self, objective: Objective, ball: Ball, targets: int) -> None:
        """Begin with the images themselves.

        Args:
            objective: the objective, untargeted.
            ball: the constraint.
            targets: target classes at most: those of the largest logits, mean over draws.
        """
        self.objective, self.ball = objective, ball
        logits = objective.defence.logits(ball.x, objective.ids, objective.draws(0))
        labels = objective.labels.repeat_interleave(logits.shape[1])
        margins = margins_of(logits.flatten(0, 1), labels).reshape(logits.shape[:2])
        self.best, self.made_by = BestIterate(ball.x), torch.zeros_like(objective.labels)
        self.best.keep(ball.x, margins)
        self.fooled, self.losses = list[float](), list[float]()
        self._note()
        self.targets = target_count(logits.shape[2], targets, objective.loss)
        mean, own = logits.mean(1), objective.labels[:, None]
        gaps = (mean - mean.gather(1, own)).nan_to_num(nan=-1e30)
        ranked = gaps.scatter(1, own, -torch.inf).topk(self.targets, 1)
        self._classes, self._gaps, self._order = ranked.indices, ranked.values, ranked.indices
        self.begin_at(ball.x)

    def rows(self) -> Tensor:
        """Rows of the images that some draw still classifies correctly, int64 [m]."""
        return (~(self.best.best_margins() <= 0).all(1)).nonzero().flatten()

    def begin_at(self, start: Tensor) -> None:
        """Begin the runs of a restart at these images [n, c, h, w]."""
        self._begin, self._points = start, [start] * self.targets

    def offer(self, name: str, x: Tensor) -> None:
        """Keep other images [n, c, h, w] where they are better."""
        rows = self.rows()
        if len(rows):
            margins = self.objective.select(rows).evaluate(x[rows], 0).margins
            self._keep(rows, x[rows], margins, name)
        self._note()

    def run(self, run: Run, short: Objective | None) -> None:
        """Carry out a run on the images that stand.

        Args:
            run: what to do.
            short: the objective of the one-step version, for a transfer.
        """
        rows = self.rows()
        if len(rows):
            self._run(run, rows, short)
        self._note()

    def result(self) -> AttackOutput:
        """The best images."""
        margins = self.best.best_margins()
        return AttackOutput(
            x=self.best.x,
            margins=margins,
            last=self.best.x,
            fooled=tuple(self.fooled),
            losses=tuple(self.losses),
            last_losses=-margins.mean(1),
            made_by=self.made_by,
        )

    def _run(self, run: Run, rows: Tensor, short: Objective | None) -> None:
        objective, ball, slot = self.objective.select(rows), self.ball.select(rows), None
        if run.rank is not None:
            if run.rank == 0:  # once a round, so that no target is tried twice in it
                self._order = self._gaps.argsort(1, descending=True)
            slot = self._order[rows, run.rank]
            objective = objective.towards(self._classes[rows, slot])
        start = self._start(run, rows, slot)
        if run.name == "transfer":
            assert short is not None, "a schedule with transfers has a one-step version"
            easy = short.select(rows).towards(objective.targets)
            x = pgd(easy, ball, start, run.steps, run.size * ball.eps).x
            evaluation = objective.evaluate(x, 0)
            margins, last, losses = evaluation.margins, x, evaluation.losses
        else:
            oracle = EarlyStopping(objective)
            if run.adaptive:
                output = apgd(oracle, ball, start, run.steps)
            else:
                output = pgd(oracle, ball, start, run.steps, run.size * ball.eps)
            x, margins, last, losses = output.x, output.margins, output.last, output.last_losses
        self._keep(rows, x, margins, run.name)
        if slot is not None:
            self._remember(rows, slot, last, losses)

    def _start(self, run: Run, rows: Tensor, slot: Tensor | None) -> Tensor:
        """Where each run begins [m, c, h, w]: the end of its target's last run, or the best."""
        if slot is None:
            return (self.best.x if self.targets and run.name == "untargeted" else self._begin)[rows]
        start = self._begin[rows]
        for number, points in enumerate(self._points):
            start = torch.where((slot == number)[:, None, None, None], points[rows], start)
        return start

    def _remember(self, rows: Tensor, slot: Tensor, x: Tensor, losses: Tensor) -> None:
        self._gaps = self._gaps.index_put((rows, slot), losses.to(self._gaps.dtype))
        for number, points in enumerate(self._points):
            chosen = slot == number
            if bool(chosen.any()):
                self._points[number] = points.index_copy(0, rows[chosen], x[chosen])

    def _keep(self, rows: Tensor, x: Tensor, margins: Tensor, name: str) -> None:
        whole = self.best.x.index_copy(0, rows, x)
        better = self.best.keep(whole, self.best.best_margins().index_copy(0, rows, margins))
        self.made_by = torch.where(better, RUNS.index(name), self.made_by)

    def _note(self) -> None:
        self.fooled.append(self.best.share())
        self.losses.append(-float(self.best.best_margins().double().mean()))
