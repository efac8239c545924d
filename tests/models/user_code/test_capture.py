"""Random operators under capture: their distributions, their addresses, and their replays."""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from purify_audit.core.noise import Noise
from purify_audit.models.user_code.capture import Capture
from purify_audit.models.user_code.draws import NeedsFewerRows, Sharing, UnalignedRandomnessError

ROWS, WIDTH = 64, 1000
ADDRESSES = Noise(11, tuple(range(ROWS)), (0, 1) * (ROWS // 2))
STRICT = Sharing()


def captured(draw, noise=ADDRESSES, sharing=STRICT):
    capture = Capture(noise, sharing)
    with capture:
        return draw(len(noise))


def like(n, dtype=torch.float32, value=0.0):
    return torch.full((n, WIDTH), value, dtype=dtype)


def fresh(n, dtype=torch.float32):
    return torch.empty((n, WIDTH), dtype=dtype)


def generator():
    return torch.Generator().manual_seed(5)


WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])
POISSON = 7.5

# name -> (rows -> draws [rows, ...], mean, variance)
OPERATORS = {
    "randn": (lambda n: torch.randn(n, WIDTH), 0, 1),
    "randn generator": (lambda n: torch.randn(n, WIDTH, generator=generator()), 0, 1),
    "randn out": (lambda n: torch.randn(n, WIDTH, out=fresh(n)), 0, 1),
    "randn out resized": (lambda n: torch.randn(n, WIDTH, out=torch.empty(0)), 0, 1),
    "randn float64": (lambda n: torch.randn(n, WIDTH, dtype=torch.float64), 0, 1),
    "randn bfloat16": (lambda n: torch.randn(n, WIDTH, dtype=torch.bfloat16), 0, 1),
    "randn half": (lambda n: torch.randn(n, WIDTH, dtype=torch.half), 0, 1),
    "randn_like": (lambda n: torch.randn_like(like(n)), 0, 1),
    "normal_": (lambda n: fresh(n).normal_(2, 3), 2, 9),
    "normal_ generator": (lambda n: fresh(n).normal_(2, 3, generator=generator()), 2, 9),
    "normal_ transposed": (lambda n: torch.empty(WIDTH, n).t().normal_(2, 3), 2, 9),
    "normal of means": (lambda n: torch.normal(like(n, value=2.0), 3.0), 2, 9),
    "normal of deviations": (lambda n: torch.normal(2.0, like(n, value=3.0)), 2, 9),
    "normal of both": (lambda n: torch.normal(like(n, value=2.0), like(n, value=3.0)), 2, 9),
    "normal of numbers": (lambda n: torch.normal(2.0, 3.0, (n, WIDTH)), 2, 9),
    "normal out": (lambda n: torch.normal(like(n, value=2.0), 3.0, out=fresh(n)), 2, 9),
    "Normal": (lambda n: torch.distributions.Normal(like(n), 2.0).rsample(), 0, 4),
    "rand": (lambda n: torch.rand(n, WIDTH), 1 / 2, 1 / 12),
    "rand half": (lambda n: torch.rand(n, WIDTH, dtype=torch.half), 1 / 2, 1 / 12),
    "rand bfloat16": (lambda n: torch.rand(n, WIDTH, dtype=torch.bfloat16), 1 / 2, 1 / 12),
    "rand_like": (lambda n: torch.rand_like(like(n)), 1 / 2, 1 / 12),
    "uniform_": (lambda n: fresh(n).uniform_(-1, 3), 1, 16 / 12),
    "randint": (lambda n: torch.randint(10, (n, WIDTH)), 4.5, 99 / 12),
    "randint low": (lambda n: torch.randint(-3, 7, (n, WIDTH)), 1.5, 99 / 12),
    "randint generator": (
        lambda n: torch.randint(10, (n, WIDTH), generator=generator()),
        4.5,
        8.25,
    ),
    "randint float": (lambda n: torch.randint(10, (n, WIDTH), dtype=torch.float32), 4.5, 99 / 12),
    "randint out": (lambda n: torch.randint(10, (n, WIDTH), out=fresh(n, torch.int64)), 4.5, 8.25),
    "randint_like": (lambda n: torch.randint_like(like(n), 10), 4.5, 99 / 12),
    "randint_like low": (lambda n: torch.randint_like(like(n), -3, 7), 1.5, 99 / 12),
    "randint of 40 bits": (
        lambda n: torch.randint(2**40, (n, WIDTH)) / 2.0**40,
        1 / 2,
        1 / 12,
    ),
    "random_ of 63 bits": (lambda n: fresh(n, torch.int64).random_() / 2.0**63, 1 / 2, 1 / 12),
    "random_ of bytes": (lambda n: fresh(n, torch.uint8).random_(), 127.5, (2**16 - 1) / 12),
    "random_ of bits": (lambda n: fresh(n, torch.bool).random_(), 1 / 2, 1 / 4),
    "random_ of floats": (lambda n: fresh(n).random_() / 2.0**24, 1 / 2, 1 / 12),
    "random_ to": (lambda n: fresh(n).random_(10), 4.5, 99 / 12),
    "random_ from": (lambda n: fresh(n).random_(-3, 7), 1.5, 99 / 12),
    "bernoulli": (lambda n: torch.bernoulli(like(n, value=0.3)), 0.3, 0.21),
    "bernoulli p": (lambda n: torch.bernoulli(like(n), 0.3), 0.3, 0.21),
    "bernoulli_": (lambda n: fresh(n).bernoulli_(0.3), 0.3, 0.21),
    "bernoulli_ of tensors": (lambda n: fresh(n).bernoulli_(like(n, value=0.3)), 0.3, 0.21),
    "bernoulli out": (lambda n: torch.bernoulli(like(n, value=0.3), out=fresh(n)), 0.3, 0.21),
    "dropout": (lambda n: F.dropout(like(n, value=1.0), 0.2), 1, 1 / 0.8 - 1),
    "native_dropout": (lambda n: torch.native_dropout(like(n, value=1.0), 0.2, True)[0], 1, 0.25),
    "dropout of channels": (
        lambda n: F.dropout2d(torch.ones(n, WIDTH, 2, 2), 0.2)[:, :, 0, 0],
        1,
        1 / 0.8 - 1,
    ),
    "rrelu": (lambda n: F.rrelu(like(n, value=-1.0), 0.1, 0.5, training=True), -0.3, 0.16 / 12),
    "rrelu_": (lambda n: F.rrelu_(like(n, value=-1.0), 0.1, 0.5, True), -0.3, 0.16 / 12),
    "exponential_": (lambda n: fresh(n).exponential_(2.0), 1 / 2, 1 / 4),
    "geometric_": (lambda n: fresh(n).geometric_(0.25), 4, 12),
    "log_normal_": (
        lambda n: fresh(n).log_normal_(0.0, 0.5),
        math.exp(0.125),
        (math.exp(0.25) - 1) * math.exp(0.25),
    ),
    "cauchy_": (lambda n: torch.atan(fresh(n).cauchy_()), 0, math.pi**2 / 12),
    "poisson": (lambda n: torch.poisson(like(n, value=POISSON)), POISSON, POISSON),
    "multinomial with replacement": (
        lambda n: torch.multinomial(WEIGHTS.expand(n, 4), WIDTH, replacement=True),
        2.0,
        1.0,
    ),
    "multinomial without": (
        lambda n: torch.multinomial(WEIGHTS.expand(WIDTH * n, 4), 1).reshape(WIDTH, n).t(),
        2.0,
        1.0,
    ),
    "gumbel": (
        lambda n: F.gumbel_softmax(torch.zeros(n, WIDTH, 2), hard=True)[..., 0],
        1 / 2,
        1 / 4,
    ),
}
BY_ROW = {name: made for name, made in OPERATORS.items() if name != "multinomial without"}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_keeps_its_distribution(name):
    draw, mean, variance = OPERATORS[name]
    noise = Noise(11, (0,), (0,)) if name == "multinomial without" else ADDRESSES
    values = captured(lambda n: draw(ROWS), noise).double()
    count = values.numel()
    slack = 5.0 / math.sqrt(count)  # standard errors
    assert values.mean().item() == pytest.approx(mean, abs=slack * math.sqrt(variance) + 1e-3)
    fourth = ((values - values.mean()) ** 4).mean().item()
    error = slack * math.sqrt(max(fourth - variance**2, 0.0)) + 2e-3 * variance
    assert values.var().item() == pytest.approx(variance, abs=error)


