"""Auto-PGD: optima known in closed form, and the paper's rules written out for one image."""

import math
from fractions import Fraction

import pytest
import torch

from purify_audit.attacks.apgd import _checkpoints, _StepSizes, apgd
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.objective import Evaluation

NORMS = ["linf", "l2"]


class Toy:
    """Margins [k] of one image, and a loss of its own; every image is computed by itself."""

    def __init__(self, margins, loss=None):
        self.margins = margins
        self.loss = loss or (lambda n, x: -margins(n, x).mean())
        self.calls, self.images, self.values, self.seen = [], [], [], []

    def evaluate(self, x, step):
        self.calls.append(("look", step))
        return self._view(x, None)

    def loss_and_grad(self, x, step):
        self.calls.append(("climb", step))
        rows = x.detach().clone().requires_grad_()
        total = sum(self.loss(n, row) for n, row in enumerate(rows))
        return self._view(x, torch.autograd.grad(total, rows)[0])

    def _view(self, x, gradient):
        losses = torch.stack([self.loss(n, row) for n, row in enumerate(x)])
        margins = torch.stack([self.margins(n, row) for n, row in enumerate(x)])
        self.images.append(x.clone())
        self.values.append(losses.clone())
        self.seen.append(margins.clone())
        return Evaluation(losses, margins, gradient)


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grey(n, *shape):
    return 0.3 + 0.4 * random(n, *shape, seed=1).float()


def linear(weights, bias=0.0):
    """Margin w·x + b of image n with weights [n, c, h, w]."""
    return lambda n, x: ((weights[n] * x).sum() + bias)[None]


def dual(norm, w):
    return float(w.abs().sum() if norm == "linf" else w.square().sum().sqrt())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("centred", [True, False])
def test_the_worst_case_of_a_linear_margin_is_reached(norm, centred):
    x, w, eps = grey(5, 3, 4, 5), random(5, 3, 4, 5, seed=2) - 0.5, 0.1
    ball = Ball(x, norm, eps)
    start = (
        x
        if centred
        else ball.start(random(*x.shape, seed=3).float(), random(len(x), seed=4).float())
    )
    found = apgd(Toy(linear(w)), ball, start, 30)
    for n in range(5):
        gain = eps * dual(norm, w[n])
        worst = float((w[n] * x[n]).sum()) - gain
        assert float(found.margins[n, 0]) == pytest.approx(worst, abs=1e-4 * gain)


@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_of_several_classes_is_found(norm):
    x, eps = grey(4, 1, 4, 4), 0.05
    w, b = random(4, 16, seed=5) - 0.5, torch.tensor([0.0, -9.0, -0.4, -9.0])
    scores = x.double().flatten(1) @ w.T + b  # class 0 is the true one, class 2 far the nearest
    differences = w[0] - w[1:]
    worst = (scores[:, :1] - scores[:, 1:]) - eps * torch.tensor(
        [dual(norm, d) for d in differences]
    )

    def margin(n, row):
        z = w @ row.flatten().double() + b
        return (z[0] - z[1:].max())[None]

    found = apgd(Toy(margin), Ball(x, norm, eps), x, 30)
    gain = eps * dual(norm, differences[1])
    assert (found.margins[:, 0] - worst.min(1).values).abs().max() < 1e-4 * gain


def test_the_worst_case_with_clipped_pixels_is_reached():
    """Pixel by pixel: the end of [x − eps, x + eps] ∩ [0, 1] against the weight's sign."""
    x, w, eps = random(4, 1, 5, 5, seed=1).float(), random(4, 1, 5, 5, seed=2) - 0.5, 0.3
    end = torch.where(w > 0, (x - eps).clamp(min=0), (x + eps).clamp(max=1))
    assert ((x < eps) & (w > 0)).any()
    found = apgd(Toy(linear(w)), Ball(x, "linf", eps), x, 20)
    assert torch.allclose(found.margins[:, 0], (w * end).sum((1, 2, 3)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_every_iterate_is_in_the_ball_and_an_image(norm):
    x, w = random(6, 3, 4, 4, seed=1).float(), random(6, 3, 4, 4, seed=2) - 0.5
    ball, toy = Ball(x, norm, 0.3), Toy(linear(w))
    found = apgd(toy, ball, x, 25)
    for z in (*toy.images, found.x):
        assert float(ball.size(z).max()) <= 0.3 + 1e-6
        assert float(z.min()) >= 0
        assert float(z.max()) <= 1
    assert any(float(z.min()) == 0 for z in toy.images)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 37])
def test_as_many_gradients_as_asked_for_and_one_look(steps):
    x, toy = grey(3, 1, 3, 3), Toy(linear(random(3, 1, 3, 3) - 0.5))
    found = apgd(toy, Ball(x, "linf", 0.1), x, steps)
    assert toy.calls == [("climb", k) for k in range(steps)] + [("look", steps)]
    assert len(found.fooled) == len(found.losses) == steps + 1


