"""User code as a purifier: its randomness is aligned, or the report names what cannot be."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import user_code_samples as code
from subjects import CPU, DIGITS, PROVENANCE, codes, grey_images, pick, run, subject_for

from purify_audit.attacks.attack import attack_objective, targets
from purify_audit.attacks.gradient_checks import check_gradient, in_float64
from purify_audit.attacks.gradients import exact, steps_of
from purify_audit.attacks.objective import Defence
from purify_audit.audit.attack_report import run_attack
from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.subject import LoadedClassifier
from purify_audit.core.noise import Noise
from purify_audit.images.image_set import ImageSet, choose, load_images
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_classifier
from purify_audit.models.protocols import Purifier
from purify_audit.models.user_code.errors import UserCodeError
from purify_audit.models.user_code.purifier import UserPurifier
from purify_audit.spec.architectures import CodeArgs
from purify_audit.spec.card import CodeCard

MODELS = Path(__file__).parents[3] / "models"
NOISE = Noise(9, (4, 4, 7, 7, 8, 8), (0, 0, 0, 1, 1, 1))
X = torch.from_numpy(grey_images(6).pixels.copy())


def user_purifier(call, randomised=True, data_range=(0.0, 1.0), **card):
    about = CodeCard(
        name="test",
        image=DIGITS,
        provenance=PROVENANCE,
        network=CodeArgs(factory="tests:code"),
        randomised=randomised,
        **card,
    )
    return UserPurifier(about, call, data_range)


class Unaligned:
    """The same code with the randomness that it draws itself."""

    image, randomised, evaluations = DIGITS, True, 1

    def __init__(self, call):
        self.call = call

    def __call__(self, x, noise):
        return self.call(x.clone())


TOGETHER = {
    code.three_steps: "batch",
    code.one_image_for_all: "address",
    code.random_time: "address",
    code.numpy_time: "address",
    code.python_shift: "address",
    code.numpy_noise: "row",
    code.image_by_image: "row",
    code.until_bright: "row",
    code.shuffled_strengths: "row",
    code.doubled: "row",
    code.seeded_by_a_draw: "batch",
    code.replays_itself: "batch",
    code.in_a_thread: "row",
    code.writes_to_its_input: "batch",
    code.one_at_a_time: "row",
}
NETWORKS = {
    "dropout": code.Dropout,
    "langevin": code.Langevin,
    "half": code.HalfPrecision,
    "counter": code.Counter,
    "checkpointed": code.Checkpointed,
}
ALL = {f.__name__: lambda f=f: f for f in TOGETHER} | NETWORKS


def test_a_user_purifier_is_a_purifier():
    assert isinstance(user_purifier(code.three_steps), Purifier)


@pytest.mark.parametrize("name", ALL)
def test_rows_are_the_same_in_any_batch(name):
    whole = user_purifier(ALL[name]())(X, NOISE)
    assert not torch.allclose(whole, user_purifier(ALL[name]())(X, Noise(10, *NOISE_IDS)))
    for parts in ([slice(n, n + 1) for n in range(6)], [slice(0, 4), slice(4, 6)]):
        purify = user_purifier(ALL[name]())
        made = torch.cat([purify(X[rows], NOISE[rows]) for rows in parts])
        torch.testing.assert_close(made, whole, atol=2e-6, rtol=0)
    turned = Noise(9, NOISE.images[::-1], NOISE.draws[::-1])
    made = user_purifier(ALL[name]())(X.flip(0), turned).flip(0)
    torch.testing.assert_close(made, whole, atol=2e-6, rtol=0)


NOISE_IDS = (NOISE.images, NOISE.draws)


@pytest.mark.parametrize("name", ALL)
def test_the_same_address_gives_the_same_draw_to_another_image(name):
    """The noise of x and of x + delta is one: what differs is made of the difference alone."""
    purify = user_purifier(ALL[name]())
    same = Noise(9, (4, 4), (3, 3))
    first = purify(X[:1].repeat(2, 1, 1, 1), same)
    assert torch.allclose(first[0], first[1], atol=2e-6)
    assert torch.equal(purify(X[:2], same), purify(X[:2], same))


@pytest.mark.parametrize(
    ("call", "together"), TOGETHER.items(), ids=lambda v: getattr(v, "__name__", str(v))
)
def test_as_many_rows_are_purified_together_as_can_be(call, together):
    purify = user_purifier(call)
    purify(X, NOISE)
    assert purify.learnt.handling.together == together
    assert purify.learnt.handling.randomised
    assert {f.code for f in purify.findings()} == (set() if together == "batch" else {"PA112"})


def test_constant_numbers_are_constant_in_every_row_and_draw():
    purify = user_purifier(code.always_seed_zero)
    first, second = purify(X, NOISE), purify(X, Noise(123, *NOISE_IDS))
    assert torch.equal(first, second)
    noise = first - (0.5 * X + 0.25)
    torch.testing.assert_close(noise, noise[:1].expand_as(noise), atol=1e-6, rtol=0)
    assert not purify.learnt.handling.randomised
    assert purify.capture_report(X)[0].constant


def test_a_generator_that_goes_on_between_calls_is_put_in_its_place():
    purify = user_purifier(code.Counter())
    assert torch.equal(purify(X, NOISE), purify(X, NOISE))


def test_the_callers_generators_and_the_codes_flags_are_left_alone():
    network = code.Dropout()
    flags = [m.training for m in network.modules()]
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    for call in (network, code.numpy_noise, code.python_shift, code.always_seed_zero):
        user_purifier(call)(X, NOISE)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (str(np.random.get_state()), random.getstate())  # noqa: NPY002
    assert [m.training for m in network.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_the_input_is_left_alone():
    x = X.clone()
    user_purifier(code.writes_to_its_input)(x, NOISE)
    assert torch.equal(x, X)


# --- what it must show ---------------------------------------------------------------------------


def test_unmodified_code_has_its_closed_form_rate_and_seems_to_have_far_more_unaligned():
    images = grey_images(16)
    aligned = run(user_purifier(code.three_steps), images)
    for norm in ("l2", "linf"):
        assert pick(aligned, "compression_rate", norm).value == pytest.approx(0.9**3, abs=2e-6)
    assert codes(aligned) == []
    fresh = run(Unaligned(code.three_steps), images, measure_anyway=True)
    times = pick(fresh, "compression_rate", "l2").value / 0.9**3
    noise = 0.05 * np.sqrt(1 + 0.81 + 0.81**2)  # standard deviation of the whole chain's noise
    expected = np.sqrt(0.9**6 * 0.05**2 + 2 * noise**2) / 0.05 / 0.9**3
    assert times == pytest.approx(expected, rel=0.02)
    assert times > 3
    assert {"PA101", "PA107"} <= set(codes(fresh))
    ratio = pick(aligned, "unaligned_ratio", "l2").value
    assert ratio == pytest.approx(pick(fresh, "compression_rate", "l2").value, rel=0.06)


@pytest.mark.parametrize("microbatch", [1, 3, 5])
@pytest.mark.parametrize("call", [code.three_steps, code.random_time, code.until_bright])
def test_a_report_does_not_depend_on_the_micro_batch(call, microbatch):
    images = grey_images(6)
    usual, other = (
        run(user_purifier(call), images, microbatch=size, draws=2, directions=2)
        for size in (16, microbatch)
    )
    for one, two in zip(usual.report.estimates, other.report.estimates, strict=True):
        assert (one.metric, one.norm) == (two.metric, two.norm)
        assert two.value == pytest.approx(one.value, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("call", [code.random_time, code.numpy_time, code.one_image_for_all])
def test_numbers_that_a_batch_shares_are_aligned_too(call):
    outcome = run(user_purifier(call), grey_images(6), draws=2, directions=2)
    assert codes(outcome) == ["PA112"]
    if call is code.one_image_for_all:
        assert pick(outcome, "compression_rate", "l2").value == pytest.approx(0.5, abs=1e-5)


# --- findings -----------------------------------------------------------------------------------

ENDS = {
    code.unseeded_numpy: {"PA101"},
    code.by_the_clock: {"PA101"},
    code.always_seed_zero: {"PA109"},
    code.gamma_noise: {"PA111"},
    code.swallows: {"PA111"},
    code.numpy_noise: {"PA112"},
    code.in_a_thread: {"PA112"},
}


@pytest.mark.parametrize(
    ("call", "expected"), ENDS.items(), ids=lambda v: getattr(v, "__name__", str(v))
)
def test_what_cannot_be_aligned_ends_in_its_finding(call, expected):
    assert expected <= set(codes(run(user_purifier(call))))


def test_a_refusal_names_the_operator_and_the_line_and_ends_the_audit():
    outcome = run(user_purifier(code.gamma_noise))
    (found,) = outcome.report.findings
    assert (found.code, found.severity) == ("PA111", "error")
    assert "aten::_standard_gamma" in found.sentence
    assert outcome.samples is None


def test_a_refusal_while_measuring_is_no_crash():
    plain = grey_images(12)
    pixels = plain.pixels.copy()
    pixels[11] = 1.0  # beyond what preflight looks at
    images = ImageSet(pixels, plain.labels, plain.ids, plain.source)
    purify = user_purifier(code.rare_gamma, randomised=False)
    outcome = run(purify, images, draws=1, microbatch=4)
    assert "PA202" in codes(outcome)
    assert "PA111" in codes(outcome)
    assert run(user_purifier(code.gamma_noise), measure_anyway=True).samples is None


def test_training_mode_is_told_and_batch_statistics_are_found():
    assert set(codes(run(user_purifier(code.BatchNormLeftOn())))) >= {"PA102"}
    purify = user_purifier(code.Dropout())
    (found,) = (f for f in run(purify).report.findings)
    assert found.code == "PA113"
    assert "dropout (Dropout)" in found.sentence


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda x: x.flatten(1), [8, 64]),
        (lambda x: (255 * x).to(torch.uint8), [8, 1, 8, 8]),
        (lambda x: x.mean(0, keepdim=True) + torch.randn(1, 1, 8, 8), [1, 1, 8, 8]),
    ],
    ids=["flat", "bytes", "one"],
)
def test_an_output_that_is_no_image_is_a_finding(call, shape):
    outcome = run(user_purifier(call))
    assert codes(outcome) == ["PA104"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (code.fails, "KeyError at tests/support/user_code_samples.py:"),
        (lambda x: None, "returned NoneType, not a tensor of images"),
        (lambda x: (x, x), "returned tuple, not a tensor"),
        (
            lambda x: torch.ones(2, 3) @ torch.ones(2, 3),
            "RuntimeError at tests/models/user_code/test_user_code.py:",
        ),
    ],
    ids=["exception", "nothing", "two", "torch"],
)
def test_what_the_code_does_wrong_is_told_in_one_sentence(call, said, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    with pytest.raises(UserCodeError, match=r"^tests:code: ") as told:
        user_purifier(call)(X, NOISE)
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_half_precision_comes_back_as_what_went_in():
    assert user_purifier(code.HalfPrecision())(X, NOISE).dtype == torch.float32


def test_data_range_and_clamp():
    seen = []

    def spy(x):
        seen.append((float(x.min()), float(x.max())))
        return x * 3

    x = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    out = user_purifier(spy, data_range=(-1.0, 1.0))(x, NOISE[:1])
    assert seen[-1] == (-1.0, 1.0)
    torch.testing.assert_close(out, ((2 * x - 1) * 3 + 1) / 2)
    clamped = user_purifier(spy, data_range=(-1.0, 1.0), clamp=True)(x, NOISE[:1])
    torch.testing.assert_close(clamped, out.clamp(0, 1))


def test_the_report_of_draws_names_them():
    (drawn,) = user_purifier(code.three_steps).capture_report(X)
    assert (drawn.operator, drawn.distribution) == ("aten::randn_like", "normal")
    assert (drawn.count, drawn.shape, drawn.per_row) == (3, (1, 8, 8), True)
    assert "user_code_samples.py:" in drawn.where
    shared, own = user_purifier(code.random_time).capture_report(X)
    assert (shared.shape, shared.per_row) == ((), False)
    assert own.per_row
    (numpy_random, _) = user_purifier(code.numpy_time).capture_report(X)[::-1]
    assert numpy_random.operator == "numpy.random"


# --- gradients ----------------------------------------------------------------------------------


def head(y):
    weights = torch.linspace(-1, 1, 64, dtype=y.dtype).reshape(1, 1, 8, 8)
    return (y * weights).flatten(1).sum(1) ** 2, y.flatten(1)


def gradient(purifier, x=X, noise=NOISE):
    with torch.no_grad():
        return exact(steps_of(purifier, noise), head, x).at_input


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", ["reentrant", "new"])
def test_checkpointing_inside_changes_no_gradient(kind):
    plain, checked = (gradient(user_purifier(code.Checkpointed(k))) for k in (None, kind))
    assert plain.abs().max() > 0
    assert torch.equal(plain, checked)


DIFFERENTIABLE = {
    "checkpointed": lambda: code.Checkpointed("new"),
    "dropout": code.Dropout,
    "langevin": lambda: code.Langevin(differentiable=True),
    "shared": lambda: code.one_image_for_all,
    "one by one": lambda: code.until_bright,
    "in place": lambda: code.writes_to_its_input,
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_those_of_central_differences_in_float64(name):
    purify, x = user_purifier(DIFFERENTIABLE[name]()), X.double()
    found = gradient(purify, x)
    along = NOISE.normal(77, (1, 8, 8)).double()
    along = along / along.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        up, down = (head(purify(x + h * along, NOISE))[0] for h in (1e-5, -1e-5))
    promised = (found * along).flatten(1).sum(1)
    scale = found.flatten(1).norm(dim=1)
    assert float((((up - down) / 2e-5 - promised) / scale).abs().max()) < 1e-6


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_gradient_is_the_same_in_any_batch(name):
    whole = gradient(user_purifier(DIFFERENTIABLE[name]()))
    parts = [
        gradient(user_purifier(DIFFERENTIABLE[name]()), X[n : n + 1], NOISE[n : n + 1])
        for n in range(6)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-4)


def test_float64_leaves_the_weights_as_they_were():
    network = code.Checkpointed()
    before = [p.detach().clone() for p in network.parameters()]
    purify = user_purifier(network)
    assert in_float64(purify) is purify
    wide = purify(X.double(), NOISE)
    assert wide.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    torch.testing.assert_close(wide.float(), purify(X, NOISE), atol=1e-6, rtol=0)
    assert not torch.equal(wide, wide.float().double())
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before))


def test_code_that_lets_no_gradient_through_has_gradient_zero():
    assert not gradient(user_purifier(code.Langevin())).any()


def test_inference_mode_inside_is_aligned_and_has_gradient_zero():
    purify = user_purifier(code.under_inference_mode)
    torch.testing.assert_close(purify(X, NOISE), 0.5 * X + 0.25 + 0.05 * NOISE.normal(0, (1, 8, 8)))
    assert not gradient(purify).any()


def test_a_backward_pass_that_cannot_be_aligned_is_a_finding_and_no_crash():
    purify = user_purifier(code.OneWay())
    assert gradient(purify).isnan().all()
    assert [f.code for f in purify.findings()] == ["PA111"]


def test_weights_collect_no_gradient():
    network = code.Checkpointed("new")
    gradient(user_purifier(network))
    assert all(p.grad is None for p in network.parameters())


ATTACK = {
    "norm": "linf",
    "eps": (0.15,),
    "steps": 2,
    "draws": 1,
    "restarts": 1,
    "held_out": 2,
    "square_queries": 10,
    "microbatch": 8,
}


def checked(purifier, n=4):
    images = choose(load_images("digits"), n, 0)
    checkpoint = read_checkpoint(str(MODELS / "digits-classifier.safetensors"))
    subject = subject_for(
        purifier,
        images,
        judge=LoadedClassifier(checkpoint, load_classifier(checkpoint, CPU)),
        attack=ATTACK,
    )
    defence = Defence(purifier, subject.classifier.model, CPU, 0, 8)
    on, how = targets(images, CPU), subject.plan.attack
    return check_gradient(attack_objective(defence, on, how, "linf", 0.15), on.x)


shipped = pytest.mark.skipif(
    not (MODELS / "digits-classifier.safetensors").is_file(),
    reason="the shipped models are not here",
)


@shipped
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_audits_own_gradient_check_finds_nothing(name):
    found, errors = checked(user_purifier(DIFFERENTIABLE[name]()))
    assert found == []
    assert errors["unrolled_error"] == 0.0


@shipped
def test_code_that_refuses_float64_is_checked_in_float32_which_is_told():
    def stubborn(x):
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return code.three_steps(x)

    (found,), errors = checked(user_purifier(stubborn))
    assert (found.code, found.severity) == ("PA301", "warning")
    assert "float32 only" in found.sentence
    assert errors["difference_error"] < 0.1


@shipped
@pytest.mark.parametrize("call", [code.three_steps, code.Langevin(), code.random_time])
def test_attacks_run_on_user_code(call):
    images = choose(load_images("digits"), 4, 0)
    path = MODELS / "digits-classifier.safetensors"
    checkpoint = read_checkpoint(str(path))
    purifier = user_purifier(call)
    subject = subject_for(
        purifier,
        images,
        judge=LoadedClassifier(checkpoint, load_classifier(checkpoint, CPU)),
        attack=ATTACK,
    )
    basis = run_compression(subject, measure_anyway=True)
    attacked = run_attack(subject, basis)
    names = {e.metric for e in attacked.report.estimates}
    assert "aligned_robust_accuracy" in names
    assert "PA303" not in {f.code for f in attacked.report.findings}
