"""The attack's parts by hand, and whole attacks on purifiers whose worst case is known exactly."""

import math

import numpy as np
import pytest
import torch
from attack_cases import (
    CPU,
    LOSSES,
    NORMS,
    SEED,
    Bent,
    Case,
    First,
    Linear,
    Scores,
    bent_attack,
    defence,
    dual,
    grey,
    inside,
    normal,
    on,
    order,
    plan,
    uniform,
)
from oracles import TWO_BUMPS, diffusion_card, draws, perfect_purifier, pixels
from pydantic import ValidationError
from scipy.special import betainc
from torch import nn

from purify_audit.attacks.attack import attack, attack_objective, shorter_chain, targets
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.evaluation import (
    BISECTIONS,
    clean_labels,
    predicted,
    random_direction_flips,
    score,
)
from purify_audit.attacks.gradients import bpda, exact, secant, steps_of
from purify_audit.attacks.losses import loss_rows, margins
from purify_audit.attacks.objective import Evaluation, Objective
from purify_audit.attacks.pgd import BestIterate, pgd
from purify_audit.core.errors import AuditError, PlanError
from purify_audit.core.noise import Noise, Stream
from purify_audit.images.image_set import ImageSet
from purify_audit.models.runner import Stopped
from purify_audit.spec.attack_plan import FRESH, HELD_OUT, PRESETS, SELECTION, AttackPlan
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.samplers import DDIMSampler, DDPMSampler, OneStepSampler, VPSDESampler
from purify_audit.statistics.attack_rows import RUNS

# --- losses ------------------------------------------------------------------------------------

Z = torch.tensor([[1.0, 2.0, 4.0, 3.0]], dtype=torch.float64)


def test_losses_by_hand():
    """z = (1, 2, 4, 3), sorted 4, 3, 2, 1: the scale of DLR is 4 − 2."""
    total = math.log(math.exp(1) + math.exp(2) + math.exp(4) + math.exp(3))
    for label, ce, margin, dlr in (
        (0, total - 1, 3.0, 3.0 / 2.0),
        (1, total - 2, 2.0, 2.0 / 2.0),
        (2, total - 4, -1.0, -1.0 / 2.0),
        (3, total - 3, 1.0, 1.0 / 2.0),
    ):
        labels = torch.tensor([label])
        for loss, want in (("ce", ce), ("margin", margin), ("dlr", dlr)):
            assert loss_rows(Z, labels, loss).tolist() == pytest.approx([want])
        assert margins(Z, labels).tolist() == [-margin]


def test_losses_are_row_by_row():
    z, labels = normal(7, 5), torch.arange(7) % 5
    for loss in LOSSES:
        rows = loss_rows(z, labels, loss)
        assert rows.shape == (7,)
        for n in range(7):
            alone = loss_rows(z[n : n + 1], labels[n : n + 1], loss)
            torch.testing.assert_close(alone[0], rows[n], rtol=1e-14, atol=0)


def test_dlr_knows_neither_scale_nor_shift():
    z, labels = normal(9, 6), torch.arange(9) % 6
    want = loss_rows(z, labels, "dlr")
    for scale, shift in ((1e-6, 0.0), (1e6, 3.0), (2.5, -100.0)):
        got = loss_rows(scale * z + scale * shift, labels, "dlr")
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    # the other two do
    assert not torch.allclose(loss_rows(9 * z, labels, "margin"), loss_rows(z, labels, "margin"))
    assert not torch.allclose(loss_rows(9 * z, labels, "ce"), loss_rows(z, labels, "ce"))


