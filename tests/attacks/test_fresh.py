"""The attack under fresh draws: what it reaches, by which draws, and what selects its images."""

from itertools import groupby, pairwise

import numpy as np
import pytest
import torch
from attack_cases import (
    CPU,
    MODELS,
    NORMS,
    Bent,
    Case,
    First,
    defence,
    digits_purifier,
    inside,
    listen,
    normal,
    on,
    plan,
    uniform,
)
from scipy.special import ndtr

from purify_audit.attacks.attack import attack_objective, easier, targets
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.evaluation import clean_labels, score
from purify_audit.attacks.fresh import AIMS, CHAIN_DRAWS, fresh_attack
from purify_audit.attacks.objective import Defence
from purify_audit.images.image_set import choose, load_images
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_classifier
from purify_audit.models.runner import deterministic
from purify_audit.spec.card import ImageSpec

CLASSIFIER = MODELS / "digits-classifier.safetensors"
shipped = pytest.mark.skipif(not CLASSIFIER.is_file(), reason="the shipped models are not here")
SMALL = {"fresh_steps": 5, "fresh_draws": 6, "targets": 3, "draws": 2, "held_out": 3}


# --- closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [False, True])
def test_the_mean_over_draws_is_what_a_normal_distribution_says(norm, targeted):
    """The label is right with probability Φ((margin − eps ‖Aᵀ(w_y − w_j)‖) / (s ‖w_y − w_j‖)).

    Two classes: the direction is the same for every draw, and the best for every aim.
    """
    case = Case(200, 2, 0.03)
    eps = float(case.radii(norm).median())
    apart = (case.w[0] - case.w[1]).norm()
    right = ndtr((case.worst(norm, eps) / (case.purifier.s * apart)).numpy())
    assert 0.3 < right.mean() < 0.7
    assert np.quantile(right, 0.2) < 0.2
    assert np.quantile(right, 0.8) > 0.8
    settings = {"fresh_steps": 10, "fresh_draws": 2, "targets": int(targeted), "held_out": 16}
    how, ball = plan(norm=norm, eps=(eps,), **settings), Ball(case.x, norm, eps)
    objective = attack_objective(case.defence, case.on, how, norm, eps)
    made = fresh_attack(objective, ball, how, None, {})
    assert set(made) == set(AIMS)
    for x in made.values():
        assert inside(ball, x)
        scored = score(case.defence, case.on, ball, "fresh", x, how.aligned(), how.scoring())
        found = scored.held_out == case.labels.numpy()[:, None]
        assert found.shape == (200, 16)
        assert found.mean() == pytest.approx(right.mean(), abs=0.03)
        # image by image, and draw by draw: the images are the optimum for every draw
        assert np.abs(found.mean(1) - right).mean() < 0.1
        for place, draw in enumerate(how.scoring()):
            worst = case.worst(norm, eps, case.shift(draw))
            sure = worst.abs() > 1e-2
            assert (found[:, place] == (worst > 0).numpy())[sure.numpy()].all()
    # clean images, on the same draws
    clean = clean_labels(case.defence, case.on, how)[2] == case.labels.numpy()[:, None]
    first = case.gaps().min(1).values / (case.purifier.s * apart)
    assert clean.mean() == pytest.approx(float(ndtr(first.numpy()).mean()), abs=0.03)


class Residue:
    """The pixels, with the last one replaced by the draw modulo 20."""

    image, randomised, evaluations = ImageSpec(channels=1, height=1, width=2), True, 1

    def __call__(self, x, noise):
        draws = torch.tensor([float(draw % 20) for draw in noise.draws])
        return torch.stack([x[:, :, :, 0], draws[:, None, None].expand(-1, 1, 1)], 3)


class Listed:
    """Margins by (pixel in tenths, draw modulo 20), true class 0; no gradient."""

    classes = 4

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, y):
        chosen = (10.0 * y[:, 0, 0, 0]).round().long().tolist()
        draws = y[:, 0, 0, 1].long().tolist()
        found = [self.rows[pixel][draw] for pixel, draw in zip(chosen, draws)]
        return torch.tensor(found) + 0.0 * y.sum()


def row(label, size=1.0):
    """Logits of one draw: the class `label` ahead by `size`."""
    return [size if n == label else 0.0 for n in range(4)]


