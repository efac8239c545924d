"""All attacks of a plan: radii, comparison attacks that count, and planned evaluations."""

from dataclasses import replace

import cheats
import numpy as np
import pytest
from attack_cases import CPU, MODELS, digits_purifier
from attack_cheats import digits
from subjects import DIGITS, subject_for
from torch import nn

from purify_audit.audit.attack_results import AttackResults
from purify_audit.audit.attack_run import run_attacks
from purify_audit.audit.comparison_attacks import comparison_attacks, other_ids
from purify_audit.audit.cost import attack_evaluations
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_classifier
from purify_audit.models.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.models.runner import deterministic
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.statistics.attack_rows import RUNS, join_attacks

CLASSIFIER = MODELS / "digits-classifier.safetensors"
pytestmark = pytest.mark.skipif(not CLASSIFIER.is_file(), reason="the shipped models are not here")
SMALL = {
    "norm": "linf",
    "eps": (0.1,),
    "steps": 3,
    "draws": 1,
    "restarts": 1,
    "targets": 2,
    "held_out": 2,
    "fresh_draws": 2,
    "fresh_steps": 2,
    "square_queries": 5,
    "microbatch": 4,
}


@pytest.fixture(scope="module")
def judge():
    checkpoint = read_checkpoint(CLASSIFIER)
    return checkpoint, load_classifier(checkpoint, CPU)


@pytest.fixture(autouse=True)
def short_continuations(monkeypatch):
    monkeypatch.setattr("purify_audit.audit.comparison_attacks._CONTINUATION_STEPS", 4)


@pytest.fixture(scope="module")
def turned(judge):
    """The classifier for images that are turned over."""

    class Over(nn.Module):
        def forward(self, x):
            return judge[1].network(x.flip(3))

    return judge[0], replace(judge[1], network=Over())


def noise(sigma=0.2):
    return TransformPurifier(parse_transform(f"gaussian-noise:sigma={sigma}", DIGITS))


def attacked(purifier, judge, n=12, **changes):
    """The subject, and the results of all its attacks."""
    how = SMALL | changes
    settings = {"eps": how["eps"], "norm": how["norm"], "draws": 2, "directions": 2}
    subject = subject_for(purifier, digits(n), judge=judge, attack=how, **settings)
    found = AttackResults()
    with deterministic(gradients=True):
        run_attacks(subject, lambda evaluations: None, found, lambda samples: False)
    return subject, found


def correct(samples, name, eps):
    """Share of the aligned draws under which each image is classified correctly."""
    return (samples.find(name, eps).aligned == samples.labels[:, None]).mean(1)


# --- radii -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimiser", "radii"),
    [
        ("portfolio", (0.05, 0.15, 0.02)),
        ("portfolio", (0.02, 0.05, 0.15)),
        ("pgd", (0.15, 0.05, 0.02)),
        ("square", (0.05, 0.02, 0.15)),
    ],
)
def test_robust_accuracy_never_rises_with_the_radius(optimiser, radii, judge):
    """In whatever order radii are given, image by image."""
    found = attacked(noise(), judge, eps=radii, optimiser=optimiser, draws=2)[1]
    whole = found.parts[0] if len(found.parts) == 1 else found.samples()
    assert [s.eps for s in whole.scored if s.name == "aligned"] == list(radii)
    before = np.ones(12)
    for eps in sorted(radii):
        now = correct(whole, "aligned", eps)
        assert (now <= before).all()
        before = now
    assert before.mean() < correct(whole, "aligned", min(radii)).mean()


@pytest.mark.parametrize("optimiser", ["portfolio", "pgd"])
def test_nor_where_attacks_succeed_by_chance(optimiser, turned):
    """Radii so near that a larger one alone would often fool fewer images."""
    radii = (0.152, 0.15, 0.156, 0.154)
    settings = {"eps": radii, "optimiser": optimiser, "steps": 10}
    found = attacked(cheats.ShatteredAndTurned(), turned, 32, **settings)[1]
    samples = join_attacks(found.parts)
    before = np.ones(32)
    for eps in sorted(radii):
        now = correct(samples, "aligned", eps)
        assert (now <= before).all()
        before = now
    kept = samples.find("aligned", 0.156).made_by == RUNS.index("smaller-radius")
    assert kept.any()


def test_nor_where_a_comparison_attack_is_stronger(turned):
    """Its images count at the radius where it was run; a larger ball contains them."""
    purifier, queries = cheats.ShatteredAndTurned(), 200
    found = attacked(purifier, turned, 16, eps=(0.15, 0.152), square_queries=queries)[1]
    samples = found.samples()
    strong = samples.find("aligned", 0.15).made_by >= RUNS.index("bpda")
    assert strong.any()
    assert (correct(samples, "aligned", 0.152) <= correct(samples, "aligned", 0.15)).all()


# --- comparison attacks ------------------------------------------------------------------------