def test_dlr_needs_a_third_class():
    z, labels = normal(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least three classes"):
        loss_rows(z, labels, "dlr")
    for loss in ("ce", "margin"):
        assert loss_rows(z, labels, loss).isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_losses(loss):
    z = normal(6, 4).requires_grad_()
    labels = torch.arange(6) % 4
    assert torch.autograd.gradcheck(lambda z: loss_rows(z, labels, loss), (z,))
    (g,) = torch.autograd.grad(loss_rows(z, labels, loss).sum(), z)
    own = g.gather(1, labels[:, None])
    assert (own <= 1e-12).all()  # a lower true logit is a higher loss
    torch.testing.assert_close(g.sum(1), torch.zeros(6).double(), rtol=0, atol=1e-12)  # shift
    if loss == "ce":
        want = torch.softmax(z, 1) - nn.functional.one_hot(labels, 4)
        torch.testing.assert_close(g, want.detach(), rtol=1e-12, atol=1e-14)
    if loss == "margin":
        others = z.detach().scatter(1, labels[:, None], -torch.inf).argmax(1)
        want = nn.functional.one_hot(others, 4) - nn.functional.one_hot(labels, 4)
        assert torch.equal(g, want.double())


@pytest.mark.parametrize("targets", [None, torch.tensor([1, 4])])
def test_equal_logits_are_no_division_by_zero(targets):
    z = torch.zeros(2, 5, requires_grad=True)
    rows = loss_rows(z, torch.tensor([0, 3]), "dlr", targets)
    (g,) = torch.autograd.grad(rows.sum(), z)
    assert rows.tolist() == [0.0, 0.0]
    assert g.isfinite().all()


def test_targeted_losses_by_hand():
    """z = (1, 2, 4, 3): the scale of the targeted DLR is 4 − (2 + 1) / 2."""
    for label, target, gap in ((2, 3, -1.0), (2, 0, -3.0), (0, 2, 3.0), (3, 1, -1.0), (1, 3, 1.0)):
        labels, targets = torch.tensor([label]), torch.tensor([target])
        for loss, want in (
            ("ce", -math.log1p(math.exp(-gap))),
            ("margin", gap),
            ("dlr", gap / 2.5),
        ):
            assert loss_rows(Z, labels, loss, targets).tolist() == pytest.approx([want])


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_targeted_losses(loss):
    z = normal(6, 5).requires_grad_()
    labels, targets = torch.arange(6) % 5, (torch.arange(6) + 2) % 5
    assert torch.autograd.gradcheck(lambda z: loss_rows(z, labels, loss, targets), (z,))
    rows = loss_rows(z, labels, loss, targets)
    (g,) = torch.autograd.grad(rows.sum(), z)
    torch.testing.assert_close(g.sum(1), torch.zeros(6).double(), rtol=0, atol=1e-12)  # shift
    if loss != "dlr":  # whose scale may be the target's or the label's
        want = nn.functional.one_hot(targets, 5) - nn.functional.one_hot(labels, 5)
        gap = z.gather(1, targets[:, None]) - z.gather(1, labels[:, None])
        size = torch.sigmoid(-gap) if loss == "ce" else torch.ones(6, 1)
        torch.testing.assert_close(g, (want * size).detach().double(), rtol=1e-12, atol=1e-14)
    for n in range(6):  # row by row
        one = slice(n, n + 1)
        alone = loss_rows(z[one], labels[one], loss, targets[one])
        torch.testing.assert_close(alone[0], rows[n], rtol=1e-14, atol=0)


def test_a_targeted_loss_of_a_confident_classifier_has_a_gradient():
    """In float32, where the probability of every other class is rounded to 0."""
    z = torch.tensor([[200.0, 0.0, 1.0, 2.0]], requires_grad=True)
    for loss in LOSSES:
        rows = loss_rows(z, torch.tensor([0]), loss, torch.tensor([1]))
        (g,) = torch.autograd.grad(rows.sum(), z)
        assert float(g[0, 1]) > 1e-3


def test_the_targeted_dlr_needs_a_fourth_class():
    z, labels = normal(3, 3), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least four classes"):
        loss_rows(z, labels, "dlr", labels + 1)
    for loss in ("ce", "margin"):
        assert loss_rows(z, labels, loss, labels + 1).isfinite().all()
    assert loss_rows(z, labels, "dlr").isfinite().all()


# --- the ball ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projections_are_in_the_ball_and_stay(norm, dtype):
    x = uniform(40, 3, 4, 4).to(dtype)
    x[0], x[1] = 0.0, 1.0
    ball = Ball(x, norm, 0.2)
    for size in (1e-3, 0.2, 3.0, 1e6):
        z = x + size * normal(*x.shape, seed=2).to(dtype)
        once = ball.project(z)
        assert once.dtype == dtype
        assert inside(ball, once)
        torch.testing.assert_close(ball.project(once), once, rtol=0, atol=2e-7)
    assert torch.equal(ball.project(x), x)


@pytest.mark.parametrize("norm", NORMS)
def test_projections_are_the_nearest_points(norm):
    """Far from the pixel limits; l-inf (a box within a box) near them too."""
    x, eps = grey(30).double(), 0.2
    if norm == "linf":
        x = uniform(30, 3, 4, 4, seed=1)
    ball = Ball(x, norm, eps)
    z = x + 0.15 * normal(*x.shape, seed=2)
    near = ball.project(z)
    assert inside(ball, near)
    gap = (near - z).flatten(1).norm(dim=1)
    assert (gap > 0.1).all()
    for seed in range(200):
        # other points of the ball, from close by to anywhere
        spread = 10.0 ** -(seed % 5)
        other = ball.project(near + spread * normal(*x.shape, seed=seed + 10))
        assert ((other - z).flatten(1).norm(dim=1) >= gap - 1e-12).all()
    if norm == "l2":
        delta = z - x
        want = x + eps * delta / delta.flatten(1).norm(dim=1)[:, None, None, None]
        torch.testing.assert_close(near, want, rtol=0, atol=1e-14)
    else:
        limits = (x - eps).clamp(min=0.0), (x + eps).clamp(max=1.0)
        torch.testing.assert_close(near, torch.clamp(z, *limits), rtol=0, atol=1e-14)


def test_what_is_inside_stays_as_it_is():
    x = grey(5)
    z = x + 0.01 * normal(*x.shape).float()
    for norm in NORMS:
        torch.testing.assert_close(Ball(x, norm, 0.5).project(z), z, rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_uphill_has_length_1_and_rises_most(norm):
    x, g = grey(20), normal(20, 3, 4, 4, seed=3).float()
    up = Ball(x, norm, 0.1).steepest_ascent(g)
    length = up.abs().amax((1, 2, 3)) if norm == "linf" else up.flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.ones(20), rtol=0, atol=1e-6)
    rise = (g * up).flatten(1).sum(1)
    torch.testing.assert_close(rise, dual(norm, g.flatten(1)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_uphill_survives_every_gradient(norm):
    g = normal(8, 1, 4, 4, seed=3).float()
    direction = g.clone()
    g[0], direction[0] = 0.0, 0.0
    g[1], direction[1] = torch.nan, 0.0
    g[2, 0, 0, 0] = direction[2, 0, 0, 0] = 0.0
    g[2, 0, 0, 0] = torch.nan
    g[3, 0, 1, 1], g[3, 0, 2, 2] = torch.inf, -torch.inf
    direction[3, 0, 1, 1] = direction[3, 0, 2, 2] = 0.0
    g[4] *= 1e37
    g[5] *= 1e-30
    g[6] *= 1e-37
    g[7] = g[7].sign() * 3e38
    direction[7] = g[7].sign()
    up = Ball(torch.full_like(g, 0.5), norm, 0.1).steepest_ascent(g)
    assert up.isfinite().all()
    assert torch.equal(up[:2], torch.zeros_like(up[:2]))
    for n in range(2, 8):
        if norm == "linf":
            assert torch.equal(up[n], direction[n].sign())
        else:
            torch.testing.assert_close(up[n], direction[n] / direction[n].norm(), rtol=0, atol=1e-6)


def starts(ball, restart=1, ids=None, seed=SEED):
    ids = tuple(range(len(ball.x))) if ids is None else ids
    noise = Noise(seed, ids, (restart,) * len(ids), Stream.START)
    return ball.start(noise.uniform(0, tuple(ball.x.shape[1:])), noise.uniform(2, ()))


@pytest.mark.parametrize("norm", NORMS)
def test_starts_are_in_the_ball_and_belong_to_seed_image_and_restart(norm):
    ball = Ball(torch.full((4, 3, 4, 4), 0.5), norm, 0.1)
    first = starts(ball)
    assert inside(ball, first)
    assert torch.equal(first, starts(ball))
    for other in (starts(ball, restart=2), starts(ball, seed=1), starts(ball, ids=(4, 5, 6, 7))):
        assert all(not torch.equal(a, b) for a, b in zip(first, other))
    assert torch.equal(starts(ball, ids=(3, 2, 1, 0)), first.flip(0))
    for x in (torch.zeros(4, 3, 4, 4), torch.ones(4, 3, 4, 4)):
        assert inside(Ball(x, norm, 0.1), starts(Ball(x, norm, 0.1)))


def test_starts_fill_the_ball():
    """l-inf: every pixel uniform in ±eps. l2: the length is a uniform share of the radius."""
    x = torch.full((2000, 1, 2, 4), 0.5)
    delta = (starts(Ball(x, "linf", 0.1)) - x).double()
    for moment, want in ((1, 0.0), (2, 0.01 / 3), (4, 1e-4 / 5)):
        found = (delta**moment).mean((0, 1))
        torch.testing.assert_close(found, torch.full_like(found, want), rtol=0.1, atol=0.005)
    ball = Ball(x, "l2", 0.1)
    share = ball.size(starts(ball)) / 0.1
    for quantile in (0.1, 0.5, 0.9):
        assert float(share.quantile(quantile)) == pytest.approx(quantile, abs=0.05)


def test_l2_starts_have_no_preferred_direction():
    x = torch.full((4000, 1, 2, 4), 0.5)
    delta = (starts(Ball(x, "l2", 0.1)) - x).flatten(1).double()
    error = delta.std(0) / math.sqrt(len(x))
    assert (delta.mean(0).abs() < 5 * error).all()


def test_sizes():
    x = torch.zeros(2, 1, 1, 2)
    z = torch.tensor([[0.3, -0.4], [0.0, 0.25]]).reshape(x.shape)
    assert Ball(x, "l2", 1.0).size(z).tolist() == pytest.approx([0.5, 0.25])
    assert Ball(x, "linf", 1.0).size(z).tolist() == pytest.approx([0.4, 0.25])
    assert Ball(x, "l2", 1.0).size(z).dtype == torch.float64


# --- defence and objective ---------------------------------------------------------------------


def aim_for(purifier, classifier, n, k, tick=None, microbatch=64, dtype=torch.float32, **settings):
    c, h, w = purifier.image.shape
    x = uniform(n, c, h, w, seed=2).to(dtype)
    objective = Objective(
        defence=defence(purifier, classifier, microbatch, tick),
        ids=tuple(range(7, 7 + n)),
        labels=torch.arange(n) % 4,
        draws=lambda step: tuple(range(10 * step, 10 * step + k)),
        **settings,
    )
    return objective, x


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gradient", ["exact", "bpda", "none"])
def test_an_elementwise_defence_is_the_same_bits_in_every_microbatch(loss, gradient):
    def same_bits(one, other):
        if loss == "ce":  # exponentials of a vector's tail may differ in the last bit
            return torch.allclose(one, other, rtol=1e-6, atol=1e-6)
        return torch.equal(one, other)

    found = []
    for microbatch in (1, 4, 7, 15, 64):
        objective, x = aim_for(
            Bent(), First(), 5, 3, microbatch=microbatch, loss=loss, gradient=gradient
        )
        climbed, seen, rows = (
            objective.loss_and_grad(x, 2),
            objective.evaluate(x, 2),
            objective.row_gradients(x, 2),
        )
        assert seen.gradient is None
        assert same_bits(seen.losses, climbed.losses)
        assert torch.equal(seen.margins, climbed.margins)
        found.append((climbed.losses, climbed.margins, climbed.gradient, rows))
    for other in found[1:]:
        for one, same in zip(found[0], other):
            assert same_bits(one, same)


class Convolved(nn.Module):
    """A purifier or a classifier whose sums may take another order in another batch."""

    image, randomised, evaluations = ImageSpec(channels=3, height=8, width=8), True, 1

    def __init__(self, out=3, flat=None):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, out, 3, padding=1)
        self.last = nn.Linear(64 * out, 4)
        for k, p in enumerate(self.parameters()):
            p.data = (0.2 * normal(*p.shape, seed=k)).float()

    def forward(self, x, noise=None):
        y = self.two(torch.relu(self.one(x)))
        if noise is None:
            return self.last(y.flatten(1))
        return torch.sigmoid(y + 0.1 * noise.normal(0, tuple(x.shape[1:])))


def test_another_defence_is_the_same_up_to_rounding():
    found = []
    for microbatch in (1, 5, 64):
        objective, x = aim_for(Convolved(), Convolved(), 5, 3, microbatch=microbatch)
        view = objective.loss_and_grad(x, 0)
        found.append((view.losses, view.margins, view.gradient))
    for other in found[1:]:
        for one, same in zip(found[0], other):
            assert float(one.abs().max()) > 1e-3
            torch.testing.assert_close(same, one, rtol=1e-5, atol=1e-6)


class Painted:
    """The image id and the draw of each row, and every call."""

    image, randomised, evaluations = ImageSpec(channels=1, height=2, width=2), True, 5

    def __init__(self):
        self.calls = []

    def __call__(self, x, noise):
        assert len(x) == len(noise)
        self.calls.append(noise)
        rows = [[i, d, 0.0, 0.0] for i, d in zip(noise.images, noise.draws)]
        return torch.tensor(rows).reshape(x.shape) + 0.0 * x


class Flat:
    classes = 4

    def __call__(self, y):
        return y.flatten(1)


@pytest.mark.parametrize("microbatch", [1, 4, 6, 100])
def test_every_row_has_its_own_address(microbatch):
    purifier, ticks = Painted(), []
    which = defence(purifier, Flat(), microbatch, ticks.append)
    logits = which.logits(torch.zeros(3, 1, 2, 2), (40, 7, 23), (5, 90))
    assert logits.shape == (3, 2, 4)
    assert logits[:, :, 0].tolist() == [[40.0] * 2, [7.0] * 2, [23.0] * 2]
    assert logits[:, :, 1].tolist() == [[5.0, 90.0]] * 3
    for noise in purifier.calls:
        assert len(noise) == microbatch  # the last is padded
        assert (noise.seed, noise.stream, noise.device) == (SEED, Stream.PURIFY, CPU)
    # padding is not counted: 6 rows of 5 evaluations
    assert len(ticks) == len(purifier.calls) == -(-6 // microbatch)
    assert sum(ticks) == 30
    assert max(ticks) <= 5 * microbatch


@pytest.mark.parametrize(
    ("gradient", "passes"), [("exact", 3), ("bpda", 1), ("none", 2), ("surrogate", 1)]
)
def test_the_cost_of_a_gradient(gradient, passes):
    """A backward pass counts as one; a surrogate's chain of 2 costs 3 · 2 more."""
    card, ticks = diffusion_card(DDPMSampler(steps=10)), []
    purifier = perfect_purifier(card, TWO_BUMPS)
    short = shorter_chain(purifier, 2) if gradient == "surrogate" else None
    objective, x = aim_for(
        purifier, Flat(), 3, 2, ticks.append, gradient=gradient, surrogate=short, microbatch=4
    )
    objective.evaluate(x, 0)
    assert sum(ticks) == 6 * 10
    ticks.clear()
    objective.loss_and_grad(x, 0)
    each = passes * 10 + (6 if short else 0)
    assert sum(ticks) == 6 * each
    assert objective.gradient_evaluations == each


@pytest.mark.parametrize("loss", LOSSES)
def test_means_over_draws_are_of_losses_and_of_their_gradients(loss):
    objective, x = aim_for(Bent(), First(), 4, 3, dtype=torch.float64, loss=loss)
    view, rows = objective.loss_and_grad(x, 1), objective.row_gradients(x, 1)
    assert rows.shape == (4, 3, *x.shape[1:])
    torch.testing.assert_close(view.gradient, rows.mean(1), rtol=0, atol=0)
    leaf = x.clone().requires_grad_()
    losses, gaps = [], []
    for draw in (10, 11, 12):
        y = Bent()(leaf, Noise(SEED, objective.ids, (draw,) * 4))
        losses.append(loss_rows(First()(y), objective.labels, loss))
        gaps.append(margins(First()(y), objective.labels).detach())
    mean = torch.stack(losses).mean(0)
    (g,) = torch.autograd.grad(mean.sum(), leaf)
    torch.testing.assert_close(view.losses, mean.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(view.gradient, g, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(view.margins, torch.stack(gaps, 1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gradient", ["exact", "bpda", "none"])
def test_an_objective_towards_classes_has_their_loss_and_the_true_margins(loss, gradient):
    objective, x = aim_for(Bent(), First(), 4, 3, dtype=torch.float64, loss=loss, gradient=gradient)
    targets = (objective.labels + torch.tensor([1, 2, 3, 1])) % 4
    towards = objective.towards(targets)
    seen, free = towards.loss_and_grad(x, 1), objective.loss_and_grad(x, 1)
    assert torch.equal(seen.margins, free.margins)
    assert torch.equal(seen.losses, towards.evaluate(x, 1).losses)
    assert not torch.equal(seen.losses, free.losses)
    rows = [
        loss_rows(
            First()(Bent()(x, Noise(SEED, objective.ids, (draw,) * 4))),
            objective.labels, loss, targets,
        )
        for draw in (10, 11, 12)
    ]  # fmt: skip
    torch.testing.assert_close(seen.losses, torch.stack(rows).mean(0), rtol=1e-12, atol=1e-14)
    if gradient == "exact":
        step = 1e-6 * seen.gradient
        change = towards.evaluate(x + step, 1).losses - seen.losses
        slope = (step * seen.gradient).flatten(1).sum(1)
        torch.testing.assert_close(change, slope, rtol=1e-3, atol=1e-12)
    again = towards.towards(None)
    assert again.targets is None
    assert torch.equal(again.evaluate(x, 1).losses, free.losses)


@pytest.mark.parametrize("targeted", [False, True])
def test_some_images_of_an_objective_are_what_they_were(targeted):
    objective, x = aim_for(Bent(), First(), 5, 3)
    if targeted:
        objective = objective.towards((objective.labels + torch.tensor([1, 2, 3, 1, 2])) % 4)
    rows = torch.tensor([4, 0, 2])
    part, whole = objective.select(rows), objective.loss_and_grad(x, 1)
    assert part.ids == tuple(objective.ids[n] for n in (4, 0, 2))
    assert torch.equal(part.labels, objective.labels[rows])
    seen = part.loss_and_grad(x[rows], 1)
    for name in ("losses", "margins", "gradient"):
        assert torch.equal(getattr(seen, name), getattr(whole, name)[rows])


@pytest.mark.parametrize("kind", ["exact", "bpda", "none", "surrogate"])
def test_an_objective_takes_the_gradient_it_is_told_to(kind):
    card = diffusion_card(DDPMSampler(steps=8, clip=False, clamp=False))
    purifier = perfect_purifier(card, TWO_BUMPS)
    short = shorter_chain(purifier, 3)
    objective, x = aim_for(
        purifier, Flat(), 3, 2, dtype=torch.float64, gradient=kind, surrogate=short, reach=0.1
    )
    rows, seen = objective.row_gradients(x, 0), objective.loss_and_grad(x, 0)

    def head(y):
        return loss_rows(Flat()(y), objective.labels, "margin"), Flat()(y)

    for place, draw in enumerate((0, 1)):
        noise = Noise(SEED, objective.ids, (draw,) * 3)
        want = {
            "exact": lambda: exact(steps_of(purifier, noise), head, x),  # noqa: B023
            "bpda": lambda: bpda(steps_of(purifier, noise), head, x),  # noqa: B023
            "none": lambda: secant(lambda z: purifier(z, noise), head, x, 0.1),  # noqa: B023
            "surrogate": lambda: exact(steps_of(short, noise), head, x),  # noqa: B023
        }[kind]()
        torch.testing.assert_close(rows[:, place], want.at_input, rtol=1e-11, atol=1e-13)
        # the verdict is always the whole chain's
        gap = margins(Flat()(purifier(x, noise)), objective.labels)
        torch.testing.assert_close(seen.margins[:, place], gap, rtol=1e-11, atol=1e-13)


def test_being_out_of_memory_is_a_sentence():
    def purifier(x, noise):
        raise torch.OutOfMemoryError

    purifier.evaluations = 1
    with pytest.raises(AuditError, match="smaller --microbatch"):
        defence(purifier, Flat()).logits(torch.zeros(1, 1, 2, 2), (0,), (0,))


# --- projected gradient ascent -----------------------------------------------------------------


class Toy:
    """A loss of images with its gradient; the margin is minus the loss."""

    def __init__(self, loss):
        self.loss, self.calls, self.images = loss, [], []

    def evaluate(self, x, step):
        return self._view(x, step, "look")

    def loss_and_grad(self, x, step):
        return self._view(x, step, "climb")

    def _view(self, x, step, what):
        self.calls.append((what, step))
        self.images.append(x.clone())
        leaf = x.detach().clone().requires_grad_()
        losses = self.loss(leaf)
        (g,) = torch.autograd.grad(losses.sum(), leaf)
        return Evaluation(
            losses.detach(), -losses.detach()[:, None], g if what == "climb" else None
        )


@pytest.mark.parametrize("norm", NORMS)
def test_the_step_size_falls_along_half_a_cosine(norm):
    """In a ball too large to matter, on a linear loss: all steps go one way."""
    w, x = normal(2, 1, 3, 3, seed=4), torch.full((2, 1, 3, 3), 0.5, dtype=torch.float64)
    toy, steps = Toy(lambda z: (w * z).flatten(1).sum(1)), 6
    found = pgd(toy, Ball(x, norm, 10.0), x, steps, 0.03)
    assert toy.calls == [("climb", k) for k in range(steps)] + [("look", steps)]
    up = w.sign() if norm == "linf" else w / w.flatten(1).norm(dim=1)[:, None, None, None]
    walked = 0.0
    for k, z in enumerate(toy.images):
        torch.testing.assert_close(z, x + walked * up, rtol=0, atol=1e-12)
        walked += 0.03 * 0.5 * (1.0 + math.cos(math.pi * k / steps))
    assert torch.equal(found.x, toy.images[-1])
    assert torch.equal(found.last, toy.images[-1])
    assert found.losses == pytest.approx([float(toy.loss(z).mean()) for z in toy.images])
    assert len(found.fooled) == steps + 1


@pytest.mark.parametrize("norm", NORMS)
def test_every_iterate_is_in_the_ball_and_an_image(norm):
    x, w = uniform(6, 3, 4, 4, seed=1).float(), (normal(6, 3, 4, 4, seed=2)).float()
    toy, ball = Toy(lambda z: torch.sin(9.0 * (w * z).flatten(1).sum(1))), Ball(x, norm, 0.3)
    found = pgd(toy, ball, starts(ball), 25, 0.3)
    for z in (*toy.images, found.x):
        assert inside(ball, z)


def test_the_best_image_is_kept_row_by_row():
    """Steps much too large, on a wave: later iterates are worse than earlier ones."""
    x, w = grey(8, (1, 2, 2)).double(), normal(8, 1, 2, 2, seed=3)
    toy = Toy(lambda z: torch.sin(30.0 * (w * z).flatten(1).sum(1)) - 0.9)
    found = pgd(toy, Ball(x, "linf", 0.2), x, 9, 0.2)
    losses = torch.stack([toy.loss(z) for z in toy.images])
    best = losses.argmax(0)
    assert len(set(best.tolist())) > 1
    assert int(best.min()) < 9
    for n in range(8):
        assert torch.equal(found.x[n], toy.images[int(best[n])][n])
        assert float(found.margins[n, 0]) == -float(losses[best[n], n])
    assert torch.equal(found.last, toy.images[-1])
    seen = [float((losses[: k + 1].max(0).values >= 0).double().mean()) for k in range(10)]
    assert list(found.fooled) == pytest.approx(seen)
    assert 0.0 < found.fooled[-1] < 1.0


def test_more_draws_fooled_come_before_a_lower_mean_margin():
    images = [torch.full((1, 1, 1, 1), v) for v in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    best = BestIterate(images[0])
    for image, seen, want in (
        (1, [0.5, 0.5, 0.5], 1),
        (2, [0.5, 0.5, 0.4], 2),  # lower on average
        (3, [9.0, 9.0, -0.1], 3),  # a draw fooled
        (4, [0.1, 0.1, 0.1], 3),  # none fooled, though lower
        (5, [9.0, 9.0, -0.05], 3),  # as many fooled, not lower
        (4, [8.0, -0.1, 9.0], 4),
        (1, [torch.nan, -5.0, -5.0], 1),  # more fooled, the rest broken
        (2, [torch.nan, torch.nan, -5.0], 1),
    ):
        best.keep(images[image], torch.tensor([seen]))
        assert torch.equal(best.x, images[want])
    assert best.share() == pytest.approx(2 / 3)


# --- whole attacks on linear defences: the worst case is known ---------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("optimiser", ["pgd", "apgd"])
@pytest.mark.parametrize(("loss", "classes"), [("margin", 5), ("dlr", 5), ("ce", 2)])
@pytest.mark.parametrize("s", [0.0, 0.03])
def test_the_robust_accuracy_of_a_linear_defence_is_reached(norm, optimiser, loss, classes, s):
    """max over classes of a linear function: aligned, the draw only shifts it.

    (Of several classes cross-entropy follows a mean, and does not get there.)
    """
    case = Case(200, classes, s)
    shift = case.shift(0)
    eps = 1.02 * float(case.radii(norm, shift).median())
    worst = case.worst(norm, eps, shift)
    exactly = float((worst > 0).double().mean())
    assert 0.3 < exactly < 0.7
    how = plan(norm=norm, eps=(eps,), optimiser=optimiser, loss=loss, steps=20, restarts=4)
    ball = Ball(case.x, norm, eps)
    made = attack(attack_objective(case.defence, case.on, how, norm, eps), ball, how)
    assert inside(ball, made.x)
    assert 0.3 < float(made.x.min()) < float(made.x.max()) < 0.7  # pixel limits are far
    found = float((made.margins[:, 0] > 0).double().mean())
    assert found == pytest.approx(exactly, abs=0.01)
    gap = made.margins[:, 0].double() - worst
    assert float(gap.min()) > -1e-5  # nothing is below what is possible
    if loss != "dlr":  # which is low where the third class is near, too
        assert float((gap < 1e-4).double().mean()) > 0.95
    assert made.fooled[-1] == pytest.approx(1.0 - found)
    scored = score(case.defence, case.on, ball, "aligned", made.x, how.aligned())
    right = scored.aligned[:, 0] == case.labels.numpy()
    assert right.mean() == pytest.approx(found)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["exact", "none"])
def test_a_gradient_by_one_difference_is_as_good_where_j_is_symmetric(norm, kind):
    case = Case(60, 2)
    case.purifier.a.copy_((case.a + case.a.T) / 2)
    eps = 1.001 * float(case.radii(norm).median())
    how = plan(norm=norm, eps=(eps,), gradient=kind)
    objective = attack_objective(case.defence, case.on, how, norm, eps)
    made = attack(objective, Ball(case.x, norm, eps), how)
    torch.testing.assert_close(
        made.margins[:, 0].double(), case.worst(norm, eps), rtol=0, atol=1e-4
    )


# --- restarts, draws and what is kept ----------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["pgd", "apgd", "square"])
@pytest.mark.parametrize("norm", NORMS)
def test_margins_are_those_of_the_images_returned(optimiser, norm):
    objective, ball, _, made, _ = bent_attack(norm=norm, optimiser=optimiser, restarts=3, steps=8)
    assert inside(ball, made.x)
    assert torch.equal(objective.evaluate(made.x, 0).margins, made.margins)
    assert made.fooled[-1] == float((made.margins <= 0).double().mean())
    assert list(made.fooled) == sorted(made.fooled)
    assert 0.0 < made.fooled[-1] < 1.0
    looks = 8 if optimiser == "square" else 9
    assert len(made.fooled) == len(made.losses) == 3 * looks


@pytest.mark.parametrize("optimiser", ["pgd", "apgd", "square"])
def test_more_restarts_never_worsen(optimiser):
    before, better = None, 0
    for restarts in (1, 2, 4, 8):
        made = bent_attack(12, 3, optimiser=optimiser, restarts=restarts, steps=3, eps=0.3)[3]
        now = order(made.margins)
        if before is not None:
            assert all(a >= b for a, b in zip(now, before))
            better += sum(a > b for a, b in zip(now, before))
        before = now
    assert better > 0


def test_the_first_restart_starts_from_the_image_the_others_at_random():
    objective, ball, how, _, passes = bent_attack(restarts=3, steps=4)
    every = how.steps + 1
    assert len(passes) == 3 * every
    assert torch.equal(passes[0][0], ball.x)
    for restart in (1, 2):
        begun = passes[restart * every][0]
        assert torch.equal(begun, starts(ball, restart, objective.ids))
        assert not torch.equal(begun, ball.x)


def test_an_aligned_attack_sees_its_own_draws_only():
    *_, passes = bent_attack(k=3, restarts=2)
    assert {draws for _, draws in passes} == {(0, 1, 2)}


@pytest.mark.parametrize("optimiser", ["pgd", "apgd", "square"])
def test_an_independent_attack_begins_elsewhere(optimiser):
    objective, ball, how, made, passes = bent_attack(optimiser=optimiser, restarts=2, steps=4)
    begun = [passes[place][0] for place in (0, len(passes) // 2)]
    objective.defence.purifier.seen.clear()
    other = attack(objective, ball, how, independent=True)
    passes = objective.defence.purifier.passes(len(ball.x))
    for place in (0, len(passes) // 2):
        assert inside(ball, passes[place][0])
        assert not any(torch.equal(passes[place][0], x) for x in begun)
    assert not torch.equal(made.x, other.x)
    assert torch.equal(other.x, attack(objective, ball, how, independent=True).x)


@pytest.mark.parametrize("optimiser", ["pgd", "apgd", "square", "portfolio"])
def test_images_of_other_attacks_are_kept_where_they_are_better(optimiser):
    """Image by image the better of the two, and it is said which."""
    objective, ball, how, alone, _ = bent_attack(12, 2, optimiser=optimiser, steps=2, eps=0.3)
    x = ball.project(ball.x + 0.3 * normal(*ball.x.shape, seed=5).sign().float())
    offered = objective.evaluate(x, 0).margins
    made = attack(objective, ball, how, {"bare": x})
    assert torch.equal(objective.evaluate(made.x, 0).margins, made.margins)
    theirs = made.made_by == RUNS.index("bare")
    assert 0 < int(theirs.sum()) < 12
    assert torch.equal(made.x[theirs], x[theirs])
    before, now = order(alone.margins), order(made.margins)
    for n, key in enumerate(order(offered)):
        assert now[n] >= key or now[n][0] == 2  # of an image that fell no more is asked
        if optimiser != "portfolio":  # whose runs begin at the best image so far
            assert now[n] == max(key, before[n])
            assert bool(theirs[n]) == (key > before[n])
    assert made.fooled[-1] == float((made.margins <= 0).double().mean())


@pytest.mark.parametrize("optimiser", ["pgd", "apgd", "square"])
def test_attacks_repeat_themselves_and_images_do_not_matter_to_each_other(optimiser):
    settings = {"optimiser": optimiser, "restarts": 2, "steps": 6}
    *_, made, _ = bent_attack(8, 2, **settings)
    *_, again, _ = bent_attack(8, 2, **settings)
    *_, fewer, _ = bent_attack(3, 2, **settings)
    assert torch.equal(made.x, again.x)
    assert torch.equal(made.x[:3], fewer.x)
    assert torch.equal(made.margins, again.margins)


def test_a_wish_to_stop_ends_the_attack():
    def tick(evaluations):
        left[0] -= evaluations
        if left[0] < 0:
            raise Stopped

    case, left = Case(4, 3), [30]
    which, how = defence(case.purifier, case.scores, 4, tick), plan(steps=1000)
    with pytest.raises(Stopped):
        attack(attack_objective(which, case.on, how, "linf", 0.1), Ball(case.x, "linf", 0.1), how)


# --- plans -------------------------------------------------------------------------------------


def test_draws_of_a_plan_never_overlap():
    small = plan(fresh_steps=7, fresh_draws=5, targets=3, draws=4)
    for how in (small, plan(fresh_steps=2, fresh_draws=65536, draws=65536, held_out=65536)):
        runs = how.targets + 2  # one without a target, and one through the whole chain
        groups = [how.aligned(), how.scoring(), how.selection()]
        groups += [how.fresh(r, step) for r in range(runs) for step in range(how.fresh_steps + 1)]
        every = [draw for group in groups for draw in group]
        assert len(set(every)) == len(every)
        assert min(every) == 0
        assert max(every) < 2**32
    assert how.aligned() == tuple(range(65536))
    assert how.scoring()[0] == HELD_OUT
    assert how.selection()[0] == SELECTION
    assert how.fresh(0, 0)[0] == FRESH


def test_the_most_draws_a_plan_may_ask_for_are_addresses():
    most = {"fresh_steps": 2**15 - 1, "fresh_draws": 2**10}
    how = plan(**most, targets=62)
    last = how.fresh(how.targets + 1, how.fresh_steps)
    assert max(last) < 2**32
    Noise(0, (0,) * 2**10, last)
    with pytest.raises(ValidationError, match="more draws than there are addresses"):
        plan(**most, targets=63)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"eps": ()}, "eps"),
        ({"eps": (0.1, 0.2, 0.1)}, "a radius is given twice"),
        ({"eps": (0.1, 1.5)}, "an l-inf radius of 1.5 is more than the pixel range"),
        ({"eps": (0.0,)}, "eps"),
        ({"eps": (math.nan,)}, "eps"),
        ({"norm": "l0"}, "norm"),
        ({"optimiser": "adam"}, "optimiser"),
        ({"loss": "mse"}, "loss"),
        ({"gradient": "score"}, "gradient"),
        ({"steps": 0}, "steps"),
        ({"draws": 0}, "draws"),
        ({"draws": 65537}, "draws"),
        ({"targets": -1}, "targets"),
        ({"fresh_draws": 0}, "fresh_draws"),
        ({"fresh_draws": 65537}, "fresh_draws"),
        ({"fresh_steps": 0}, "fresh_steps"),
        ({"restarts": 0}, "restarts"),
        ({"held_out": 0}, "held_out"),
        ({"held_out": 65537}, "held_out"),
        ({"square_queries": 0}, "square_queries"),
        ({"surrogate_steps": 0}, "surrogate_steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": 2.5}, "step_size"),
        ({"microbatch": 0}, "microbatch"),
        ({"queries": 3}, "queries"),
    ],
)
def test_plans_that_make_no_sense_are_refused(changes, told):
    with pytest.raises(ValidationError, match=told):
        plan(**changes)


def test_l2_radii_may_exceed_1_and_presets_are_plans():
    assert plan(norm="l2", eps=(1.5, 3.0)).eps == (1.5, 3.0)
    assert (
        AttackPlan.model_validate(plan().model_dump(exclude={"optimiser"})).optimiser == "portfolio"
    )
    for preset in PRESETS.values():
        assert plan(**preset["attack"]).loss == "margin"


# --- objectives and shorter chains -------------------------------------------------------------


def test_the_reach_of_a_difference_is_a_quarter_of_a_typical_perturbation():
    case = Case(2, 3)
    for norm, want in (("linf", 0.25 * 0.04 * math.sqrt(48)), ("l2", 0.25 * 0.04)):
        objective = attack_objective(case.defence, case.on, plan(norm=norm), norm, 0.04)
        assert objective.reach == pytest.approx(want)


def test_an_objective_is_what_the_plan_says():
    case, how = Case(3, 4), plan(draws=3, loss="dlr", gradient="bpda")
    objective = attack_objective(case.defence, case.on, how, "linf", 0.1)
    assert (objective.loss, objective.gradient, objective.surrogate) == ("dlr", "bpda", None)
    assert (objective.ids, objective.defence) == (case.on.ids, case.defence)
    assert torch.equal(objective.labels, case.labels)
    assert {objective.draws(step) for step in (0, 1, 99)} == {(0, 1, 2)}


def test_a_surrogate_needs_a_chain():
    case, how = Case(2, 3), plan(gradient="surrogate", surrogate_steps=3)
    with pytest.raises(PlanError, match="needs a diffusion purifier"):
        attack_objective(case.defence, case.on, how, "linf", 0.1)
    purifier = perfect_purifier(diffusion_card(DDPMSampler()), TWO_BUMPS)
    which = defence(purifier, Flat())
    objective = attack_objective(which, on(torch.zeros(2, 1, 2, 2), [0, 1]), how, "linf", 0.1)
    assert objective.surrogate.evaluations == 3
    assert objective.defence.purifier.evaluations == 30


@pytest.mark.parametrize(
    ("sampler", "steps", "want"),
    [
        (DDPMSampler(), 5, 5),
        (DDPMSampler(steps=10), 5, 5),
        (DDPMSampler(stride=7, variance="fixed-large"), 3, 3),
        (DDPMSampler(steps=4), 5, 4),
        (DDPMSampler(stride=10), 3, 3),
        (DDIMSampler(rounds=2, eta=0.5), 4, 8),
        (DDIMSampler(rounds=2, steps=3), 3, 6),
        (VPSDESampler(), 6, 6),
        (VPSDESampler(steps=6), 8, 6),
        (OneStepSampler(), 1, 1),
        (OneStepSampler(rounds=3), 1, 3),
    ],
    ids=str,
)
def test_shorter_chains(sampler, steps, want):
    purifier = perfect_purifier(diffusion_card(sampler), TWO_BUMPS)
    before = purifier.evaluations
    short = shorter_chain(purifier, steps)
    assert short.evaluations == want
    assert purifier.evaluations == before
    assert (short is purifier) == (want == before)
    assert short.network is purifier.network
    # the same purifier otherwise, and it runs
    changed = {"steps", "stride"}
    same = [p.card.sampler.model_dump(exclude=changed) for p in (short, purifier)]
    assert same[0] == same[1]
    assert short.card.t_star == purifier.card.t_star
    again = type(short.card).model_validate_json(short.card.model_dump_json())
    assert again == short.card  # a card that could have been written
    assert short(pixels(1, short.card), draws(1)).isfinite().all()


# --- scoring -----------------------------------------------------------------------------------


class Told:
    """Logits that say: this draw's class. Draw d has class d mod 4."""

    classes = 4

    def __call__(self, y):
        return nn.functional.one_hot(y.flatten(1)[:, 1].long() % 4, 4).float() * 2.0


def test_labels_and_margins_of_clean_images_by_draw():
    how = plan(draws=3, held_out=5)
    which, three = defence(Painted(), Told(), 7), on(torch.zeros(3, 1, 2, 2), [0, 1, 3])
    aligned, size, held_out = clean_labels(which, three, how)
    assert aligned.tolist() == [[0, 1, 2]] * 3
    assert size.tolist() == [[2.0, -2.0, -2.0], [-2.0, 2.0, -2.0], [-2.0, -2.0, -2.0]]
    assert held_out.tolist() == [[d % 4 for d in how.scoring()]] * 3
    assert (aligned.dtype, held_out.dtype) == (np.int64, np.int64)


def test_no_draws_no_labels():
    which = defence(Painted(), Flat())
    found = predicted(which, torch.zeros(3, 1, 2, 2), (0, 1, 2), ())
    assert (found.shape, found.dtype) == ((3, 0), np.int64)


@pytest.mark.parametrize("norm", NORMS)
def test_what_a_score_says_of_a_linear_defence(norm):
    """The change is A δ whatever the draw; labels under each set of draws are the closed form's."""
    case, eps = Case(20, 3, 0.2), 0.05
    x = Ball(case.x, norm, eps).project(case.x + 0.05 * normal(*case.x.shape, seed=8).float())
    how = plan(norm=norm, draws=2, held_out=3)
    draws = how.aligned(), how.scoring()
    scored = score(case.defence, case.on, Ball(case.x, norm, eps), "me", x, *draws, whole=True)
    less = score(case.defence, case.on, Ball(case.x, norm, eps), "me", x, *draws)
    for name in ("change_l2", "change_linf", "fooling_radius"):  # not measured
        assert np.isnan(getattr(less, name)).all()
        assert getattr(less, name).shape == getattr(scored, name).shape
    for name in ("images", "aligned", "held_out", "delta_l2", "delta_linf", "made_by"):
        assert np.array_equal(getattr(less, name), getattr(scored, name))
    assert (scored.made_by == -1).all()
    assert (scored.name, scored.eps) == ("me", eps)
    assert np.array_equal(scored.images, x.numpy())
    delta = (x.double() - case.x.double()).flatten(1)
    change = delta @ case.a.T
    for got, want in (
        (scored.delta_l2, delta.norm(dim=1)),
        (scored.delta_linf, delta.abs().amax(1)),
    ):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-12)
    for got, want in (
        (scored.change_l2, change.norm(dim=1)),
        (scored.change_linf, change.abs().amax(1)),
    ):
        assert got.shape == (20, 2)
        np.testing.assert_allclose(got, want.numpy()[:, None].repeat(2, 1), rtol=1e-4)
    for found, which in ((scored.aligned, how.aligned()), (scored.held_out, how.scoring())):
        for place, draw in enumerate(which):
            z = (x.double().flatten(1) @ case.a.T + case.shift(draw)) @ case.w.T + case.b
            assert np.array_equal(found[:, place], z.argmax(1).numpy())


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_falls_at_its_distance_from_the_boundary(norm):
    """margin / ‖Aᵀ w‖, from above and to 1/64 of the way; infinite beyond, 0 where it is wrong."""
    case = Case(60, 2)
    radii, eps = case.radii(norm), float(case.radii(norm).quantile(0.8))
    labels = case.labels.clone()
    labels[:5] = 1 - labels[:5]  # wrong from the start
    ball, targets_ = Ball(case.x, norm, eps), on(case.x, labels)
    pull = ((case.w[1] - case.w[0]) @ case.a).reshape(1, 3, 4, 4)
    pull = pull * (1 - 2 * case.labels)[:, None, None, None]
    x = (case.x.double() + eps * ball.steepest_ascent(pull)).float()
    falls = score(case.defence, targets_, ball, "x", x, (0,), whole=True).fooling_radius
    assert falls.dtype == np.float64
    assert (falls[:5] == 0.0).all()
    reached = (radii < eps).numpy()
    reached[:5] = False
    apart = falls[reached] - radii.numpy()[reached]
    assert 30 < reached.sum() < 55
    assert (apart > -1e-6).all()
    assert (apart < eps / 2**BISECTIONS + 1e-6).all()
    beyond = ~reached
    beyond[:5] = False
    assert np.isinf(falls[beyond]).all()


def test_an_image_falls_where_half_of_its_draws_do():
    """Four draws: the second smallest of their radii; the third does not matter."""
    case = Case(60, 2, 0.1)
    radii = torch.stack([case.radii("linf", case.shift(draw)) for draw in range(4)], 1)
    second = radii.sort(1).values[:, 1].numpy()
    eps = float(np.quantile(second, 0.8))
    pull = ((case.w[1] - case.w[0]) @ case.a).reshape(1, 3, 4, 4)
    pull = pull * (1 - 2 * case.labels)[:, None, None, None]
    ball = Ball(case.x, "linf", eps)
    x = (case.x.double() + eps * ball.steepest_ascent(pull)).float()
    falls = score(case.defence, case.on, ball, "x", x, (0, 1, 2, 3), whole=True).fooling_radius
    assert np.array_equal(falls == 0.0, second < 0)
    assert np.array_equal(np.isinf(falls), second > eps)
    between = (second > 0) & (second < eps)
    assert between.sum() > 20
    assert (second < 0).sum() > 1
    apart = falls[between] - second[between]
    assert apart.min() > -1e-6
    assert apart.max() < eps / 2**BISECTIONS + 1e-6


# --- random directions -------------------------------------------------------------------------


def cap(t, d):
    """Share of the unit sphere in d dimensions with first coordinate above t ≥ 0."""
    return 0.5 * betainc((d - 1) / 2, 0.5, 1.0 - np.minimum(t, 1.0) ** 2)


@pytest.mark.parametrize("norm", NORMS)
def test_random_directions_flip_a_linear_decision_in_a_cap(norm):
    case, eps = Case(300, 2, 0.02), 0.1
    case.x.copy_(0.5 + (case.x - 0.5) * 0.9)  # far enough from the pixel limits
    images = ImageSet(case.x.numpy().copy(), None, np.arange(100, 400), "grey")
    given = eps / math.sqrt(48) if norm == "linf" else eps
    identity = Linear(torch.eye(48).double())
    bare_scores = Scores(case.w, -case.w.sum(1) * 0.5)
    found = random_direction_flips(
        case.defence, defence(identity, bare_scores, 64), images, given, norm
    )
    np.testing.assert_allclose(found.radii, eps * np.array([0.5, 1.0, 2.0, 4.0]), rtol=1e-12)
    shift = case.shift(0)
    for shares, matrix, moved, b in (
        (found.bare, torch.eye(48).double(), 0.0, bare_scores.b),
        (found.purified, case.a, shift, case.b),
    ):
        assert shares.shape == (300, 4)
        assert ((shares >= 0) & (shares <= 1)).all()
        z = (case.x.double().flatten(1) @ matrix.T + moved) @ case.w.T + b
        distance = (z[:, 0] - z[:, 1]).abs() / ((case.w[0] - case.w[1]) @ matrix).norm()
        want = [cap(distance.numpy() / r, 48).mean() for r in found.radii]
        assert 0.01 < want[0] < want[3] - 0.2
        np.testing.assert_allclose(shares.mean(0), want, atol=0.03)
        out_of_reach = distance.numpy()[:, None] > found.radii * 1.0001
        assert out_of_reach.any()
        assert (shares[out_of_reach] == 0.0).all()
    tiny = random_direction_flips(case.defence, case.defence, images, 1e-7, norm)
    assert tiny.bare.max() == tiny.purified.max() == 0.0


def test_targets_are_the_images_on_the_device():
    images = ImageSet(grey(3).numpy(), np.array([2, 0, 1]), np.array([9, 4, 6]), "grey")
    found = targets(images, CPU)
    assert torch.equal(found.x, torch.from_numpy(images.pixels.copy()))
    assert found.labels.tolist() == [2, 0, 1]
    assert found.ids == (9, 4, 6)
