"""Comparison attacks that must not beat the main attack."""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from purify_audit.attacks.attack import attack, attack_objective, first_of, targets
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.evaluation import score
from purify_audit.attacks.objective import Defence
from purify_audit.audit.attack_results import AttackResults
from purify_audit.audit.defence import attack_of, first_targets
from purify_audit.audit.phases import Phase
from purify_audit.audit.store import Unit
from purify_audit.audit.subject import Subject
from purify_audit.audit.units import packed_score
from purify_audit.core.noise import Noise, Stream
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.statistics.attack_rows import Scored, with_rows
from purify_audit.statistics.columns import columns_of, table_of

COMPARED_IMAGES = 64
"""Images on which comparison attacks are run."""
_FEWER_IMAGES = {"square": 32, "other-ids": 32}
_OTHER_IDS_STEPS = 20
_CONTINUATION_STEPS = 40  # at least
_ALL_TARGETS = 9
_RENAMED = 2**31  # the draw that gives images other ids


def comparison_phase(subject: Subject, defence: Defence, results: AttackResults) -> Phase:
    """The comparison attacks, as independent units."""
    plan, on = attack_of(subject.plan), first_targets(subject, COMPARED_IMAGES)
    attacks = list(comparison_attacks(plan).items())

    def make(place: int) -> Unit:
        before, (name, other) = results.evaluations, attacks[place]
        eps = _unbounded(plan, on.x) if name == "unbounded" else plan.eps[0]
        chosen = first_of(on, images_of(name))
        if name == "other-ids":
            chosen = replace(chosen, ids=other_ids(chosen.ids, defence.seed))
        ball = Ball(chosen.x, plan.norm, eps)
        objective = attack_objective(defence, chosen, other, plan.norm, eps)
        x = attack(objective, ball, other, independent=name == "continuation").x
        scored = score(defence, chosen, ball, name, x, plan.aligned(), whole=name == "unbounded")
        spent, results.evaluations = results.evaluations - before, before
        return packed_score(scored, spent)

    return Phase("comparison", len(attacks), make)


def merged(
    subject: Subject, defence: Defence, main: Scored, other: Scored, labels: np.ndarray
) -> Scored:
    """The main attack with the images of a comparison attack where these fool more draws.

    Only those are evaluated under held-out draws.
    """
    plan, m = attack_of(subject.plan), len(other.aligned)
    rows = np.flatnonzero(
        (other.aligned != labels[:m, None]).sum(1) > (main.aligned[:m] != labels[:m, None]).sum(1)
    )
    if not len(rows):
        return main
    on = targets(subject.images.select(rows.tolist()), subject.device)
    x = torch.from_numpy(other.images[rows]).to(subject.device)
    ball, held_out = Ball(on.x, plan.norm, other.eps), plan.scoring()
    part = score(defence, on, ball, other.name, x, plan.aligned(), held_out, whole=True)
    return with_rows(main, rows, part)


def with_smaller(main: Scored, smaller: Scored, labels: np.ndarray) -> Scored:
    """The main attack with the images of a smaller radius where these fool more draws."""
    wrong = [(attack.aligned != labels[:, None]).sum(1) for attack in (smaller, main)]
    rows = np.flatnonzero(wrong[0] > wrong[1])
    columns = {name: column[rows] for name, column in columns_of(smaller).items()}
    return with_rows(main, rows, table_of(Scored, columns, name="smaller-radius", eps=main.eps))


def other_ids(ids: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """Other ids for the same images, unpredictable without the seed."""
    noise = Noise(seed, ids, (_RENAMED,) * len(ids), Stream.CHOICE)
    return tuple(noise.integers(0, (), 2**32).tolist())


def comparison_attacks(plan: AttackPlan) -> dict[str, AttackPlan]:
    """The comparison attacks of a plan, by name.

    `unbounded`: the main attack at a radius at which it must succeed. `other-ids`: a short one on
    the same images under other ids, which exposes a purifier that looks its images up by id.
    `continuation`: a portfolio from elsewhere, with at least twice the steps. `bpda` and `square`
    need no gradient of the purifier.
    """
    once = plan.model_copy(update={"restarts": 1})
    attacks = {
        "unbounded": once,
        "other-ids": once.model_copy(update={"steps": min(plan.steps, _OTHER_IDS_STEPS)}),
        "continuation": once.model_copy(update=_continuation(plan)),
    }
    if plan.optimiser != "square":
        if plan.gradient == "exact":
            steps = -(-plan.steps // 2)
            changes = {"gradient": "bpda", "warm_start": False, "steps": steps}
            attacks["bpda"] = once.model_copy(update=changes)
        search = {"optimiser": "square", "steps": plan.square_queries, "early_stop": True}
        attacks["square"] = once.model_copy(update=search)
    else:
        attacks["other-ids"] = once
    return attacks


def _continuation(plan: AttackPlan) -> dict[str, object]:
    """What a continuation changes; it does not share the main attack's choice of run and loss."""
    steps = max(2 * plan.steps, _CONTINUATION_STEPS)
    if plan.optimiser == "square":
        return {"steps": steps}
    return {"steps": steps, "optimiser": "portfolio", "loss": "margin", "targets": _ALL_TARGETS}


def images_of(name: str) -> int:
    """Images that a comparison attack is run on."""
    return _FEWER_IMAGES.get(name, COMPARED_IMAGES)


def _unbounded(plan: AttackPlan, x: Tensor) -> float:
    """A radius at which every image can become plain grey."""
    d = x[0].numel()
    grey = {"linf": 0.5, "l2": 0.5 * math.sqrt(d), "l1": 0.5 * d}[plan.norm]
    return max(grey, plan.eps[0])