def test_each_aim_has_its_own_images():
    """Candidates among which each aim is known; runs go nowhere."""
    usual = [row(0)] * 20
    rows = {
        5: usual,  # the clean image
        # right under 8 draws, the other labels divided: the lowest mean, and yet the most votes
        6: [row(0, 0.1)] * 8 + [row(1)] * 6 + [row(2)] * 6,
        # right under 9 draws, and outvoted
        4: [row(0)] * 9 + [row(1)] * 11,
        # right under 8 draws, and far lower under the worst
        7: [row(0, 5.0)] * 8 + [row(1, 1.5)] * 5 + [row(2, 0.1)] * 7,
    }
    n = 2
    x = torch.full((n, 1, 1, 2), 0.5)
    how = plan(fresh_draws=20, fresh_steps=2, targets=2, microbatch=64)
    objective = attack_objective(
        defence(Residue(), Listed(rows)), on(x, [0] * n), how, "linf", 0.25
    )
    ball, others = Ball(x, "linf", 0.25), {}
    for pixel in (4, 6, 7):
        others[str(pixel)] = x.clone()
        others[str(pixel)][:, :, :, 0] = pixel / 10
    for order in (others, dict(reversed(others.items()))):
        made = fresh_attack(objective, ball, how, None, order)
        chosen = {aim: (10 * z[:, 0, 0, 0]).round().long().tolist() for aim, z in made.items()}
        assert chosen == {"mean": [6] * n, "vote": [4] * n, "worst": [7] * n}
    # without a better candidate the image itself
    made = fresh_attack(objective, ball, how, None, {})
    assert all(torch.equal(z, x) for z in made.values())


def test_a_broken_number_is_no_success():
    rows = {5: [row(0)] * 20, 6: [[torch.nan] * 4] * 20}
    x, how = torch.full((1, 1, 1, 2), 0.5), plan(fresh_draws=20, fresh_steps=1, targets=0)
    objective = attack_objective(defence(Residue(), Listed(rows)), on(x, [0]), how, "linf", 0.25)
    other = x + torch.tensor([0.1, 0.0])
    made = fresh_attack(objective, Ball(x, "linf", 0.25), how, None, {"aligned": other})
    assert torch.equal(made["mean"], x)
    assert torch.equal(made["worst"], x)


# --- draws -------------------------------------------------------------------------------------


def bent(n=6, **changes):
    """Objective, ball and plan of an attack on `Bent`."""
    how = plan(eps=(0.2,), microbatch=16, **SMALL | changes)
    x = uniform(16, 1, 2, 3, seed=6).float()[:n]
    which = defence(Bent(), First(), 16)
    objective = attack_objective(which, on(x, torch.arange(n) % 4), how, "linf", 0.2)
    return objective, Ball(x, "linf", 0.2), how


def runs_of(asked, how):
    """Requests between looks under the selecting draws, run by run; and those looks."""
    looks = [request for request in asked if request.draws == how.selection()]
    runs = [
        list(part)
        for own, part in groupby(asked, lambda request: request.draws != how.selection())
        if own
    ]
    return runs, looks


def test_every_run_has_its_steps_and_half_of_the_draws_if_it_has_a_target(monkeypatch):
    objective, ball, how = bent()
    asked = listen(monkeypatch)
    fresh_attack(objective, ball, how, None, {})
    runs, looks = runs_of(asked, how)
    assert [len(run) for run in runs] == [6, 4, 4, 4]  # gradients, and a look at the last
    assert [{len(request.draws) for request in run} for run in runs] == [{6}, {3}, {3}, {3}]
    for run in runs:
        assert [request.gradient for request in run] == [True] * (len(run) - 1) + [False]
        assert torch.equal(run[0].x, ball.x)
        assert all(inside(ball, request.x) for request in run)
    assert len(looks) == 1 + len(runs)
    assert not any(look.gradient for look in looks)


def test_no_draw_of_a_step_comes_back(monkeypatch):
    """Not in another step or run, nor among those that align, select or score."""
    for changes in ({}, {"fresh_draws": 5, "fresh_steps": 40}):
        objective, ball, how = bent(2, **changes)
        asked = listen(monkeypatch)
        fresh_attack(objective, ball, how, None, {})
        used = [draw for run in runs_of(asked, how)[0] for request in run for draw in request.draws]
        assert len(set(used)) == len(used)
        for others in (how.aligned(), how.selection(), how.scoring()):
            assert set(used).isdisjoint(others)
        assert set(how.selection()).isdisjoint(how.scoring())
        assert max(used) < 2**32