def test_images_of_stronger_comparison_attacks_count(turned):
    """The main attack's images are the best over everything run under its draws."""
    purifier, queries = cheats.ShatteredAndTurned(), 200
    found = attacked(purifier, turned, 24, eps=(0.15,), square_queries=queries)[1]
    samples, alone = found.samples(), found.parts
    main = samples.find("aligned")
    before = np.concatenate([part.find("aligned").aligned for part in alone])
    fooled = [(labels != samples.labels[:, None]).sum(1) for labels in (before, main.aligned)]
    assert (fooled[1] >= fooled[0]).all()
    assert (fooled[1] > fooled[0]).any()
    for other in found.comparisons:
        m = len(other.aligned)
        theirs = (other.aligned != samples.labels[:m, None]).sum(1)
        if other.name in RUNS:
            assert (fooled[1][:m] >= theirs).all()
        rows = (main.made_by == RUNS.index(other.name)) if other.name in RUNS else []
        for n in np.flatnonzero(rows):
            assert fooled[1][n] == theirs[n] > fooled[0][n]
            assert np.array_equal(main.images[n], other.images[n])
            assert np.array_equal(main.aligned[n], other.aligned[n])
    replaced = fooled[1] > fooled[0]
    assert np.array_equal(main.made_by >= RUNS.index("bpda"), replaced)
    assert np.isfinite(main.change_l2).all()
    assert (main.fooling_radius[replaced] <= 0.15 * (1 + 1e-6)).all()
    assert main.held_out.shape == (24, 2)
    # the convergence and the findings are about the main attack alone
    assert found.convergence.robust_accuracy == pytest.approx(1 - (fooled[0] > 0).mean())


def test_comparison_attacks_of_a_plan():
    plan = AttackPlan.model_validate(SMALL | {"steps": 45, "restarts": 3})
    attacks = comparison_attacks(plan)
    assert list(attacks) == ["unbounded", "other-ids", "continuation", "bpda", "square"]
    assert {other.restarts for other in attacks.values()} == {1}
    assert attacks["unbounded"] == plan.model_copy(update={"restarts": 1})
    assert attacks["other-ids"].steps == 20
    assert attacks["continuation"].steps >= 90
    assert attacks["continuation"].optimiser == "portfolio"
    assert (attacks["bpda"].gradient, attacks["bpda"].warm_start) == ("bpda", False)
    assert (attacks["square"].optimiser, attacks["square"].steps) == ("square", 5)
    search = comparison_attacks(plan.model_copy(update={"optimiser": "square"}))
    assert list(search) == ["unbounded", "other-ids", "continuation"]
    assert search["continuation"].optimiser == "square"
    assert search["continuation"].steps >= 90
    approximate = comparison_attacks(plan.model_copy(update={"gradient": "none"}))
    assert "bpda" not in approximate


def test_only_one_comparison_attack_has_other_ids(judge):
    """Without the seed they cannot be told; every other attack has the true ones."""
    ids = tuple(range(40))
    assert len(set(other_ids(ids, 1))) == 40
    assert set(other_ids(ids, 1)).isdisjoint(other_ids(ids, 2))
    seen = {}

    class Noted(cheats.Cheat):
        def __call__(self, x, noise):
            for image in noise.images:
                seen.setdefault(image, 0)
                seen[image] += 1
            return super().__call__(x, noise)

    subject, found = attacked(Noted(), judge, 4)
    true = set(subject.images.ids.tolist())
    others = set(other_ids(tuple(subject.images.ids.tolist()), subject.plan.seed))
    assert set(seen) == true | others
    assert {s.name for s in found.comparisons} == set(comparison_attacks(subject.plan.attack))


# --- planned evaluations -----------------------------------------------------------------------


def smoothing():
    return TransformPurifier(parse_transform("gaussian-smoothing", DIGITS))


def chain(steps=3):
    """A diffusion purifier, which has a one-step version if it has several steps."""
    sampler = {"kind": "ddpm", "steps": steps} if steps > 1 else {"kind": "one-step"}
    return digits_purifier(sampler, 9)


@pytest.mark.parametrize(
    ("optimiser", "purifier", "changes"),
    [
        ("portfolio", smoothing, {}),
        ("square", smoothing, {}),
        ("pgd", noise, {"draws": 2, "restarts": 2}),
        ("portfolio", noise, {"draws": 2, "restarts": 2, "eps": (1e-4, 2e-4)}),
        ("square", noise, {"draws": 2, "restarts": 2, "eps": (1e-4, 2e-4)}),
        ("portfolio", noise, {"gradient": "bpda"}),
        ("portfolio", chain, {"steps": 25}),
        ("apgd", chain, {}),
        ("portfolio", chain, {"warm_start": False, "targets": 0}),
        ("pgd", chain, {"gradient": "none"}),
        ("portfolio", lambda: chain(1), {"gradient": "none"}),
    ],
)
def test_planned_evaluations_bound_those_spent(optimiser, purifier, changes, judge):
    """And are not much more where no image falls."""
    settings = {"eps": (1e-4,), "optimiser": optimiser} | changes
    subject, found = attacked(purifier(), judge, 3, **settings)
    planned = attack_evaluations(subject)
    assert found.evaluations <= planned
    assert found.evaluations > 0.4 * planned


def test_they_bound_those_of_a_prediction_and_of_images_that_fall(judge):
    for changes in ({"predict_only": True}, {"eps": (0.4,), "steps": 30}):
        subject, found = attacked(chain(), judge, 3, **changes)
        assert 0 < found.evaluations <= attack_evaluations(subject)


def test_more_draws_of_the_fresh_attack_cost_more(judge):
    subject = attacked(noise(), judge, 4)[0]

    def planned(**changes):
        attack = subject.plan.attack.model_copy(update=changes)
        plan = subject.plan.model_copy(update={"attack": attack})
        return attack_evaluations(replace(subject, plan=plan))

    least = planned()
    for changes in ({"fresh_draws": 4}, {"fresh_steps": 4}, {"targets": 3}, {"held_out": 4}):
        assert planned(**changes) > least
