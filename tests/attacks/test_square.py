"""Square Attack: optima known in closed form, and the paper's algorithms written pixel by pixel."""

import math
from fractions import Fraction

import pytest
import torch
from scipy import stats

from purify_audit.attacks.ball import Ball
from purify_audit.attacks.objective import Evaluation
from purify_audit.attacks.square import _bumps, _energy, _inside, _side, _windows, square
from purify_audit.core.noise import Noise, Stream

NORMS = ["linf", "l2"]


class Toy:
    """Margins [k] of image n by a function of one image; no gradient to be had."""

    def __init__(self, margins):
        self.margins = margins
        self.steps, self.images, self.seen = [], [], []

    def evaluate(self, x, step):
        margins = torch.stack([self.margins(n, row) for n, row in enumerate(x)])
        self.steps.append(step)
        self.images.append(x.clone())
        self.seen.append(margins)
        return Evaluation(-margins.mean(1), margins, None)

    def loss_and_grad(self, x, step):
        raise AssertionError("Square Attack asks for no gradient")


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grey(n, *shape):
    return 0.3 + 0.4 * random(n, *shape, seed=1).float()


def linear(weights):
    """Margin w·x of image n with weights [n, c, h, w]."""
    return lambda n, x: (weights[n] * x).sum()[None]


def gains(norm, weights, shape, queries, eps=0.1):
    """Fall of a linear margin of 3 images over the greatest that there is, without clipping."""
    w = weights.expand(3, *shape)
    x = grey(3, *shape)
    found = square(Toy(linear(w)), Ball(x, norm, eps), 7, (4, 5, 6), queries)
    flat = w.flatten(1)
    most = eps * (flat.abs().sum(1) if norm == "linf" else flat.square().sum(1).sqrt())
    return ((w * x).sum((1, 2, 3)) - found.margins[:, 0]) / most


@pytest.mark.parametrize(
    ("shape", "queries"), [((1, 2, 2), 100), ((3, 2, 2), 200), ((1, 8, 8), 800), ((3, 4, 6), 1500)]
)
def test_linf_reaches_the_worst_case_of_a_linear_margin(shape, queries):
    reached = gains("linf", random(3, *shape, seed=2) - 0.5, shape, queries)
    assert (reached - 1).abs().max() < 1e-5


def test_linf_reaches_the_worst_case_of_several_classes():
    x, eps, w = grey(2, 1, 4, 4), 0.05, random(3, 16, seed=5) - 0.5
    b = torch.tensor([0.0, -0.4, -9.0])  # class 0 is the true one, class 1 far the nearest

    def margin(n, row):
        z = w @ row.flatten().double() + b
        return (z[0] - z[1:].max())[None]

    found = square(Toy(margin), Ball(x, "linf", eps), 1, (0, 1), 400)
    clean = x.double().flatten(1) @ (w[0] - w[1]) + 0.4
    worst = clean - eps * (w[0] - w[1]).abs().sum()
    assert (found.margins[:, 0] - worst).abs().max() < 1e-5


def test_linf_reaches_the_worst_case_with_clipped_pixels():
    x, w, eps = random(3, 1, 5, 5, seed=1).float(), random(3, 1, 5, 5, seed=2) - 0.5, 0.3
    end = torch.where(w > 0, (x - eps).clamp(min=0), (x + eps).clamp(max=1))
    assert ((x < eps) & (w > 0)).any()
    found = square(Toy(linear(w)), Ball(x, "linf", eps), 1, (0, 1, 2), 500)
    assert torch.allclose(found.margins[:, 0], (w * end).sum((1, 2, 3)), rtol=0, atol=1e-5)


def test_l2_comes_near_the_worst_case_of_a_linear_margin():
    """Within 15 % where the best direction is a bump.

    Where it is white noise, every window holds what another lacks, and the search ends farther
    off: what is asked for there is far more than a random direction's 1 / sqrt(64).
    """
    bump = torch.zeros(1, 8, 8, dtype=torch.float64)
    bump[0, 1:4, 2:5] = _bumps(3)[0]
    assert gains("l2", bump, (1, 8, 8), 800).min() > 0.85
    white = gains("l2", random(3, 1, 8, 8, seed=2) - 0.5, (1, 8, 8), 800)
    assert white.min() > 0.6
    assert white.max() <= 1 + 1e-5
    assert gains("l2", random(3, 1, 2, 2, seed=2) - 0.5, (1, 2, 2), 200).min() > 0.75


# Algorithms 1-3 for one image, pixels in lists of floats, indices from 1 as in the paper.


def side_of(norm, h, w, query, queries):
    p = Fraction(8, 10)
    for mark in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
        if Fraction(query, queries) >= Fraction(mark, 10_000):
            p /= 2
    side = max(round(math.sqrt(p * h * w)), 3 if norm == "l2" else 1)
    return max(1, min(side, h - 1, w - 1))


