"""The l1 threat model: projection, steps and attacks against solvers and closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, linprog

from purify_audit.attacks import l1
from purify_audit.attacks.apgd import apgd
from purify_audit.attacks.attack import attack, attack_objective, targets
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.objective import Defence, Evaluation
from purify_audit.attacks.pgd import pgd
from purify_audit.attacks.square import square
from purify_audit.audit.api import load_classifier, load_purifier
from purify_audit.core.noise import Noise, Stream
from purify_audit.images.image_set import choose, load_images
from purify_audit.spec.attack_plan import AttackPlan

MODELS = Path(__file__).parents[2] / "models"
AUTOENCODER, CLASSIFIER = (
    MODELS / f"digits-{n}.safetensors" for n in ("autoencoder", "classifier")
)
CPU = torch.device("cpu")


def image(values, dtype=torch.float32):
    return torch.tensor(np.asarray(values), dtype=dtype).reshape(1, 1, 1, -1)


def clean(rng, n):
    """Pixels in [0, 1], some of them at the ends."""
    x, where = rng.uniform(0, 1, n), rng.uniform(0, 1, n)
    return np.where(where < 0.2, 0.0, np.where(where > 0.8, 1.0, x)).astype(np.float32)


def nearest(x, z, eps):
    """The projection by a root finder, from the stationarity of its Lagrangian."""
    delta = z - x
    size, room = np.abs(delta), np.where(delta > 0, 1.0 - x, x)

    def kept(by):
        return np.minimum(np.clip(size - by, 0.0, None), room)

    excess = kept(0.0).sum() - eps
    by = 0.0 if excess <= 0 else brentq(lambda b: kept(b).sum() - eps, 0, size.max(), xtol=1e-15)
    return x + np.sign(delta) * kept(by)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.05, 1.0, 4.0, 1000.0])
def test_projection_is_the_nearest_point(dtype, eps):
    rng = np.random.default_rng(int(eps * 100))
    for spread in (0.05, 1.0, 30.0):
        for _ in range(150):
            x = clean(rng, rng.integers(1, 40))
            z = (x + rng.normal(0, spread, len(x))).astype(np.float32)
            got = l1.project(image(x, dtype), image(z, dtype), eps)
            got = got.double().numpy().ravel()
            want = nearest(x.astype(float), z.astype(float), eps)
            tolerance = 6.1e-8 if dtype == torch.float32 else 1e-10
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
            assert np.abs(got - x).sum() <= eps + 1e-9
            assert got.min() >= 0
            assert got.max() <= 1


def test_no_feasible_point_is_nearer_than_the_projection():
    """(z − p)·(q − p) ≤ 0 for every q of a convex set, by a linear program over the set."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        x, eps = clean(rng, 12).astype(float), rng.uniform(0.1, 3)
        z = x + rng.normal(0, 1, 12)
        p = l1.project(image(x, torch.float64), image(z, torch.float64), eps).numpy().ravel()
        best = linear_optimum(z - p, x, eps)
        assert best + (z - p) @ (x - p) <= 1e-8


def linear_optimum(slope, x, eps, most=np.inf):
    """Largest slope·δ with ‖δ‖₁ ≤ eps, |δ| ≤ most and x + δ in [0, 1], by linear programming."""
    bounds = [(0, min(most, b)) for b in (*(1 - x), *x)]  # up and down
    solved = linprog(
        -np.concatenate((slope, -slope)), np.ones((1, 2 * len(x))), [eps], bounds=bounds
    )
    return -solved.fun


