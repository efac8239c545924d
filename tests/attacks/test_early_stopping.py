"""Images that fell leave the batch, and every verdict stays what it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from attack_cases import digits_purifier, plan
from subjects import subject_for

from purify_audit.attacks.attack import attack, attack_objective, targets
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.early_stopping import EarlyStopping
from purify_audit.attacks.fresh import fresh_attack
from purify_audit.attacks.objective import Defence, Evaluation
from purify_audit.attacks.sanity_checks import check_attack
from purify_audit.audit.attack_results import AttackResults
from purify_audit.audit.attack_run import run_attacks
from purify_audit.images.image_set import choose, load_images
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_classifier
from purify_audit.models.runner import deterministic

CPU = torch.device("cpu")
JUDGE = Path(__file__).parents[2] / "models" / "digits-classifier.safetensors"
SAMPLER = {"kind": "ddpm", "steps": 3}


@pytest.fixture(scope="module")
def judge():
    checkpoint = read_checkpoint(JUDGE)
    return checkpoint, load_classifier(checkpoint, CPU)


def attacked(judge, early_stop, n=16, microbatch=8, **changes):
    """A real attack: what it made, and the rows it computed."""
    on, rows = targets(choose(load_images("digits"), n, 0), CPU), []
    defence = Defence(digits_purifier(SAMPLER), judge, CPU, 1, microbatch, rows.append)
    settings = {"steps": 5, "draws": 2, "restarts": 2, "eps": (0.2,)} | changes
    how = plan(early_stop=early_stop, microbatch=microbatch, **settings)
    ball = Ball(on.x, how.norm, how.eps[0])
    objective = attack_objective(defence, on, how, how.norm, how.eps[0])
    with deterministic(gradients=True):
        return attack(objective, ball, how), objective, ball, sum(rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": "pgd"},
        {"optimiser": "pgd", "norm": "l2", "eps": (0.8,)},
        {"optimiser": "apgd"},
        {"optimiser": "apgd", "norm": "l2", "eps": (0.8,), "restarts": 3},
        {"optimiser": "pgd", "gradient": "none"},
        {"optimiser": "square", "steps": 25, "eps": (0.4,)},
    ],
    ids=str,
)
def test_verdicts_are_the_same_image_by_image_for_less(judge, changes):
    whole, _, _, all_rows = attacked(judge[1], early_stop=False, **changes)
    fewer, objective, ball, rows = attacked(judge[1], early_stop=True, **changes)
    fell = (whole.margins <= 0).all(1)
    assert 2 < int(fell.sum()) < 14
    assert torch.equal(whole.margins <= 0, fewer.margins <= 0)
    first = len(whole.fooled) // changes.get("restarts", 2)
    assert whole.fooled[:first] == fewer.fooled[:first]
    assert whole.fooled[-1] == fewer.fooled[-1]
    # a later restart need not fool again what has left
    assert all(a <= b for a, b in zip(whole.fooled, fewer.fooled, strict=True))
    # of those that stand everything is the same, and of those that fell an image that fools
    assert torch.equal(whole.x[~fell], fewer.x[~fell])
    assert torch.equal(whole.margins[~fell], fewer.margins[~fell])
    assert torch.equal(objective.evaluate(fewer.x, 0).margins, fewer.margins)
    assert not torch.equal(whole.x[fell], fewer.x[fell])
    assert float(ball.size(fewer.x).max()) <= ball.eps * (1.0 + 1e-6)
    assert rows < all_rows


def test_nothing_is_computed_once_all_have_fallen(judge):
    _, _, _, rows = attacked(
        judge[1], early_stop=True, n=4, eps=(0.9,), restarts=3, warm_start=False
    )
    _, _, _, most = attacked(
        judge[1], early_stop=False, n=4, eps=(0.9,), restarts=3, warm_start=False
    )
    assert rows < most / 3


def test_a_fresh_attack_leaves_nobody_out(judge):
    def fresh(early_stop):
        on = targets(choose(load_images("digits"), 6, 0), CPU)
        defence = Defence(digits_purifier(SAMPLER), judge[1], CPU, 1, 6)
        how = plan(early_stop=early_stop, fresh_steps=2, fresh_draws=2, targets=1, microbatch=6)
        objective = attack_objective(defence, on, how, how.norm, 0.3)
        found = fresh_attack(objective, Ball(on.x, how.norm, 0.3), how, None, {})
        return torch.cat(list(found.values()))

    assert torch.equal(fresh(True), fresh(False))


class Scripted:
    """An objective of given margins, step by step; the loss is minus their mean."""

    def __init__(self, margins, ids=None, calls=None):
        self.margins, self.calls = margins, [] if calls is None else calls
        self.ids = ids or tuple(range(len(margins[0])))
        self.labels = torch.zeros(len(self.ids))

    def _view(self, x, step, gradient):
        self.calls.append((step, self.ids))
        assert len(x) == len(self.ids) == len(self.labels)
        margins = self.margins[step][list(self.ids)]
        return Evaluation(-margins.mean(1), margins, gradient)

    def select(self, rows):
        return Scripted(self.margins, tuple(self.ids[n] for n in rows.tolist()), self.calls)

    def evaluate(self, x, step):
        return self._view(x, step, None)

    def loss_and_grad(self, x, step):
        return self._view(x, step, x + step)


@pytest.fixture
def scripted():
    nan = torch.nan
    return Scripted(
        [
            torch.tensor([[1.0, -1.0], [0.0, -2.0], [nan, -1.0]]),
            torch.tensor([[-1.0, -3.0], [9.0, 9.0], [nan, -1.0]]),
            torch.tensor([[8.0, 8.0], [9.0, 9.0], [2.0, -1.0]]),
            torch.tensor([[8.0, 8.0], [9.0, 9.0], [-2.0, -1.0]]),
        ]
    )


def test_an_image_leaves_when_all_its_margins_are_at_most_zero(scripted):
    objective, x = EarlyStopping(scripted), torch.arange(3.0).reshape(3, 1, 1, 1) + 1.0
    views = [objective.loss_and_grad(x, step) for step in range(4)]
    last = objective.evaluate(x, 3)
    assert scripted.calls == [(0, (0, 1, 2)), (1, (0, 2)), (2, (2,)), (3, (2,))]
    assert views[1].margins[1].tolist() == [0.0, -2.0]
    assert views[3].margins.tolist() == [[-1.0, -3.0], [0.0, -2.0], [-2.0, -1.0]]
    assert views[3].losses.tolist() == [2.0, 1.0, 1.5]
    assert views[2].gradient.flatten().tolist() == [0.0, 0.0, 5.0]
    assert last.gradient is None
    assert torch.equal(last.margins, views[3].margins)


# --- all attacks of a plan ---------------------------------------------------------------------


def all_attacks(judge, early_stop):
    images = choose(load_images("digits"), 24, 0)
    how = plan(
        early_stop=early_stop, steps=3, restarts=1, eps=(0.2,), microbatch=4, square_queries=10,
        fresh_draws=2, fresh_steps=2, targets=2,
    )  # fmt: skip
    subject = subject_for(digits_purifier(SAMPLER), images, judge, attack=how.model_dump())
    found = AttackResults()
    with deterministic(gradients=True):
        run_attacks(subject, lambda evaluations: None, found, lambda samples: False)
    return found


def test_a_whole_verification_tells_the_same_verdicts_from_fewer_and_larger_groups(judge):
    without, found = all_attacks(judge, early_stop=False), all_attacks(judge, early_stop=True)
    assert len(found.parts) < len(without.parts)
    assert found.evaluations < without.evaluations
    samples, before = found.samples(), without.samples()
    for old, new in zip(before.scored, samples.scored, strict=True):
        assert old.name == new.name
        if old.name.startswith("fresh"):
            continue  # which may keep images of the aligned attack
        labels = before.labels[: len(old.aligned), None]
        assert np.array_equal(old.aligned == labels, new.aligned == labels), old.name
    assert [f.code for f in found.findings] == [f.code for f in without.findings]
    assert without.images == found.images == 24


def test_a_loss_that_cannot_rise_because_all_fell_at_once_is_no_fault(judge):
    made, objective, ball, _ = attacked(judge[1], early_stop=True, n=4, eps=(0.9,))
    assert made.fooled[0] == 1.0
    assert len(set(made.losses)) == 1
    with deterministic(gradients=True):
        assert check_attack(objective, ball, made) == []