def eta(h1, h2):
    """η of the l2 attack as the paper writes it; h1 ≥ h2."""
    n, rows = h1 // 2, []
    for r in range(1, h1 + 1):
        row = []
        for s in range(1, h2 + 1):
            m = n - max(abs(r - h1 // 2 - 1), abs(s - h2 // 2 - 1))
            row.append(sum(1 / (n + 1 - k) ** 2 for k in range(m + 1)))
        rows.append(row)
    return rows


def double_bump(h, turned):
    k = h // 2
    rows = [a + [-v for v in b] for a, b in zip(eta(h, k), eta(h, h - k))]
    length = math.sqrt(sum(v * v for row in rows for v in row))
    rows = [[v / length for v in row] for row in rows]
    return [list(column) for column in zip(*rows)] if turned else rows


class Reference:
    """One image; `nu` is its perturbation, {(channel, row, column): value}."""

    def __init__(self, norm, x, eps, noise):
        self.norm, self.eps, self.noise = norm, eps, noise
        self.c, self.h, self.w = x.shape
        self.x = {(i, r, s): float(x[i, r, s]) for i, r, s in self.all()}

    def all(self):
        return [(i, r, s) for i in range(self.c) for r in range(self.h) for s in range(self.w)]

    def image(self, nu):
        """x + nu, a pixel rounded to float32, in [0, 1]."""
        z = torch.zeros(self.c, self.h, self.w)
        for place, value in nu.items():
            z[place] = min(max(self.x[place] + value, 0.0), 1.0)
        return z

    def start(self):
        nu = dict.fromkeys(self.all(), 0.0)
        if self.norm == "linf":
            signs = self.noise.signs(2, (self.c, 1, self.w))[0]
            return self.image({(i, r, s): self.eps * float(signs[i, 0, s]) for i, r, s in nu})
        tile = max(1, min(self.h, self.w) // 5)
        rows, columns = min(5, self.h // tile), min(5, self.w // tile)
        signs = self.noise.signs(2, (self.c, rows, columns))[0]
        turns = self.noise.integers(3, (rows, columns), 2)[0]
        top, left = (self.h - rows * tile) // 2, (self.w - columns * tile) // 2
        for i, a, b in (
            (i, a, b) for i in range(self.c) for a in range(rows) for b in range(columns)
        ):
            bump = double_bump(tile, bool(turns[a, b]))
            for r in range(tile):
                for s in range(tile):
                    place = (i, top + a * tile + r, left + b * tile + s)
                    nu[place] = float(signs[i, a, b]) * bump[r][s]
        length = math.sqrt(sum(v * v for v in nu.values()))
        return self.image({place: self.eps * v / length for place, v in nu.items()})

    def window(self, query, which, side):
        row = int(self.noise.integers(8 * query, (2, 1), self.h - side + 1)[0, which])
        column = int(self.noise.integers(8 * query + 1, (2, 1), self.w - side + 1)[0, which])
        return [(row + r, column + s) for r in range(side) for s in range(side)]

    def propose(self, current, query, side):
        nu = {place: float(current[place]) - self.x[place] for place in self.all()}
        signs = self.noise.signs(8 * query + 2, (self.c, 1, 1))[0].flatten().tolist()
        first, second = (self.window(query, which, side) for which in (0, 1))
        if self.norm == "linf":
            for i in range(self.c):
                for r, s in first:
                    grown = nu[i, r, s] + 2 * self.eps * signs[i]
                    nu[i, r, s] = min(max(grown, -self.eps), self.eps)
            return self.image(nu)
        turned = int(self.noise.integers(8 * query + 3, (1,), 2)[0, 0])
        star = [v for row in double_bump(side, turned) for v in row]
        unused = self.eps**2 - sum(v * v for v in nu.values())
        for i in range(self.c):
            own = [nu[i, r, s] for r, s in first]
            length = math.sqrt(sum(v * v for v in own))
            temp = [signs[i] * e + (v / length if length else 0.0) for e, v in zip(star, own)]
            size = math.sqrt(sum(v * v for v in temp))
            held = sum(nu[i, r, s] ** 2 for r, s in set(first) | set(second))
            available = math.sqrt(max(held + unused / self.c, 0.0))
            for r, s in second:
                nu[i, r, s] = 0.0
            for (r, s), v in zip(first, temp):
                nu[i, r, s] = v / size * available
        return self.image(nu)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("shape", "clipped"),
    [((1, 12, 12), False), ((3, 6, 5), False), ((3, 6, 5), True), ((1, 3, 3), False)],
)
def test_proposals_are_those_of_the_algorithms_written_pixel_by_pixel(norm, shape, clipped):
    x = random(2, *shape, seed=1).float() if clipped else grey(2, *shape)
    w, queries, ids = random(2, *shape, seed=2) - 0.5, 50, (9, 4)
    toy, eps = Toy(linear(w)), 0.45 if clipped and norm == "l2" else 0.15
    square(toy, Ball(x, norm, eps), 2**40 + 3, ids, queries, restart=2)
    accepted = 0
    for n, image_id in enumerate(ids):
        noise = Noise(2**40 + 3, (image_id,), (2,), Stream.ATTACK)
        written = Reference(norm, x[n], eps, noise)
        best, lowest = None, math.inf
        for query in range(queries):
            side = side_of(norm, *shape[1:], query, queries)
            z = written.propose(best, query, side) if query else written.start()
            assert torch.allclose(toy.images[query][n], z, rtol=0, atol=1e-6)
            if float((w[n] * z).sum()) < lowest:
                best, lowest = z, float((w[n] * z).sum())
                accepted += 1
    assert 4 < accepted < 2 * queries
    assert clipped == any(float(z.min()) == 0 for z in toy.images)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("queries", [100, 3000, 10_000])
def test_the_side_of_windows_falls_by_the_schedule(norm, queries):
    x = torch.zeros(1, 3, 32, 32)
    sides = [_side(Ball(x, norm, 0.1), q, queries) for q in range(queries)]
    assert sides == [side_of(norm, 32, 32, q, queries) for q in range(queries)]
    if queries == 10_000:
        changes = {9: 29, 10: 20, 49: 20, 50: 14, 200: 10, 500: 7, 1000: 5, 2000: 4, 4000: 3}
        for query, side in changes.items():
            assert sides[query] == side, query
        assert sides[8000] == {"linf": 1, "l2": 3}[norm]


@pytest.mark.parametrize("side", range(1, 12))
def test_two_bumps_are_those_of_the_paper(side):
    for turned in (0, 1):
        written = torch.tensor(double_bump(side, turned), dtype=torch.float64)
        assert torch.allclose(_bumps(side)[turned], written, rtol=0, atol=1e-14)
    assert float(_bumps(side)[0].square().sum()) == pytest.approx(1)


def test_a_bump_by_hand():
    """5 × 2 of side 5: n = 2, the middle at row 3 and column 2."""
    one = torch.tensor(eta(5, 2), dtype=torch.float64)
    assert float(one[2, 1]) == pytest.approx(1 + 1 / 4 + 1 / 9)
    assert float(one[1, 1]) == float(one[2, 0]) == pytest.approx(1 / 4 + 1 / 9)
    assert float(one[0, 0]) == float(one[4, 1]) == pytest.approx(1 / 9)


def test_windows_are_uniform_over_all_places():
    n, side = 3000, 3
    x = torch.zeros(1, 1, 5, 7)
    noise = Noise(1, tuple(range(n)), (0,) * n, Stream.ATTACK)
    down, across = _windows(x, noise, 5, side)
    inside = _inside(down, across, side)
    assert inside.shape == (n, 2, 5, 7)
    assert (inside.sum((2, 3)) == side**2).all()
    corners = inside.flatten(2).int().argmax(2)  # the first pixel inside
    places = [r * 7 + s for r in range(3) for s in range(5)]
    for which in (0, 1):
        counts = torch.bincount(corners[:, which], minlength=35)
        assert counts.sum() == counts[places].sum()
        assert stats.chisquare(counts[places].numpy()).pvalue > 0.001
    assert 0.5 / 15 < (corners[:, 0] == corners[:, 1]).double().mean() < 2 / 15


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 2, 2), (1, 1, 1), (1, 3, 7)])
def test_every_proposal_is_in_the_ball_and_an_image(norm, shape):
    x, w = random(4, *shape, seed=1).float(), random(4, *shape, seed=2) - 0.5
    ball, toy = Ball(x, norm, 0.4), Toy(linear(w))
    square(toy, ball, 3, (0, 1, 2, 3), 120)
    for z in toy.images:
        assert torch.isfinite(z).all()
        assert float(ball.size(z).max()) <= 0.4 + 1e-6
        assert float(z.min()) >= 0
        assert float(z.max()) <= 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 6), (1, 2, 2)])