def test_points_of_the_ball_stay_and_a_projection_is_final():
    x = torch.rand(50, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    near = x + 0.01 * (far - x)
    inside = near.clamp(0, 1)
    assert torch.equal(l1.project(x, near, 1000.0), inside)
    once = l1.project(x, far, 3.0)
    torch.testing.assert_close(l1.project(x, once, 3.0), once, rtol=0, atol=0)
    alone = torch.cat([l1.project(x[n : n + 1], far[n : n + 1], 3.0) for n in range(50)])
    assert torch.equal(alone, once)


@pytest.mark.parametrize("entries", [1, 4, 12])
def test_a_step_is_the_optimum_of_a_linear_program(entries):
    rng = np.random.default_rng(entries)
    for _ in range(150):
        z, slope = clean(rng, 12).astype(float), rng.normal(0, 1, 12)
        slope[rng.uniform(0, 1, 12) < 0.2] = 0.0
        size = rng.uniform(0.1, 6)
        one, many = torch.tensor([size]), torch.tensor([entries])
        step = l1.step(image(z, torch.float64), image(slope, torch.float64), one, many)
        step = step.numpy().ravel()
        size = float(one)
        want = linear_optimum(slope, z, size, size / entries)
        assert slope @ step == pytest.approx(want, abs=1e-9)
        assert np.abs(step).sum() <= size + 1e-9
        assert (z + step).min() >= -1e-11
        assert (z + step).max() <= 1 + 1e-11


def test_a_step_without_a_gradient_does_not_move():
    z = torch.full((3, 1, 2, 2), 0.5)
    slope = torch.zeros_like(z)
    slope[1], slope[2] = torch.nan, torch.inf
    step = l1.step(z, slope, torch.ones(3), torch.ones(3, dtype=torch.int64))
    assert torch.equal(step, torch.zeros(3, 1, 2, 2, dtype=torch.float64))


class LinearVictim:
    """Margin w·x + b of each image."""

    def __init__(self, w, b=0.0):
        self.w, self.b = w, b

    def evaluate(self, x, step):
        margin = (self.w * x).flatten(1).sum(1) + self.b
        return Evaluation(-margin, margin[:, None], None)

    def loss_and_grad(self, x, step):
        look = self.evaluate(x, step)
        return Evaluation(look.losses, look.margins, -self.w)


def linear_case(n=12, shape=(3, 6, 6)):
    rng = np.random.default_rng(5)
    x = torch.from_numpy(np.stack([clean(rng, int(np.prod(shape))) for _ in range(n)]))
    w = torch.from_numpy(rng.normal(0, 1, (n, *shape)).astype(np.float32))
    return LinearVictim(w), x.reshape(n, *shape)


@pytest.mark.parametrize("eps", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("optimiser", ["pgd", "apgd"])
def test_attacks_reach_the_worst_case_of_a_linear_classifier(eps, optimiser):
    victim, x = linear_case()
    ball = Ball(x, "l1", eps)
    start = sample(ball, 0)
    run = apgd if optimiser == "apgd" else (lambda *given: pgd(*given, eps))
    for begin in (x, start):
        best = run(victim, ball, begin, 100)
        assert float(ball.size(best.x).max()) <= eps + 1e-6
        for n in range(len(x)):
            w, clear = victim.w[n].numpy().ravel(), x[n].double().numpy().ravel()
            lowest = w @ clear - linear_optimum(-w.astype(float), clear, eps)
            gap = (float(best.margins[n, 0]) - lowest) / (w @ clear - lowest)
            assert -1e-4 <= gap <= (0.15 if optimiser == "apgd" else 0.02)


def test_random_points_are_in_the_ball_and_in_every_direction():
    x = torch.full((2000, 1, 2, 2), 0.5)
    noise = torch.Generator().manual_seed(3)
    ball = Ball(x, "l1", 0.4)
    point = ball.start(torch.rand(x.shape, generator=noise), torch.rand(2000, generator=noise))
    delta = (point - x).double().flatten(1)
    size = ball.size(point)
    assert float(size.max()) <= 0.4
    assert float(size.mean()) == pytest.approx(0.2, abs=0.01)  # a uniform share of the radius
    share = delta.abs() / delta.abs().sum(1, keepdim=True)
    # On the simplex in 4 dimensions a coordinate is beta(1, 3): mean 1/4, mean square 1/10.
    assert share.mean(0).tolist() == pytest.approx([0.25] * 4, abs=0.02)
    assert share.square().mean(0).tolist() == pytest.approx([0.1] * 4, abs=0.02)
    assert delta.sign().mean(0).tolist() == pytest.approx([0.0] * 4, abs=0.1)


class Bowl(LinearVictim):
    """A margin that is not linear: coupled by a random positive matrix, with its own minimum."""

    def __init__(self, n, shape, seed):
        rng = torch.Generator().manual_seed(seed)
        d = int(np.prod(shape))
        root = torch.randn(d, d, generator=rng) / d**0.5
        self.matrix, self.middle = root @ root.T, torch.rand(d, generator=rng)

    def _margin(self, x):
        away = x.flatten(1) - self.middle
        return (away @ self.matrix * away).sum(1)

    def evaluate(self, x, step):
        return Evaluation(-self._margin(x), self._margin(x)[:, None], None)

    def loss_and_grad(self, x, step):
        look = self.evaluate(x, step)
        slope = -2.0 * (x.flatten(1) - self.middle) @ self.matrix
        return Evaluation(look.losses, look.margins, slope.reshape(x.shape))


def test_square_stays_in_the_ball_and_improves():
    victim, x = linear_case()
    ball = Ball(x, "l1", 3.0)
    ids = tuple(range(len(x)))
    found = square(victim, ball, 1, ids, 200)
    assert float(ball.size(found.x).max()) <= 3.0 + 1e-6
    assert found.losses[0] < -float(found.margins.mean())
    again = square(
        LinearVictim(victim.w[3:4]), Ball(x[3:4], "l1", 3.0), 1, (3,), 200
    )  # an image's proposals are the same in every batch
    torch.testing.assert_close(again.x[0], found.x[3], rtol=0, atol=1e-6)


def test_apgd_beats_random_search_with_as_many_evaluations():
    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    victim, ball = Bowl(8, (1, 6, 6), 4), Ball(x, "l1", 2.0)
    found = apgd(victim, ball, x, 40).margins.mean(1)
    random = square(victim, ball, 0, tuple(range(8)), 40).margins.mean(1)
    points = torch.stack(
        [victim.evaluate(sample(ball, query), 0).margins[:, 0] for query in range(40)]
    )
    assert (found < random).all()
    assert (found < points.amin(0)).all()


def test_gradient_attacks_beat_search_on_the_digits():
    """Mean margins: APGD within half a logit of PGD or below, and far below Square."""
    images = targets(choose(load_images("digits"), 32, 0), CPU)
    found = {}
    for optimiser in ("pgd", "apgd", "square"):
        plan = AttackPlan(
            norm="l1",
            eps=(2.0,),
            optimiser=optimiser,
            steps=40,
            draws=1,
            restarts=1,
            held_out=1,
            square_queries=1,
            microbatch=32,
        )
        defence = Defence(
            load_purifier(AUTOENCODER, device="cpu"),
            load_classifier(CLASSIFIER, (1, 8, 8), device="cpu"),
            CPU,
            0,
            32,
        )
        ball = Ball(images.x, "l1", 2.0)
        found[optimiser] = attack(attack_objective(defence, images, plan, "l1", 2.0), ball, plan)
        assert float(ball.size(found[optimiser].x).max()) <= 2.0 + 1e-9
    margin = {name: float(output.margins.mean()) for name, output in found.items()}
    assert margin["apgd"] <= margin["pgd"] + 0.5
    assert margin["apgd"] < margin["square"] - 3.0
    random = attack_objective(defence, images, plan, "l1", 2.0)
    points = [random.evaluate(sample(ball, n), 0).margins.mean(1) for n in range(40)]
    assert (found["apgd"].margins.mean(1) < torch.stack(points).amin(0)).all()


def sample(ball, query):
    noise = Noise(query, tuple(range(len(ball.x))), (0,) * len(ball.x), Stream.START)
    return ball.start(noise.uniform(0, tuple(ball.x.shape[1:])), noise.uniform(2, ()))