@pytest.mark.parametrize("name", BY_ROW)
def test_a_row_has_the_same_numbers_in_any_batch(name):
    draw = BY_ROW[name][0]
    whole = captured(draw)
    for rows in ([5], [9, 3, 40], list(reversed(range(ROWS)))):
        some = Noise(11, tuple(rows), tuple(ADDRESSES.draws[n] for n in rows))
        assert torch.equal(captured(draw, some), whole[rows])
    assert not torch.equal(whole[0], whole[2])


@pytest.mark.parametrize("name", BY_ROW)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_grad_mode_changes_no_number(name, mode):
    draw = BY_ROW[name][0]
    usual = captured(draw)
    with mode():
        assert torch.equal(captured(draw), usual)


@pytest.mark.parametrize("name", BY_ROW)
def test_seeds_draws_and_images_give_other_numbers(name):
    draw = BY_ROW[name][0]
    usual, nearby = captured(draw), Noise(11, (3, 3, 4), (0, 1, 0))
    rows = captured(draw, nearby)
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert not torch.equal(captured(draw, Noise(12, ADDRESSES.images, ADDRESSES.draws)), usual)


@pytest.mark.parametrize("name", ["randn", "rand", "dropout", "multinomial with replacement"])
def test_the_type_of_a_result_is_the_operators_own(name):
    assert captured(OPERATORS[name][0]).dtype == OPERATORS[name][0](2).dtype


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_uniform_numbers_of_few_bits_stay_below_one(dtype):
    values = captured(lambda n: torch.rand(n, 100_000, dtype=dtype), ADDRESSES[:1])
    assert values.max() < 1
    assert values.min() >= 0