def test_an_l2_perturbation_keeps_norm_eps_where_nothing_is_clipped(shape):
    x, w = torch.full((3, *shape), 0.5), random(3, *shape, seed=2) - 0.5
    ball, toy = Ball(x, "l2", 0.3), Toy(linear(w))
    square(toy, ball, 3, (0, 1, 2), 300)
    for z in toy.images:
        assert (ball.size(z) - 0.3).abs().max() < 1e-6


def test_what_clipping_took_is_given_back_by_a_later_move():
    """At a corner of [0, 1] half the start is lost; moves that pay bring the norm back to eps."""
    x, eps = torch.zeros(2, 1, 6, 6), 0.3
    ball, toy = Ball(x, "l2", eps), Toy(lambda n, z: -z.sum()[None])
    found = square(toy, ball, 3, (0, 1), 300)
    assert (ball.size(toy.images[0]) < 0.9 * eps).all()
    assert (ball.size(found.x) > 0.97 * eps).all()


@pytest.mark.parametrize("norm", NORMS)
def test_as_many_looks_as_asked_for_each_at_its_own_step(norm):
    for queries in (1, 2, 25):
        x, toy = grey(2, 1, 4, 4), Toy(linear(random(2, 1, 4, 4) - 0.5))
        found = square(toy, Ball(x, norm, 0.1), 0, (0, 1), queries)
        assert toy.steps == list(range(queries))
        assert len(found.fooled) == len(found.losses) == queries


