"""An attack that is fooled says so: every cheat ends in its finding, and honesty in none."""

import dataclasses
import math
from pathlib import Path

import cheats
import numpy as np
import pytest
import torch
from attack_cheats import CHEATS, digits
from scipy.stats import beta
from subjects import CPU, DIGITS, subject_for
from torch import nn

from purify_audit.attacks.attack import attack, attack_objective, targets
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.gradient_checks import check_gradient, check_usefulness, in_float64
from purify_audit.attacks.objective import Defence
from purify_audit.attacks.pgd import AttackOutput
from purify_audit.attacks.sanity_checks import (
    _outside,
    check_attack,
    check_convergence,
    check_stronger,
    check_unbounded,
    convergence,
)
from purify_audit.audit.attack_report import run_attack
from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.cost import planned_evaluations
from purify_audit.audit.result import Progress
from purify_audit.images.image_set import ImageSet
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.models.runner import Stopped, deterministic
from purify_audit.spec.attack_plan import PRESETS, AttackPlan
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.samplers import DDPMSampler

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
shipped = pytest.mark.skipif(
    not (MODELS / "digits-classifier.safetensors").is_file(),
    reason="the shipped models are not here",
)
QUICK = {
    "norm": "linf",
    "eps": (0.15,),
    "steps": 10,
    "draws": 1,
    "restarts": 1,
    "held_out": 2,
    "square_queries": 50,
    "microbatch": 16,
}


SMALL = {"targets": 2, "fresh_draws": 2, "fresh_steps": 2}


@pytest.fixture(scope="module")
def judge():
    checkpoint = read_checkpoint(str(MODELS / "digits-classifier.safetensors"))
    return checkpoint, load_classifier(checkpoint, CPU)


class Over(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.flip(3))


@pytest.fixture(scope="module")
def turned(judge):
    """The classifier for images that are turned over."""
    checkpoint, classifier = judge
    return checkpoint, dataclasses.replace(classifier, network=Over(classifier.network))


def subject(purifier, judge, n=32, images=None, **how):
    images = digits(n) if images is None else images
    how = QUICK | how
    settings = {"draws": 2, "directions": 2, "eps": how["eps"], "norm": how["norm"]}
    return subject_for(purifier, images, judge=judge, attack=how, microbatch=64, **settings)


def attacked(purifier, judge, tick=lambda evaluations: None, **how):
    """The whole of `run_attack`, also of what preflight would have stopped."""
    which = subject(purifier, judge, **how)
    return run_attack(which, run_compression(which, measure_anyway=True), Progress(tick))


def codes(verified, *severities):
    return {
        f.code
        for f in verified.report.findings
        if f.severity in (severities or ("error", "warning", "info"))
    }


def value(verified, metric, probe="aligned", eps=None):
    (found,) = (
        e.value
        for e in verified.report.estimates
        if (e.metric, e.probe) == (metric, probe) and eps in (None, e.eps)
    )
    return found


# Cheats, through the whole of `run_attack`.

NAMES = [getattr(cheat, "__name__", "").replace("<lambda>", "LooksUp") for cheat, _ in CHEATS]


@shipped
@pytest.mark.parametrize(("cheat", "expected"), CHEATS, ids=NAMES)
def test_a_cheat_ends_in_its_finding(cheat, expected, judge):
    found = attacked(cheat(), judge)
    assert expected <= codes(found, "error")
    assert found.report.attack.evaluations > 0


@shipped
@pytest.mark.parametrize(
    "purifier",
    [
        cheats.Cheat(),
        TransformPurifier(parse_transform("identity", DIGITS)),
        TransformPurifier(parse_transform("gaussian-smoothing", DIGITS)),
        TransformPurifier(parse_transform("gaussian-noise:sigma=0.2", DIGITS)),
    ],
    ids=["Cheat", "identity", "smoothing", "noise"],
)
def test_an_honest_purifier_earns_no_error(purifier, judge):
    found = attacked(purifier, judge)
    assert codes(found, "error") == set()
    assert found.report.status == "complete"
    assert value(found, "aligned_robust_accuracy") < 0.4