# The rule for step sizes: an image is a list of floats, its loss −Σ a_r (w_r·p − c_r)².


def project(norm, eps, x, p):
    d = [b - a for a, b in zip(x, p)]
    if norm == "linf":
        d = [min(max(v, -eps), eps) for v in d]
    else:
        length = math.sqrt(sum(v * v for v in d))
        d = [v * min(1.0, eps / length) if length else v for v in d]
    return [min(max(a + v, 0.0), 1.0) for a, v in zip(x, d)]


def dot(u, v):
    return sum(p * q for p, q in zip(u, v))


def loss_of(quadratic, z):
    return -sum(a * (dot(w, z) - c) ** 2 for a, w, c in quadratic)


def steepest_ascent(norm, quadratic, z):
    pulls = [(-2 * a * (dot(w, z) - c), w) for a, w, c in quadratic]
    g = [sum(pull * w[i] for pull, w in pulls) for i in range(len(z))]
    length = math.sqrt(dot(g, g))
    return [(v > 0) - (v < 0) if norm == "linf" else v / length for v in g]


def marks_of(steps):
    """0 = w_0 < w_1 < …, in exact fractions; those that fall together are one."""
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    return sorted({math.ceil(q * steps) for q in p[:-1]})


def reference(norm, eps, x, steps, quadratic):
    """Section 3 for one image: all its evaluated iterates, and which condition held when.

    The histories are the paper's: f(i) and x(i), where x(w_j) becomes x_max after a halving.
    """
    marks, start = marks_of(steps), loss_of(quadratic, x)
    iterates, fs, fmax, xmax = [list(x)], [start], [start], list(x)
    seen, eta, etas, events = [list(x)], 2 * eps, {0: 2 * eps}, []
    for k in range(steps):
        now, old = iterates[k], iterates[max(k - 1, 0)]
        up = steepest_ascent(norm, quadratic, now)
        z = new = project(norm, eps, x, [n + eta * u for n, u in zip(now, up)])
        if k > 0:
            new = [n + 0.75 * (q - n) + 0.25 * (n - o) for n, q, o in zip(now, z, old)]
            new = project(norm, eps, x, new)
        seen.append(new)
        iterates.append(new)
        fs.append(loss_of(quadratic, new))
        if fs[-1] > fmax[-1]:
            xmax = new
        fmax.append(max(fmax[-1], fs[-1]))
        if k + 1 in marks[1:]:
            w, before = k + 1, marks[marks.index(k + 1) - 1]
            rises = sum(fs[i + 1] > fs[i] for i in range(before, w))
            one = rises < 0.75 * (w - before)
            two = etas[before] == eta and fmax[before] == fmax[w]
            etas[w] = eta
            events.append((w, one, two))
            if one or two:
                eta /= 2
                iterates[w], fs[w] = xmax, fmax[w]
    return seen, events


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [7, 40, 100])
def test_iterates_are_those_of_the_rules_written_for_one_image(norm, steps):
    n, eps = 16, 0.2
    x = 0.3 + 0.4 * random(n, 1, 1, 3, seed=4)
    a = 10.0 ** (3 * random(n, 3, seed=5) - 2)  # from flat to narrow
    w = random(n, 3, 3, seed=7) - 0.5
    goal = x.flatten(1) + 0.5 * (random(n, 3, seed=6) - 0.5)  # some out of the ball
    c = (w * goal[:, None]).sum(2)
    toy = Toy(lambda i, z: (a[i] * ((w[i] * z.flatten()).sum(1) - c[i]) ** 2).sum()[None])
    apgd(toy, Ball(x, norm, eps), x, steps)
    got = torch.stack(toy.images)[:, :, 0, 0]
    events = []
    for i in range(n):
        quadratic = list(zip(a[i].tolist(), w[i].tolist(), c[i].tolist()))
        seen, happened = reference(norm, eps, x[i].flatten().tolist(), steps, quadratic)
        assert torch.allclose(got[:, i], torch.tensor(seen, dtype=torch.float64), atol=1e-9)
        events.append(tuple(happened))
    flat = {(one, two) for happened in events for _, one, two in happened}
    # The test would be empty if images did not differ, or nothing was ever judged good enough.
    assert len(set(events)) > 3
    assert {(True, False), (False, False), (True, True)} <= flat