@shipped
def test_runs_go_through_the_one_step_version_and_the_last_through_the_chain(monkeypatch):
    """The last begins at the best image so far."""
    images = targets(choose(load_images("digits"), 3, 0), CPU)
    classifier = load_classifier(read_checkpoint(CLASSIFIER), CPU)
    which = Defence(digits_purifier({"kind": "ddpm", "steps": 3}), classifier, CPU, 1, 8)
    how = plan(eps=(0.15,), **SMALL)
    objective, ball = (
        attack_objective(which, images, how, "linf", 0.15),
        Ball(images.x, "linf", 0.15),
    )
    asked = listen(monkeypatch)
    with deterministic(gradients=True):
        made = fresh_attack(objective, ball, how, easier(objective, how), {})
    runs, looks = runs_of(asked, how)
    assert {look.purifier for look in looks} == {which.purifier}
    *easy, last = runs
    assert len(easy) == 4
    assert {request.purifier.evaluations for run in easy for request in run} == {1}
    assert {request.purifier for request in last} == {which.purifier}
    assert {len(request.draws) for request in last} == {CHAIN_DRAWS}
    best = best_of(looks[: len(runs)], images.labels, "mean")
    for n, place in enumerate(best):
        assert torch.equal(last[0].x[n], looks[place].x[n])
    assert set(made) == set(AIMS)
    used = {draw for run in runs for request in run for draw in request.draws}
    assert used.isdisjoint((*how.aligned(), *how.selection(), *how.scoring()))


# --- selection ---------------------------------------------------------------------------------


def best_of(looks, labels, aim):
    """The look of each image that an aim prefers, by hand; the first of equal ones."""
    chosen = []
    for n, label in enumerate(labels.tolist()):
        keys = []
        for look in looks:
            z = look.logits[n].double()
            others = z.clone()
            others[:, label] = -torch.inf
            margins = z[:, label] - others.max(1).values
            right = float((margins > 0).double().mean())
            votes = torch.bincount(z.argmax(1), minlength=z.shape[1]).double() / len(z)
            rest = votes.clone()
            rest[label] = -1.0
            lowest = margins.sort().values[: -(-len(z) // 4)]
            keys.append(
                {
                    "mean": (right, float(margins.mean())),
                    "worst": (right, float(lowest.mean())),
                    "vote": (float(votes[label] - rest.max()), float(margins.mean())),
                }[aim]
            )
        chosen.append(min(range(len(keys)), key=keys.__getitem__))
    return chosen


@pytest.mark.parametrize("aim", AIMS)
def test_images_are_chosen_by_draws_that_do_nothing_else(aim, monkeypatch):
    """Of the image itself, those of others and the last of each run."""
    objective, ball, how = bent(16, fresh_draws=7, fresh_steps=3)
    other = ball.project(ball.x + 0.2 * normal(*ball.x.shape, seed=5).sign().float())
    asked = listen(monkeypatch)
    made = fresh_attack(objective, ball, how, None, {"aligned": other})
    runs, looks = runs_of(asked, how)
    assert torch.equal(looks[0].x, ball.x)
    assert torch.equal(looks[1].x, other)
    for run, look in zip(runs, looks[2:], strict=True):
        assert torch.equal(run[-1].x, look.x)
        assert not torch.equal(run[-2].x, look.x)
    places = best_of(looks, objective.labels, aim)
    assert len(set(places)) > 2
    for n, place in enumerate(places):
        assert torch.equal(made[aim][n], looks[place].x[n])


def test_steps_go_uphill_under_the_draws_of_their_step(monkeypatch):
    """The gradient is the mean over that step's draws alone."""
    objective, ball, how = bent(4, targets=0)
    asked = listen(monkeypatch)
    fresh_attack(objective, ball, how, None, {})
    (run,), _ = runs_of(asked, how)
    for step, (now, after) in enumerate(pairwise(run)):
        of = attack_objective(objective.defence, on(now.x, objective.labels), how, "linf", 0.2)
        seen = type(of)(of.defence, of.ids, of.labels, lambda _, now=now: now.draws)
        gradient = seen.loss_and_grad(now.x, 0).gradient
        size = 0.2 * 0.5 * (1.0 + np.cos(np.pi * step / how.fresh_steps))
        want = ball.project(now.x + size * gradient.sign())
        torch.testing.assert_close(after.x, want, rtol=0, atol=1e-6)


def test_it_repeats_itself_and_images_do_not_matter_to_each_other():
    def made(n):
        objective, ball, how = bent(n)
        return fresh_attack(objective, ball, how, None, {})

    whole, again, fewer = made(8), made(8), made(3)
    for aim in AIMS:
        assert torch.equal(whole[aim], again[aim])
        assert torch.equal(whole[aim][:3], fewer[aim])


def test_another_seed_has_other_draws():
    objective, ball, how = bent()
    moved = attack_objective(
        defence(Bent(), First(), 16, seed=99), on(ball.x, objective.labels), how, "linf", 0.2
    )
    first, other = (fresh_attack(of, ball, how, None, {}) for of in (objective, moved))
    assert not torch.equal(first["mean"], other["mean"])