@shipped
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("optimiser", ["pgd", "apgd"])
def test_an_honest_purifier_earns_no_error_in_any_ball(norm, optimiser, judge):
    eps = {"linf": 0.1, "l2": 0.8}[norm]
    how = {"norm": norm, "eps": (eps,), "optimiser": optimiser, "draws": 2, "restarts": 2}
    assert codes(attacked(cheats.Cheat(), judge, n=24, **how), "error") == set()


@shipped
def test_the_shipped_diffusion_purifier_earns_no_error(judge):
    checkpoint = read_checkpoint(str(MODELS / "digits-ddpm.safetensors"))
    card = checkpoint.card.model_copy(update={"t_star": 6, "sampler": DDPMSampler()})
    purifier = load_purifier(checkpoint, CPU, card)
    found = attacked(purifier, judge, n=4, steps=8, microbatch=4, square_queries=5)
    assert codes(found, "error") == set()
    assert "PA310" not in codes(found)
    gradients = found.report.attack.gradients
    assert 0.0 < gradients["cosine_surrogate"] < 1.0
    assert gradients["cosine_none"] > gradients["cosine_bpda"] > 0.0


@shipped
def test_drifting_during_the_attack_is_found(judge):
    purifier = cheats.DriftsWhenTold()
    which = subject(purifier, judge)
    basis = run_compression(which)
    assert basis.report.findings == ()
    purifier.calls_left = 60
    assert "PA303" in codes(run_attack(which, basis), "error")


@shipped
def test_what_randomness_hides_is_told(judge):
    purifier = TransformPurifier(parse_transform("gaussian-noise:sigma=0.4", DIGITS))
    found = attacked(purifier, judge, n=64, held_out=8, targets=2, fresh_draws=4, fresh_steps=8)
    (told,) = (f for f in found.report.findings if f.code == "PA309")
    assert told.severity == "warning"
    usual, aligned = told.evidence["usual"], told.evidence["aligned"]
    assert usual == value(found, "mean_robust_accuracy", "fresh") > aligned
    assert aligned == value(found, "aligned_robust_accuracy", "aligned")
    assert told.evidence["inflation"] == pytest.approx(usual - aligned)
    assert "PA309" not in codes(attacked(cheats.Cheat(), judge))


@shipped
@pytest.mark.parametrize(
    ("how", "used"),
    [
        ({"optimiser": "square"}, "no gradient"),
        ({"gradient": "bpda"}, "gradient 'bpda'"),
        ({"gradient": "none"}, "gradient 'none'"),
    ],
)
def test_an_approximate_attack_is_named(how, used, judge):
    found = attacked(cheats.Cheat(), judge, n=8, **how)
    (told,) = (f for f in found.report.findings if f.code == "PA310")
    assert told.sentence == f"The attack used {used}."


@shipped
def test_too_few_steps_are_told(judge):
    """A continuation breaks what one step left; its images count as fooled."""
    found = attacked(cheats.Cheat(), judge, optimiser="pgd", steps=1, eps=(0.08,), **SMALL)
    (told,) = (f for f in found.report.findings if f.code == "PA307")
    reached = found.report.attack.convergence
    assert told.severity == ("info" if reached.broken == 1 else "warning")
    assert told.evidence["broken"] == reached.broken > 0
    assert reached.continued < reached.robust_accuracy
    assert value(found, "aligned_robust_accuracy") == pytest.approx(
        reached.robust_accuracy - reached.broken / 32
    )
    names = [v.broken_by for v in found.report.attack.images]
    assert names.count("continuation") == reached.broken


@shipped
def test_images_that_stand_without_compression_are_named(judge):
    found = attacked(cheats.Cheat(), judge)
    (told,) = (f for f in found.report.findings if f.code == "PA312")
    assert tuple(told.evidence["image_ids"]) == found.report.attack.robust_without_compression


# A wish to stop.


@shipped
@pytest.mark.parametrize("share", [0.0, 0.2, 0.3])
def test_a_run_that_ends_early_is_never_certified(share, judge):
    how = {"steps": 5, "optimiser": "pgd"} | SMALL
    which = subject(cheats.Cheat(), judge, **how)
    basis, left = run_compression(which), [share * planned_evaluations(which, compression=False)]

    def tick(evaluations):
        left[0] -= evaluations
        if left[0] < 0:
            raise Stopped

    found = run_attack(which, basis, Progress(tick))
    assert found.report.status == "partial"
    assert "PA311" in codes(found, "error")
    (told,) = (f for f in found.report.findings if f.code == "PA311")
    done = told.evidence["images"]
    assert (done == 0) == (share == 0.0)
    assert (found.attacks is None) == (found.report.attack is None) == (done == 0)
    if done:
        assert list(found.attacks.ids) == which.images.ids[:done].tolist()
        assert {e.n_images for e in found.report.estimates if e.probe == "aligned"} == {done}