@pytest.mark.parametrize("norm", NORMS)
def test_halving_finds_an_optimum_that_the_first_step_size_jumps_over(norm, monkeypatch):
    eps, x = 0.2, torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    goal, narrow = torch.tensor([0.53, 0.41]), torch.tensor([900.0, 1.0])

    def miss():
        toy = Toy(lambda n, z: (narrow * (z.flatten() - goal) ** 2).sum()[None])
        return abs(float(apgd(toy, Ball(x, norm, eps), x, 100).x[0, 0, 0, 0] - goal[0]))

    assert miss() < 2 * eps / 2**7  # sizes may halve to 2 eps / 2**8
    unchanged = lambda self, best, steps: torch.zeros(1, dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(_StepSizes, "check", unchanged)
    assert miss() > 2 * eps / 2**7


def test_a_loss_that_stays_equal_has_not_risen():
    """A loss without change but with a gradient: each checkpoint halves and goes back to the start.

    Just before it the image is in the corner start + eps, so after a checkpoint that left size s
    it is at start + 0.75 s + 0.25 (start − corner).
    """
    eps, x = 0.2, torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    toy = Toy(lambda n, z: torch.ones(1), loss=lambda n, z: (z - z.detach()).sum())
    apgd(toy, Ball(x, "linf", eps), x, 100)
    moved = (torch.stack(toy.images).flatten() - 0.5) / eps
    for mark, size in ((22, 1.0), (41, 0.5), (57, 0.25)):
        assert float(moved[mark - 1]) == pytest.approx(1.0)
        assert float(moved[mark + 1]) == pytest.approx(0.75 * size - 0.25)


def sizes_after(*rounds, first=1.0):
    """Step size of one image after checkpoints: (steps, how many raised, highest loss)."""
    sizes, history = _StepSizes(first, torch.tensor([0.0])), []
    for steps, raised, best in rounds:
        for k in range(steps):
            sizes.count(torch.tensor([k < raised]))
        halved = sizes.check(torch.tensor([best]), steps)
        history.append((float(sizes.size), bool(halved)))
    return history


def test_condition_1_is_fewer_than_three_quarters():
    assert sizes_after((4, 3, 1.0)) == [(1.0, False)]
    assert sizes_after((4, 2, 1.0)) == [(0.5, True)]
    assert sizes_after((5, 3, 1.0)) == [(0.5, True)]
    # each interval is counted by itself
    assert sizes_after((4, 4, 1.0), (4, 2, 2.0)) == [(1.0, False), (0.5, True)]


def test_condition_2_is_neither_a_new_size_nor_a_new_best():
    assert sizes_after((4, 4, 0.0)) == [(0.5, True)]
    # after a halving, a best that stays is no reason to halve again; the time after, it is
    rounds = ((4, 0, 1.0), (4, 4, 1.0), (4, 4, 1.0))
    assert sizes_after(*rounds) == [(0.5, True), (0.5, False), (0.25, True)]


def test_checkpoints():
    assert _checkpoints(100) == {22, 41, 57, 70, 80, 87, 93, 99}
    for steps in range(1, 400):
        assert [0, *sorted(_checkpoints(steps))] == marks_of(steps)


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_alone_goes_where_it_goes_in_a_batch(norm):
    x, w = grey(5, 1, 3, 4), 30 * (random(5, 1, 3, 4, seed=2) - 0.5)

    def toy(which):
        return Toy(lambda n, z: torch.sin((w[which[n]] * z).sum())[None])

    together = apgd(toy(range(5)), Ball(x, norm, 0.2), x, 40)
    for i in range(5):
        alone = apgd(toy([i]), Ball(x[i : i + 1], norm, 0.2), x[i : i + 1], 40)
        assert torch.equal(alone.x[0], together.x[i])
        assert torch.equal(alone.margins[0], together.margins[i])


def test_the_result_is_the_best_by_margins_while_the_ascent_follows_the_loss():
    """Two draws, and a loss that wants the opposite of the margins: the start is the best."""
    x, w = grey(3, 1, 3, 3), 1.0 + random(3, 1, 3, 3)
    margins = lambda n, z: (w[n] * z).sum() * torch.tensor([1.0, 2.0])  # noqa: E731
    toy = Toy(margins, loss=lambda n, z: (w[n] * z).sum())
    found = apgd(toy, Ball(x, "linf", 0.1), x, 20)
    assert torch.equal(found.x, x)
    assert torch.equal(found.margins, toy.seen[0])
    highest = torch.stack(toy.values).max(0).values
    corner = (w * (x + 0.1)).sum((1, 2, 3))
    assert torch.allclose(highest, corner)


def test_the_result_was_seen_and_is_the_best_seen():
    x, w = grey(6, 1, 3, 3), 40 * (random(6, 2, 9, seed=8) - 0.5)
    toy = Toy(lambda n, z: torch.sin(w[n] @ z.flatten().double()) + 0.8)
    found = apgd(toy, Ball(x, "linf", 0.2), x, 30)
    assert torch.equal(toy.evaluate(found.x, 0).margins, found.margins)
    for i in range(6):
        order = [(int((m[i] <= 0).sum()), -float(m[i].mean())) for m in toy.seen[:31]]
        place = order.index(max(order))
        assert torch.equal(found.x[i], toy.images[place][i])
    assert list(found.fooled) == sorted(found.fooled)
