"""Comparison attacks that must not beat the main attack."""

import math
from dataclasses import replace

from torch import Tensor

from purify_audit.attacks.attack import attack, attack_objective, first_of
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

COMPARED_IMAGES = 64
"""Images on which comparison attacks are run."""
_SQUARE_IMAGES = 32  # of them, for the Square Attack
_RENAMED = 2**31  # the draw that gives images other ids


def comparison_phase(subject: Subject, defence: Defence, results: AttackResults) -> Phase:
    """The comparison attacks, as independent units."""
    plan, on = attack_of(subject.plan), first_targets(subject, COMPARED_IMAGES)
    attacks = list(comparison_attacks(plan).items())
    # Other ids for the same images expose a purifier that looks its images up by id.
    renamed = replace(on, ids=other_ids(on.ids, defence.seed))

    def make(place: int) -> Unit:
        before, (name, other) = results.evaluations, attacks[place]
        eps = _unbounded(plan, on.x) if name == "unbounded" else plan.eps[0]
        chosen = first_of(on if name == "unbounded" else renamed, images_of(name))
        ball = Ball(chosen.x, plan.norm, eps)
        x = attack(attack_objective(defence, chosen, other, plan.norm, eps), ball, other).x
        scored = score(defence, chosen, ball, name, x, plan.aligned())
        spent, results.evaluations = results.evaluations - before, before
        return packed_score(scored, spent)

    return Phase("comparison", len(attacks), make)


def other_ids(ids: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """Other ids for the same images, unpredictable without the seed."""
    noise = Noise(seed, ids, (_RENAMED,) * len(ids), Stream.CHOICE)
    return tuple(noise.integers(0, (), 2**32).tolist())


def comparison_attacks(plan: AttackPlan) -> dict[str, AttackPlan]:
    """The comparison attacks of a plan, by name."""
    attacks = {"unbounded": plan.model_copy(update={"restarts": 1})}
    if plan.optimiser != "square":
        if plan.gradient == "exact":
            changes = {"gradient": "bpda", "restarts": 1, "warm_start": False}
            attacks["bpda"] = plan.model_copy(update=changes)
        search = {"optimiser": "square", "steps": plan.square_queries, "restarts": 1}
        attacks["square"] = plan.model_copy(update=search)
    return attacks


def images_of(name: str) -> int:
    """Images that a comparison attack is run on."""
    return _SQUARE_IMAGES if name == "square" else COMPARED_IMAGES


def _unbounded(plan: AttackPlan, x: Tensor) -> float:
    """A radius at which every image can become plain grey."""
    grey = 0.5 if plan.norm == "linf" else 0.5 * math.sqrt(x[0].numel())
    return max(grey, plan.eps[0])