# Cheats made against the checks themselves; those marked as failing are holes.


@shipped
def test_a_gradient_that_is_nan_is_found(judge):
    assert {"PA302"} <= codes(attacked(cheats.NaNGradient(), judge), "error")


@shipped
def test_an_output_that_is_nan_under_attack_is_found(judge):
    purifier = cheats.Abstains(judge[1])
    assert codes(attacked(purifier, judge, steps=3), "error")


@shipped
def test_images_looked_up_by_id_are_found(judge):
    found = attacked(cheats.LooksUpNear(digits()), judge)
    assert value(found, "aligned_robust_accuracy") < 0.5 or codes(found, "error")


@shipped
def test_a_shattered_gradient_that_bpda_cannot_follow_is_found(turned):
    found = attacked(cheats.ShatteredAndTurned(), turned)
    assert value(found, "aligned_robust_accuracy") < 0.5 or codes(found, "error")


@shipped
def test_more_queries_of_square_find_a_shattered_gradient(turned):
    found = attacked(cheats.ShatteredAndTurned(), turned, square_queries=200)
    assert "PA306" in codes(found, "error")


@shipped
def test_a_gradient_that_is_half_true_in_float32_is_found(turned):
    found = attacked(cheats.HalfTrueAndTurned(), turned, n=48)
    assert value(found, "aligned_robust_accuracy") < 0.5 or codes(found, "error")


@shipped
def test_a_gradient_that_is_true_at_clean_images_alone_is_found(judge):
    found, honest = (attacked(c, judge) for c in (cheats.TrueOnTheGrid(), cheats.Cheat()))
    gap = value(found, "aligned_robust_accuracy") - value(honest, "aligned_robust_accuracy")
    assert gap < 0.05 or codes(found, "error")


@shipped
def test_an_honest_median_filter_earns_no_mismatch(judge):
    purifier = TransformPurifier(parse_transform("median:size=3", DIGITS))
    assert "PA301" not in codes(attacked(purifier, judge))


@shipped
def test_a_weak_fresh_attack_is_not_taken_for_randomness(judge):
    assert "PA309" not in codes(attacked(cheats.Cheat(), judge))
    found = attacked(cheats.Cheat(), judge, optimiser="square", steps=40)
    assert "PA309" not in codes(found)


@shipped
def test_a_rippled_gradient_that_bpda_cannot_follow_is_found(turned):
    queries = PRESETS["smoke"]["attack"]["square_queries"]
    found = attacked(cheats.RippledAndTurned(), turned, n=48, square_queries=queries)
    told = codes(found, "error") | codes(found, "warning") & {"PA307"}
    assert value(found, "aligned_robust_accuracy") < 0.5 or told


@shipped
def test_more_queries_of_square_find_a_rippled_gradient(turned):
    found = attacked(cheats.RippledAndTurned(), turned, n=48, square_queries=300, microbatch=48)
    assert "PA306" in codes(found, "error")


@shipped
def test_images_looked_up_under_their_other_name_are_found(judge):
    found = attacked(cheats.LooksUpRenamed(digits()), judge)
    assert value(found, "aligned_robust_accuracy") < 0.5 or codes(found, "error")


# A linear defence, of which everything is known.


@dataclasses.dataclass(frozen=True)
class Linear:
    """Two classes, told apart by w·y."""

    w: torch.Tensor
    image = DIGITS
    classes = 2

    def __call__(self, y):
        z = (y * self.w).flatten(1).sum(1)
        return torch.stack((z, -z), 1)


class Halves:
    image, randomised, evaluations = DIGITS, False, 1

    def __call__(self, x, noise):
        return 0.25 + 0.5 * x