def test_numbers_are_the_noise_of_the_first_steps():
    first, second = captured(lambda n: (torch.randn(n, 3), torch.rand(n, 2)))
    assert torch.equal(first, ADDRESSES.normal(0, (3,)))
    assert torch.equal(second, ADDRESSES.uniform(1, (2,)))


def test_poisson_numbers_follow_the_quantiles_of_uniform_ones():
    from scipy.stats import poisson

    rates = torch.tensor([0.0, 0.3, 4.0, 60.0, 900.0])
    u = ADDRESSES.uniform(0, (5,)).double().numpy()
    expected = poisson.ppf(u, rates.numpy())
    assert np.array_equal(captured(lambda n: torch.poisson(rates.expand(n, 5))).numpy(), expected)


def test_sampling_without_replacement_takes_each_category_once():
    drawn = captured(lambda n: torch.multinomial(WEIGHTS.expand(n, 4), 4))
    assert torch.equal(drawn.sort(-1).values, torch.arange(4).expand(ROWS, 4))


def test_categories_of_no_weight_are_never_drawn():
    weights = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    for replacement in (True, False):
        drawn = captured(lambda n, r=replacement: torch.multinomial(weights.expand(n, 5), 2, r))
        assert set(drawn.unique().tolist()) == {1, 3}


def test_a_permutation_is_one():
    drawn = captured(lambda n: torch.randperm(50), ADDRESSES[:1])
    assert drawn.sort().values.tolist() == list(range(50))
    assert drawn.tolist() != list(range(50))


def test_dropout_of_everything_and_of_nothing():
    ones = torch.ones(ROWS, 5)
    assert captured(lambda n: torch.native_dropout(ones, 1.0, True)[0]).sum() == 0
    assert torch.equal(captured(lambda n: F.dropout(ones, 0.0)), ones)
    assert torch.equal(captured(lambda n: torch.native_dropout(ones, 0.5, False)[0]), ones)


def test_attention_without_dropout_passes_and_with_it_is_drawn_row_by_row():
    q = torch.linspace(-1, 1, ROWS * 24).reshape(ROWS, 1, 6, 4)
    plain = F.scaled_dot_product_attention(q, q, q)
    assert torch.equal(captured(lambda n: F.scaled_dot_product_attention(q, q, q)), plain)
    with torch.inference_mode():
        assert torch.equal(captured(lambda n: F.scaled_dot_product_attention(q, q, q)), plain)

    def dropped(n):
        return F.scaled_dot_product_attention(q[-n:], q[-n:], q[-n:], dropout_p=0.5)

    whole = captured(dropped)
    assert not torch.allclose(whole, plain)
    torch.testing.assert_close(captured(dropped, ADDRESSES[ROWS - 3 :]), whole[-3:])
    with torch.inference_mode():
        torch.testing.assert_close(captured(dropped), whole)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_a_draw_whose_first_axis_is_time_is_not_taken_for_rows(mode):
    lstm = torch.nn.LSTM(3, 4, 2, dropout=0.5, batch_first=True).requires_grad_(False)
    with mode(), pytest.raises(NeedsFewerRows):
        captured(lambda n: lstm(torch.ones(n, 2, 3)))


# --- generators and their states ----------------------------------------------------------------


def test_a_generator_seeded_again_draws_again_what_it_drew():
    def draw(n):
        one = torch.Generator().manual_seed(3)
        a, b = (torch.randn(n, 4, generator=one) for _ in range(2))
        one.manual_seed(3)
        two = torch.Generator().manual_seed(4)
        return a, b, torch.randn(n, 4, generator=one), torch.randn(n, 4, generator=two)

    a, b, again, other = captured(draw)
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    assert not torch.equal(a, other)