@pytest.mark.parametrize("norm", NORMS)
def test_no_worse_image_is_kept(norm):
    x, w = grey(4, 1, 6, 6), 40 * (random(4, 36, seed=8) - 0.5)
    toy = Toy(lambda n, z: torch.sin(w[n] @ z.flatten().double())[None] + 0.9)
    found = square(toy, Ball(x, norm, 0.2), 0, (0, 1, 2, 3), 100)
    assert (found.margins <= toy.seen[0]).all()
    assert torch.equal(found.margins, torch.stack(toy.seen).min(0).values)
    assert torch.equal(toy.evaluate(found.x, 0).margins, found.margins)
    assert list(found.fooled) == sorted(found.fooled)


@pytest.mark.parametrize("norm", NORMS)
def test_more_draws_fooled_count_before_a_lower_mean_margin(norm):
    """The second draw has the steeper margin and cannot be fooled: it can only mislead."""
    x, w = grey(6, 1, 6, 6), random(6, 2, 36, seed=8) - 0.5

    def margins(n, z):
        moved = w[n] @ (z.double() - x[n].double()).flatten()
        return torch.stack((moved[0] + 0.1, 10 * moved[1] + 100))

    toy = Toy(margins)
    found = square(toy, Ball(x, norm, 0.05 if norm == "linf" else 0.2), 0, tuple(range(6)), 60)
    disagree = 0
    for n in range(6):
        order = [(int((m[n] <= 0).sum()), -float(m[n].mean())) for m in toy.seen]
        place = order.index(max(order))
        disagree += max(mean for _, mean in order) > order[place][1]
        assert torch.equal(found.x[n], toy.images[place][n])
        assert torch.equal(found.margins[n], toy.seen[place][n])
    assert disagree > 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 12, 12)])
def test_proposals_depend_on_nothing_else_in_the_batch(norm, shape):
    x, w, ids = random(5, *shape, seed=1).float(), random(5, *shape, seed=2) - 0.5, (8, 3, 0, 6, 5)

    def search(which):
        toy = Toy(linear(w[which]))
        ball = Ball(x[which], norm, 0.2)
        square(toy, ball, 11, tuple(ids[i] for i in which), 80)
        return torch.stack(toy.images)

    together = search([0, 1, 2, 3, 4])
    assert torch.equal(search([0, 1, 2, 3, 4]), together)
    assert torch.equal(search([3, 1, 4, 0, 2]), together[:, [3, 1, 4, 0, 2]])
    for i in range(5):
        assert torch.equal(search([i]), together[:, [i]])


@pytest.mark.parametrize("norm", NORMS)
def test_seed_id_and_restart_each_change_the_proposals(norm):
    x = torch.full((1, 3, 8, 8), 0.5)

    def search(seed=1, image=2, restart=3):
        toy = Toy(lambda n, z: torch.zeros(1))
        square(toy, Ball(x, norm, 0.2), seed, (image,), 6, restart)
        return torch.stack(toy.images)

    base = search()
    for other in (search(seed=2), search(image=3), search(restart=4)):
        assert all(not torch.equal(a, b) for a, b in zip(base, other))
    assert torch.equal(base, search())


def test_sums_of_squares_do_not_depend_on_the_order_of_terms():
    t = 0.3 * (random(4, 3, 16, 16) - 0.5)
    shuffled = t.flatten(1)[:, torch.randperm(768, generator=torch.Generator().manual_seed(0))]
    sums = _energy(t, (1, 2, 3))
    assert torch.equal(_energy(shuffled.reshape(t.shape), (1, 2, 3)), sums)
    assert torch.allclose(sums, t.square().sum((1, 2, 3), keepdim=True), rtol=1e-11)