def linear_case(n=40):
    """Images around grey with margins of both small and large size, and who judges them."""
    rng = np.random.default_rng(5)
    w = rng.normal(size=(1, 8, 8))
    w -= w.mean()  # grey is on the boundary
    pixels = (0.5 + 0.05 * rng.uniform(-1, 1, (n, 1, 8, 8))).astype(np.float32)
    z = (pixels * w).reshape(n, -1).sum(1)
    labels = np.where(z > 0, 0, 1)
    images = ImageSet(pixels, labels, np.arange(n) + 7, "linear")
    return images, Linear(torch.from_numpy(w.astype(np.float32))), np.abs(z)


@shipped
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_defence_falls_where_it_must(norm, judge):
    images, linear, distance = linear_case()
    order = {"linf": 1, "l2": 2}[norm]
    size = float(np.linalg.norm(linear.w.numpy().ravel(), order))
    radius = distance / size  # halving everything moves the boundary nowhere
    eps = float(np.median(radius)) * 1.01
    found = attacked(
        Halves(), (judge[0], linear), images=images, norm=norm, eps=(eps,), square_queries=20
    )
    assert codes(found, "error") == set()
    stands = radius > eps
    assert value(found, "aligned_robust_accuracy") == stands.mean()
    assert value(found, "bare_robust_accuracy", "bare") == stands.mean()
    assert found.report.attack.gradients["cosine_bpda"] == pytest.approx(1.0)
    assert found.report.attack.gradients["difference_error"] < 1e-6
    by_id = {v.image: v for v in found.report.attack.images}
    for n, image in enumerate(images.ids):
        verdict = by_id[int(image)]
        assert verdict.robust == float(stands[n])
        assert verdict.rates["attack"] == pytest.approx(0.5, abs=1e-5)
        assert verdict.margin == pytest.approx(distance[n], abs=1e-5)
        # bisection ends within a 64th above; the unbounded attack finds those that stand
        assert verdict.fooling_radius >= radius[n] * (1 - 1e-4)
        if not stands[n]:
            assert verdict.fooling_radius <= radius[n] + eps / 64 * 1.01


# The checks by themselves.


def aim_for(purifier, classifier, images, **how):
    plan = AttackPlan.model_validate(QUICK | how)
    on = targets(images, CPU)
    defence = Defence(purifier, classifier, CPU, 1, plan.microbatch)
    return attack_objective(defence, on, plan, plan.norm, plan.eps[0]), on, plan


@shipped
def test_gradients_of_the_shipped_models_are_their_derivatives(judge):
    for name in ("digits-ddpm", "digits-autoencoder"):
        checkpoint = read_checkpoint(str(MODELS / f"{name}.safetensors"))
        card = checkpoint.card
        if name == "digits-ddpm":
            card = card.model_copy(update={"t_star": 20, "sampler": DDPMSampler(steps=5)})
        purifier = load_purifier(checkpoint, CPU, card)
        for loss in ("margin", "ce", "dlr"):
            objective, on, _ = aim_for(purifier, judge[1], digits(8), loss=loss)
            with deterministic(gradients=True):
                findings, errors = check_gradient(objective, on.x)
            assert findings == []
            assert errors["unrolled_error"] < 1e-12
            assert errors["difference_error"] < 1e-4


@shipped
@pytest.mark.parametrize(
    ("cheat", "unrolled", "difference"),
    [
        (cheats.Cheat, 0.0, 0.0),
        (cheats.NegatedGradient, 0.0, 2.0),  # both gradients are false, and the same
        (cheats.Detached, 0.0, 1.0),
        (cheats.StraightThrough, 0.0, 1.0),
    ],
)
def test_errors_of_a_gradient_by_hand(cheat, unrolled, difference, judge):
    objective, on, _ = aim_for(cheat(), judge[1], digits(8))
    with deterministic(gradients=True):
        findings, errors = check_gradient(objective, on.x)
    assert errors["unrolled_error"] == pytest.approx(unrolled, abs=1e-9)
    assert errors["difference_error"] == pytest.approx(difference, abs=1e-3)
    assert [f.code for f in findings] == (["PA301"] if difference else [])
    assert all(f.evidence == errors for f in findings)