def test_a_state_put_back_draws_again_what_came_after_it():
    def draw(n):
        a = torch.randn(n, 4)
        state = torch.get_rng_state()
        b = torch.randn(n, 4)
        torch.set_rng_state(state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            inside = torch.randn(n, 4)
        return a, b, torch.randn(n, 4), inside

    a, b, again, inside = captured(draw)
    assert torch.equal(b, again)
    assert not torch.equal(a, b)
    assert not torch.equal(inside, b)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_draws_again_what_it_drew(reentrant):
    weight = torch.linspace(-1, 1, 4).expand(ROWS, 4).clone().requires_grad_()

    def step(z):
        return (z * torch.randn_like(z)).sin() * torch.rand_like(z)

    def gradient(call):
        y = call(step, weight)
        torch.randn(ROWS, 2)  # moves the generator on
        y.sum().backward()
        found, weight.grad = weight.grad, None
        return found

    plain = captured(lambda n: gradient(lambda f, z: f(z)))
    checked = captured(lambda n: gradient(lambda f, z: checkpoint(f, z, use_reentrant=reentrant)))
    assert torch.equal(plain, checked)


def test_a_capture_entered_again_goes_on_where_it_was():
    capture = Capture(ADDRESSES)
    with capture:
        first = torch.randn(ROWS, 2)
    torch.randn(3)
    with capture:
        second = torch.randn(ROWS, 2)
    both = captured(lambda n: (torch.randn(n, 2), torch.randn(n, 2)))
    assert torch.equal(first, both[0])
    assert torch.equal(second, both[1])


def test_global_generators_are_put_back_as_they_were():
    states = [torch.get_rng_state(), str(np.random.get_state()), str(random.getstate())]  # noqa: NPY002

    def draw(n):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        return torch.randn(n, 3), np.random.rand(), random.random()  # noqa: NPY002

    captured(draw)
    with pytest.raises(ZeroDivisionError):
        captured(lambda n: draw(n) and 1 / 0)
    now = [torch.get_rng_state(), str(np.random.get_state()), str(random.getstate())]  # noqa: NPY002
    assert torch.equal(states[0], now[0])
    assert states[1:] == now[1:]


def test_a_lone_address_seeds_numpy_and_python():
    def draw(n):
        return np.random.rand(), random.random()  # noqa: NPY002

    one, again, other = (captured(draw, Noise(1, (5,), (k,))) for k in (0, 0, 1))
    assert one == again
    assert one[0] != other[0]
    assert one[1] != other[1]


# --- draws that are not indexed by row ----------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        lambda n: torch.randn(()),
        lambda n: torch.randn(1, 4),
        lambda n: torch.randn(2 * n, 4),
        lambda n: torch.randperm(n),
        lambda n: torch.multinomial(WEIGHTS, n, replacement=True),
    ],
    ids=["scalar", "one for all", "doubled", "permutation", "categories"],
)
def test_rows_do_not_share_numbers(draw):
    with pytest.raises(NeedsFewerRows):
        captured(draw)
    captured(draw, ADDRESSES[:1])


def test_one_row_draws_what_a_batch_of_it_would():
    usual = captured(lambda n: torch.randn(n, 4))
    assert torch.equal(captured(lambda n: torch.randn(1, 4), ADDRESSES[:1]), usual[:1])


@pytest.mark.parametrize(
    ("operator", "draw"),
    [
        ("_standard_gamma", lambda n: torch._standard_gamma(torch.ones(n, 3))),
        ("_sample_dirichlet", lambda n: torch.distributions.Dirichlet(torch.ones(n, 3)).sample()),
        ("binomial", lambda n: torch.binomial(torch.full((n, 3), 4.0), torch.full((n, 3), 0.5))),
        ("randn", lambda n: torch.randn(n, 3, dtype=torch.complex64)),
        ("randint", lambda n: torch.randint(-(2**63), 2**63 - 1, (n, 3))),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name_and_line(operator, draw):
    with pytest.raises(UnalignedRandomnessError) as refusal:
        captured(draw)
    assert refusal.value.operator == f"aten::{operator}"
    assert "test_capture.py:" in refusal.value.where or operator == "_sample_dirichlet"


def test_a_refusal_that_was_swallowed_is_told_all_the_same():
    def draw(n):
        try:
            torch._standard_gamma(torch.ones(n, 3))
        except Exception:
            return None

    with pytest.raises(UnalignedRandomnessError):
        captured(draw)


def test_an_empty_range_is_the_codes_own_error():
    with pytest.raises(RuntimeError, match="empty range"):
        captured(lambda n: torch.randint(5, 5, (n, 2)))


def test_the_summary_tells_what_was_drawn_and_where():
    capture = Capture(ADDRESSES[:2])
    with capture:
        for _ in range(3):
            torch.randn(2, 5)
        F.dropout(torch.ones(2, 4))
        np.random.rand()  # noqa: NPY002
    normal, dropped, numpy_random = capture.summary()
    assert (normal.operator, normal.distribution) == ("aten::randn", "normal")
    assert (normal.shape, normal.count, normal.per_row) == ((5,), 3, True)
    assert (dropped.distribution, dropped.shape) == ("Bernoulli", (4,))
    assert "test_capture.py:" in dropped.where
    assert (numpy_random.operator, numpy_random.per_row) == ("numpy.random", False)