@shipped
@pytest.mark.parametrize(
    ("cheat", "zero", "not_finite", "vanishing", "told"),
    [
        (cheats.Cheat, 0.0, 0.0, 0.0, None),
        (cheats.Quantised, 1.0, 0.0, 0.0, "the same for every image"),
        (cheats.HalfDetached, None, 0.0, 0.0, "zero, not finite or vanishingly small for"),
        (cheats.NaNGradient, 0.0, 1.0, 0.0, "zero, not finite or vanishingly small for 100%"),
        (cheats.Saturated, 0.0, 0.0, 1.0, "zero, not finite or vanishingly small for 100%"),
        (cheats.ConstantGradient, 0.0, 0.0, 0.0, "the same for every image"),
    ],
)
def test_useless_gradients_are_counted(cheat, zero, not_finite, vanishing, told, judge):
    objective, on, _ = aim_for(cheat(), judge[1], digits(16))
    with deterministic(gradients=True):
        findings, found = check_usefulness(objective, on.x)
    if zero is not None:
        assert found["gradient_zero"] == zero
    assert found["gradient_not_finite"] == not_finite
    assert found["gradient_vanishing"] == vanishing
    assert [f.code for f in findings] == (["PA302"] if told else [])
    assert all(told in f.sentence for f in findings)
    assert ("cosine_draws" in found) == cheat.randomised
    assert all(-1.0 - 1e-9 <= v <= 1.0 + 1e-9 for v in found.values())


@shipped
def test_cosines_between_gradients_by_hand(judge):
    objective, on, _ = aim_for(cheats.Inverts(), judge[1], digits(8))
    with deterministic(gradients=True):
        found = check_usefulness(objective, on.x)[1]
    assert found["cosine_bpda"] == pytest.approx(-1.0, abs=1e-6)  # J = −0.5
    assert found["cosine_none"] == pytest.approx(1.0, abs=1e-3)


def made(**changes):
    x = torch.full((2, 1, 2, 2), 0.5)
    fields = {
        "x": x,
        "margins": torch.tensor([[1.0], [-1.0]]),
        "last": x,
        "fooled": (0.0, 0.5, 0.5),
        "losses": (-2.0, -1.0, 0.0),
        "last_losses": torch.zeros(2),
    }
    return AttackOutput(**fields | changes)


def check(attacked, again=None):
    """Codes and severities of `check_attack` where a second look gives other margins."""

    class Again:
        def evaluate(self, x, step):
            assert torch.equal(x, attacked.x)
            assert step == 0
            return type("Evaluation", (), {"margins": attacked.margins if again is None else again})

    found = check_attack(Again(), Ball(torch.full((2, 1, 2, 2), 0.5), "linf", 0.1), attacked)
    return [(f.code, f.severity) for f in found]


@pytest.mark.parametrize(
    ("gap", "severity"), [(0.0, None), (1e-5, "warning"), (1e-3, "error"), (math.nan, "error")]
)
def test_margins_computed_again(gap, severity):
    again = made().margins + torch.tensor([[gap], [0.0]])
    assert check(made(), again) == ([("PA303", severity)] if severity else [])


@pytest.mark.parametrize(
    ("losses", "rises"),
    [
        ((-2.0, -1.0, -3.0), True),
        ((-2.0, -2.0), False),
        ((-2.0, -2.5, -3.0), False),
        ((-2.0,), False),
        ((-2.0, -3.0, -1.999), True),
    ],
)
def test_a_loss_must_rise(losses, rises):
    assert check(made(losses=losses)) == ([] if rises else [("PA304", "error")])


def test_a_loss_need_not_rise_where_all_are_fooled_at_once():
    assert check(made(losses=(-2.0, -2.0), fooled=(1.0, 1.0))) == []


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_outside_the_ball_or_the_range(norm):
    x = torch.full((3, 1, 2, 2), 0.5)
    length = 1.0 if norm == "linf" else 2.0
    at_the_edge = x + 0.1 / length
    assert _outside(Ball(x, norm, 0.1), at_the_edge) == []
    assert _outside(Ball(x, norm, 0.1), x + 0.1 / length * (1 + 1e-6)) == []
    beyond = at_the_edge.clone()
    beyond[1] += 0.001 / length
    (told,) = _outside(Ball(x, norm, 0.1), beyond)
    assert (told.code, told.severity) == ("PA308", "error")
    assert told.evidence["beyond_radius"] == pytest.approx(0.001, rel=1e-3)
    assert told.evidence["beyond_range"] == 0.0
    for shift, wrong in ((0.5, 0.0), (0.55, 0.05), (-0.55, 0.05)):
        found = _outside(Ball(x, norm, 9.0), x + shift)
        assert [f.evidence["beyond_range"] for f in found] == pytest.approx(
            [wrong] if wrong else [], rel=1e-4
        )


@shipped
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("optimiser", ["portfolio", "pgd", "apgd", "square"])
def test_no_attack_leaves_its_ball(norm, optimiser, judge):
    eps = {"linf": 0.3, "l2": 2.0}[norm]
    objective, on, plan = aim_for(
        cheats.Cheat(), judge[1], digits(8), norm=norm, eps=(eps,), optimiser=optimiser, restarts=2
    )
    ball = Ball(on.x, norm, eps)
    with deterministic(gradients=True):
        assert check_attack(objective, ball, attack(objective, ball, plan)) == []


@pytest.mark.parametrize(
    ("wrong", "found"), [(0, True), (88, True), (89, True), (90, False), (100, False)]
)
def test_a_boundless_attack_may_leave_a_tenth(wrong, found):
    labels = np.zeros(100, np.int64)
    aligned = (np.arange(100) < wrong).astype(np.int64)[:, None]
    told = check_unbounded(0.5, aligned, labels)
    assert [f.code for f in told] == (["PA305"] if found else [])
    assert all(f.evidence["aligned_robust_accuracy"] == (100 - wrong) / 100 for f in told)


def verdicts(wins, losses, both=3):
    """Labels under the other attack and under the main one: 0 stands, 1 falls."""
    other = [1] * wins + [0] * losses + [1, 0] * both
    main = [0] * wins + [1] * losses + [1, 0] * both
    n = len(other)
    return np.array(other)[:, None], np.array(main)[:, None], np.zeros(n, np.int64)


# P(at least `wins` of wins + losses fair coins), by hand, against 5%.
SIGN_TESTS = [
    (0, 0, None),
    (4, 0, None),  # 1/16
    (5, 0, 1 / 32),
    (6, 1, None),  # 8/128
    (7, 1, 9 / 256),
    (8, 2, None),  # 56/1024
    (9, 2, 67 / 2048),
    (0, 20, None),
    (20, 20, None),
    (1, 0, None),
]


@pytest.mark.parametrize("same_draws", [True, False])
@pytest.mark.parametrize(("wins", "losses", "p"), SIGN_TESTS)
def test_a_stronger_attack_by_hand(wins, losses, p, same_draws):
    """An error if significant; single images are told too, where both had the same draws."""
    other, main, labels = verdicts(wins, losses)
    found = check_stronger("square", other, main, labels, same_draws=same_draws)
    told = wins > 0 and (p is not None or same_draws)
    assert [(f.code, f.severity) for f in found] == (
        [("PA306", "info" if p is None else "error")] if told else []
    )
    for f in found:
        assert f.evidence == {"attack": "square", "wins": wins, "losses": losses}
    if p is not None:
        tail = sum(math.comb(wins + losses, k) for k in range(wins, wins + losses + 1))
        assert tail / 2 ** (wins + losses) == pytest.approx(p)


def test_a_stronger_attack_counts_shares_of_draws():
    """Half of the draws against all of them is a loss, equal shares are a tie."""
    labels = np.zeros(6, np.int64)
    some, all_, none = [1, 0], [1, 1], [0, 0]
    main = np.array([none] * 5 + [some])
    (told,) = check_stronger("bpda", np.array([some] * 6), main, labels)
    assert (told.code, told.severity) == ("PA306", "error")
    assert check_stronger("bpda", np.array([some[::-1]] * 6), np.array([some] * 6), labels) == []
    assert check_stronger("bpda", np.array([some] * 6), np.array([all_] * 6), labels) == []


# What a continuation still breaks.


@pytest.mark.parametrize(
    ("standing", "broken"), [(0, 0), (1, 0), (1, 1), (20, 0), (20, 3), (64, 1), (64, 64)]
)
def test_what_a_continuation_breaks_by_hand(standing, broken):
    """The limit of Clopper and Pearson is a quantile of a beta distribution."""
    n, fell = standing + 5, 5
    labels = np.full(n, 3)
    main = np.array([[3]] * standing + [[4]] * fell)
    other = main.copy()
    other[:broken] = 7
    other[standing:] = 3  # what only the main attack breaks is none of its business
    found = convergence(other, main, labels)
    assert (found.images, found.standing, found.broken) == (n, standing, broken)
    assert found.robust_accuracy == pytest.approx(standing / n)
    assert found.continued == pytest.approx((n - broken) / n)
    want = beta.ppf(0.95, broken + 1, standing - broken) if broken < standing else 1.0
    assert found.upper == pytest.approx(want, rel=1e-9)
    if broken == 0 and standing:
        assert found.upper == pytest.approx(1 - 0.05 ** (1 / standing))  # the rule of three


def test_a_continuation_counts_shares_of_draws():
    """Of images that any draw leaves standing, those on which it fools more draws."""
    labels = np.zeros(5, np.int64)
    main = np.array([[0, 0], [0, 1], [0, 1], [1, 1], [0, 0]])
    other = np.array([[0, 1], [1, 0], [1, 1], [0, 0], [0, 0]])
    found = convergence(other, main, labels)
    assert (found.images, found.standing, found.broken) == (5, 4, 2)
    assert (found.robust_accuracy, found.continued) == (0.6, 0.6)


@pytest.mark.parametrize(
    ("images", "broken", "severity"),
    [
        (64, 0, None),
        (10, 1, "info"),  # a single image proves nothing
        (10, 2, "warning"),
        (100, 3, "info"),  # 3% and less
        (100, 4, "warning"),
        (64, 1, "info"),
        (64, 2, "warning"),
    ],
)
def test_an_attack_that_has_not_converged_is_told(images, broken, severity):
    main = np.zeros((images, 1), np.int64)
    other = (np.arange(images) < broken).astype(np.int64)[:, None]
    reached = convergence(other, main, np.zeros(images, np.int64))
    found = check_convergence(reached)
    assert [(f.code, f.severity) for f in found] == ([("PA307", severity)] if broken else [])
    for f in found:
        assert f.evidence == {"standing": images, "broken": broken, "upper": reached.upper}
        assert f"broke {broken} of the {images} images" in f.sentence


# float64 copies.


class Holds:
    """What a purifier of a user may hold."""

    image = ImageSpec(channels=1, height=2, width=2)
    randomised, evaluations = True, 1

    def __init__(self):
        self.network = nn.Conv2d(1, 1, 3, padding=1)
        self.scale, self.count, self.name = torch.ones(2), torch.arange(3), "x"

    def __call__(self, x, noise=None):
        return self.network(x) * self.scale.mean()


def test_a_float64_copy_leaves_the_original_alone():
    held = Holds()
    before = held.network.weight.clone()
    wide = in_float64(held)
    assert wide is not held
    assert wide.network.weight.dtype == wide.scale.dtype == torch.float64
    assert wide.count.dtype == torch.int64
    assert wide.name == "x"
    wide.network.weight.data += 1
    assert held.network.weight.dtype == held.scale.dtype == torch.float32
    assert torch.equal(held.network.weight, before)
    x = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert wide(x.double()).shape == held(x).shape
    assert torch.allclose(in_float64(held)(x.double()).float(), held(x), atol=1e-6)


@shipped
@pytest.mark.parametrize("name", ["digits-ddpm", "digits-autoencoder"])
def test_the_shipped_models_in_float64(name, judge):
    from purify_audit.core.noise import Noise

    checkpoint = read_checkpoint(str(MODELS / f"{name}.safetensors"))
    card = checkpoint.card
    if name == "digits-ddpm":
        card = card.model_copy(update={"t_star": 10})
    purifier = load_purifier(checkpoint, CPU, card)
    x, noise = torch.from_numpy(digits(4).pixels.copy()), Noise(0, (1, 2, 3, 4), (0,) * 4)
    y = purifier(x, noise)
    wide = in_float64(purifier)(x.double(), noise)
    assert (y.dtype, wide.dtype, wide.shape) == (torch.float32, torch.float64, y.shape)
    assert float((wide - y).abs().max()) < 1e-4
    assert torch.equal(purifier(x, noise), y)  # the original is what it was
    logits = in_float64(judge[1])(x.double())
    assert logits.dtype == torch.float64
    assert torch.allclose(logits.float(), judge[1](x), atol=1e-3)
    assert judge[1](x).dtype == torch.float32


def test_a_transformation_in_float64_is_itself():
    purifier = TransformPurifier(parse_transform("median", DIGITS))
    assert in_float64(purifier) == purifier
