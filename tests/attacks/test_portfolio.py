"""A portfolio of attacks: its schedule, what it reaches that one run does not, its cost."""

from dataclasses import replace
from itertools import groupby

import pytest
import torch
from attack_cases import (
    CPU,
    LOSSES,
    MODELS,
    Bent,
    Case,
    First,
    defence,
    digits_purifier,
    inside,
    listen,
    normal,
    on,
    order,
    plan,
    uniform,
)

from purify_audit.attacks.attack import attack, attack_objective, easier, targets
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.objective import Defence
from purify_audit.attacks.portfolio import Run, Standing, portfolio, schedule, target_count
from purify_audit.images.image_set import choose, load_images
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_classifier
from purify_audit.models.runner import deterministic
from purify_audit.spec.attack_plan import SHORT_RUN, TRANSFER_STEPS
from purify_audit.spec.card import ImageSpec
from purify_audit.statistics.attack_rows import RUNS

CLASSIFIER = MODELS / "digits-classifier.safetensors"
shipped = pytest.mark.skipif(not CLASSIFIER.is_file(), reason="the shipped models are not here")

# --- the schedule ------------------------------------------------------------------------------


def rounds(runs):
    """Runs by round; a round ends with its untargeted run."""
    found, part = [], []
    for run in runs:
        part.append(run)
        if run.rank is None:
            found.append(part)
            part = []
    return [*found, part] if part else found


@pytest.mark.parametrize("targets", [0, 1, 2, 3, 9, 20])
@pytest.mark.parametrize("longer", [1, 2])
@pytest.mark.parametrize("cheaper", [False, True])
def test_a_schedule_spends_exactly_its_steps(targets, longer, cheaper):
    for steps in (1, 9, 10, 11, 60, 99, 100, 101, 200, 400, 1234):
        runs = schedule(steps, targets, cheaper=cheaper, longer=longer)
        transfers = [run for run in runs if run.name == "transfer"]
        assert runs[: len(transfers)] == transfers  # before anything else
        ranks = [*range(targets), None] if cheaper else []
        assert [run.rank for run in transfers] == ranks
        assert {run.steps for run in transfers} <= {TRANSFER_STEPS * longer}
        own = runs[len(transfers) :]
        assert sum(run.steps for run in own) == steps
        assert all(run.steps >= 1 for run in own)
        for run in own:
            assert run.name == ("untargeted" if run.rank is None else "targeted")


@pytest.mark.parametrize("targets", [1, 3, 9])
@pytest.mark.parametrize("longer", [1, 2])
def test_every_target_is_tried_in_the_first_round_of_enough_steps(targets, longer):
    enough = SHORT_RUN * longer * targets
    first = rounds(schedule(enough, targets, cheaper=False, longer=longer))[0]
    assert [run.rank for run in first] == list(range(targets))
    assert {run.steps for run in first} == {SHORT_RUN * longer}
    fewer = rounds(schedule(enough - 1, targets, cheaper=False, longer=longer))[0]
    assert [run.steps for run in fewer][-1] == SHORT_RUN * longer - 1


@pytest.mark.parametrize("longer", [1, 2])
def test_rounds_have_half_the_targets_and_twice_the_length(longer):
    found = rounds(schedule(10_000, 9, cheaper=False, longer=longer))
    assert [len(part) - 1 for part in found[:5]] == [9, 5, 3, 2, 1]
    for level, part in enumerate(found[:5]):
        assert [run.rank for run in part] == [*range(len(part) - 1), None]
        assert {run.steps for run in part} == {SHORT_RUN * longer * 2**level}
        assert {run.adaptive for run in part} == {level % 2 == 1}
        assert [run.size for run in part] == [1.0] * (len(part) - 1) + [0.5]


def test_a_schedule_by_hand():
    assert schedule(45, 2, cheaper=True) == [
        Run("transfer", 10, 0), Run("transfer", 10, 1), Run("transfer", 10),
        Run("targeted", 10, 0), Run("targeted", 10, 1), Run("untargeted", 10, size=0.5),
        Run("targeted", 15, 0, adaptive=True),
    ]  # fmt: skip
    assert schedule(25, 0, cheaper=False) == [
        Run("untargeted", 10),
        Run("untargeted", 15, adaptive=True),
    ]


def test_target_classes():
    assert [target_count(10, most, "margin") for most in (0, 3, 9, 50)] == [0, 3, 9, 9]
    assert [target_count(classes, 9, "ce") for classes in (2, 3, 4)] == [1, 2, 3]
    assert [target_count(classes, 9, "dlr") for classes in (2, 3, 4, 5)] == [0, 0, 3, 4]


# --- a nearest class that never wins -----------------------------------------------------------


class Plain:
    """The identity, on images of 2 x 2 pixels."""

    image, randomised, evaluations = ImageSpec(channels=1, height=2, width=2), False, 1

    def __call__(self, x, noise):
        return x


class Decoy:
    """Four classes at pixels a, b, c near 1/2; the label is 0, whose logit is 1.

    Class 1 is nearest, and saturates below 1: min(0.8 + 2 a', 0.95), a' = a − 1/2. Class 2 is
    0.5 + 6 b', and wins from b' = 1/12; class 3 is far. Along the margin's gradient only a matters
    until class 1 saturates, and then nothing does.
    """

    classes = 4

    def __call__(self, y):
        a, b, c = (y.flatten(1) - 0.5).unbind(1)[:3]
        first = (0.8 + 2.0 * a).clamp(max=0.95)
        return torch.stack([torch.ones_like(a), first, 0.5 + 6.0 * b, 0.1 * c - 1.0], 1)


def decoyed(eps, n=3, **changes):
    """An attack on `Decoy`."""
    x = torch.full((n, 1, 2, 2), 0.5)
    how = plan(eps=(eps,), steps=90, microbatch=8, **changes)
    which = defence(Plain(), Decoy(), 8)
    objective = attack_objective(which, on(x, [0] * n), how, "linf", eps)
    return objective, Ball(x, "linf", eps), how


@pytest.mark.parametrize("optimiser", ["pgd", "apgd"])
def test_one_run_is_led_to_the_class_that_never_wins(optimiser):
    objective, ball, how = decoyed(0.1, optimiser=optimiser)
    made = attack(objective, ball, how)
    torch.testing.assert_close(made.margins, torch.full((3, 1), 0.05), rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_portfolio_reaches_the_class_behind_it(loss):
    """Exactly where it can be reached: from a radius of 1/12."""
    for eps, falls in ((0.99 / 12, False), (1.01 / 12, True), (0.1, True)):
        objective, ball, how = decoyed(eps, optimiser="portfolio", loss=loss)
        made = attack(objective, ball, how)
        assert inside(ball, made.x)
        assert (made.margins <= 0).all() == falls
        assert torch.equal(objective.evaluate(made.x, 0).margins, made.margins)
        if falls:
            assert set(made.made_by.tolist()) == {RUNS.index("targeted")}
            assert made.fooled[-1] == 1.0
        else:
            want = max(1.0 - (0.5 + 6.0 * eps), 0.0)
            assert float(made.margins.min()) == pytest.approx(want, abs=1e-5)


def test_without_targets_it_is_led_there_too():
    objective, ball, how = decoyed(0.1, optimiser="portfolio", targets=0)
    made = attack(objective, ball, how)
    assert (made.margins > 0.04).all()
    assert set(made.made_by.tolist()) == {RUNS.index("untargeted")}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_robust_accuracy_of_a_linear_defence_is_reached(norm):
    """The worst of several classes, each a linear function."""
    case = Case(60, 5, 0.03)
    shift = case.shift(0)
    eps = 1.02 * float(case.radii(norm, shift).median())
    worst = case.worst(norm, eps, shift)
    how = plan(norm=norm, eps=(eps,), optimiser="portfolio", steps=60)
    ball = Ball(case.x, norm, eps)
    made = attack(attack_objective(case.defence, case.on, how, norm, eps), ball, how)
    assert inside(ball, made.x)
    stands = made.margins[:, 0] > 0
    assert torch.equal(stands, worst > 0)
    assert 0.3 < float(stands.double().mean()) < 0.7
    gap = made.margins[stands, 0].double() - worst[stands]
    assert float(gap.abs().max()) < 1e-4


# --- what is evaluated -------------------------------------------------------------------------


def bent(n=8, k=2, eps=0.2, ids=None, microbatch=7, classifier=None, right=False, **changes):
    """An attack on `Bent`: objective, ball and plan; right: labels are its own."""
    x = uniform(16, 1, 2, 3, seed=6).float()
    rows = list(range(n)) if ids is None else ids
    how = plan(eps=(eps,), draws=k, microbatch=microbatch, optimiser="portfolio", **changes)
    which = defence(Bent(), First() if classifier is None else classifier, microbatch)
    chosen = replace(on(x, torch.arange(16) % 4), x=x[rows], labels=torch.tensor(rows) % 4)
    chosen = replace(chosen, ids=tuple(100 + row for row in rows))
    objective = attack_objective(which, chosen, how, "linf", eps)
    if right:
        labels = which.logits(chosen.x, chosen.ids, how.aligned()).mean(1).argmax(1)
        objective = replace(objective, labels=labels)
    return objective, Ball(chosen.x, "linf", eps), how


def wasted(asked, objective):
    """Rows asked of images after an image of theirs was misclassified under every draw; and all."""
    labels = dict(zip(objective.ids, objective.labels.tolist(), strict=True))
    fell, late, total = set(), 0, 0
    for request in asked:
        total += len(request.ids) * len(request.draws)
        late += sum(image in fell for image in request.ids) * len(request.draws)
        if request.purifier is not objective.defence.purifier:
            continue
        wrong = request.logits.argmax(2) != torch.tensor([labels[i] for i in request.ids])[:, None]
        fell |= {image for image, all_ in zip(request.ids, wrong.all(1).tolist()) if all_}
    return late, total, fell


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("k", [1, 3])
def test_an_image_that_fell_is_never_evaluated_again(k, restarts, monkeypatch):
    objective, ball, how = bent(16, k, steps=70, restarts=restarts)
    x = ball.project(ball.x + 0.1 * normal(*ball.x.shape, seed=5).sign().float())
    asked = listen(monkeypatch)
    made = attack(objective, ball, how, {"bare": x})
    late, total, fell = wasted(asked, objective)
    assert (late, 0 < len(fell) < 16) == (0, True)
    assert {i for i, m in zip(objective.ids, made.margins) if (m <= 0).all()} == fell
    assert total > 100


@shipped
def test_nor_through_the_one_step_version(monkeypatch):
    images = targets(choose(load_images("digits"), 8, 0), CPU)
    classifier = load_classifier(read_checkpoint(CLASSIFIER), CPU)
    which = Defence(digits_purifier({"kind": "ddpm", "steps": 3}), classifier, CPU, 1, 4)
    how = plan(optimiser="portfolio", eps=(0.15,), steps=24, targets=2, microbatch=4)
    objective, ball = (
        attack_objective(which, images, how, "linf", 0.15),
        Ball(images.x, "linf", 0.15),
    )
    asked = listen(monkeypatch)
    with deterministic(gradients=True):
        made = attack(objective, ball, how)
        again = objective.evaluate(made.x, 0).margins
    late, _, fell = wasted(asked[:-1], objective)
    assert (late, 0 < len(fell) < 8) == (0, True)
    assert torch.equal(again, made.margins)
    short = easier(objective, how).defence.purifier
    steps = [r.purifier.evaluations for r in asked if r.gradient]
    transfers = 3 * TRANSFER_STEPS
    assert steps[:transfers] == [short.evaluations] * transfers
    assert set(steps[transfers:]) == {which.purifier.evaluations}
    assert len(steps) == transfers + how.steps
    assert RUNS.index("transfer") in made.made_by.tolist()
    # without the warm start there are none
    assert easier(objective, how.model_copy(update={"warm_start": False})) is None


class Certain:
    """The true class of every image, whatever its pixels: its first pixel's value is no matter."""

    classes = 4

    def __call__(self, y):
        return (
            torch.nn.functional.one_hot(torch.zeros(len(y), dtype=torch.int64), 4)
            + 0.1 * (y.flatten(1)[:, :4])
        )


@pytest.mark.parametrize(("steps", "restarts"), [(7, 1), (60, 1), (45, 2)])
def test_an_image_that_stands_gets_as_many_gradients_as_planned(steps, restarts, monkeypatch):
    objective, ball, how = bent(4, 2, steps=steps, restarts=restarts, classifier=Certain())
    objective = replace(objective, labels=torch.zeros(4, dtype=torch.int64))
    asked = listen(monkeypatch)
    made = attack(objective, ball, how)
    assert (made.margins > 0).all()
    gradients = [request for request in asked if request.gradient]
    assert len(gradients) == steps * restarts
    assert {request.ids for request in gradients} == {objective.ids}
    runs = restarts * len(schedule(steps, 3, cheaper=False))
    assert len(asked) == len(gradients) + 1 + runs
    assert len(made.fooled) == len(made.losses) == 1 + runs


def test_each_round_begins_with_the_most_promising_target(monkeypatch):
    """Ranked by logits first, then by the loss that each target's last run ended with."""
    objective, ball, how = bent(4, 1, steps=200, classifier=Certain(), eps=0.05)
    objective = replace(objective, labels=torch.zeros(4, dtype=torch.int64))
    standing = Standing(objective, ball, how.targets)
    logits = objective.defence.logits(ball.x, objective.ids, (0,)).mean(1)
    want, ends = logits[:, 1:].argsort(1, descending=True) + 1, {}
    towards, targeted = type(objective).towards, []

    def noted(self, targets):
        targeted.append(targets)
        return towards(self, targets)

    monkeypatch.setattr(type(objective), "towards", noted)
    for part in rounds(schedule(200, 3, cheaper=False))[:2]:
        targeted.clear()
        for run in part:
            standing.run(run, None)
        found = torch.stack(targeted, 1)
        assert torch.equal(found, want[:, : len(part) - 1])
        gaps = standing._gaps.gather(1, standing._classes.argsort(1))  # by class 1, 2, 3
        want = gaps.argsort(1, descending=True) + 1
        for n, end in enumerate(standing._points):
            ends.setdefault(n, []).append(end)
    assert all(inside(ball, end) for points in ends.values() for end in points)


# --- the best of everything --------------------------------------------------------------------


def better_or_fallen(now, before):
    """Whether no image is worse; of one that fell no more is asked."""
    return all(
        a >= b or a[0] == k for a, b, k in zip(order(now), order(before), [now.shape[1]] * 99)
    )


def test_more_steps_and_more_restarts_never_worsen():
    """Prefixes of the schedule, and more restarts after the first."""
    gained = 0
    for settings in (
        [{"steps": steps} for steps in (10, 20, 40, 80)],
        [{"steps": 20, "restarts": restarts} for restarts in (1, 2, 4)],
    ):
        before = None
        for changes in settings:
            objective, ball, how = bent(16, 2, eps=0.05, right=True, **changes)
            made = attack(objective, ball, how)
            assert list(made.fooled) == sorted(made.fooled)
            assert torch.equal(objective.evaluate(made.x, 0).margins, made.margins)
            if before is not None:
                assert better_or_fallen(made.margins, before)
                gained += sum(a > b for a, b in zip(order(made.margins), order(before)))
            before = made.margins
        assert gained > 0


def test_no_image_is_worse_than_those_of_others_or_the_image_itself():
    others = {}
    for place, name in enumerate(("smaller-radius", "predicted", "bare")):
        objective, ball, how = bent(16, 2, steps=1, eps=0.05, right=True)
        noise = normal(*ball.x.shape, seed=20 + place).sign().float()
        others[name] = ball.project(ball.x + 0.05 * noise)
    made = attack(objective, ball, how, others)
    seen = {name: objective.evaluate(x, 0).margins for name, x in others.items()}
    for margins in (*seen.values(), objective.evaluate(ball.x, 0).margins):
        assert better_or_fallen(made.margins, margins)
    names = {RUNS[place] for place in made.made_by.tolist()}
    assert set(others) | {"targeted"} <= names
    for name, x in {**others, "image": ball.x}.items():
        rows = made.made_by == RUNS.index(name)
        assert torch.equal(made.x[rows], x[rows])


def test_an_image_that_is_wrong_anyway_stays_as_it_is(monkeypatch):
    objective, ball, how = bent(8, 1, steps=20)
    wrong = (objective.evaluate(ball.x, 0).margins <= 0)[:, 0]
    assert 0 < int(wrong.sum()) < 8
    made = attack(objective, ball, how)
    assert torch.equal(made.x[wrong], ball.x[wrong])
    assert set(made.made_by[wrong].tolist()) == {RUNS.index("image")}
    objective, ball = objective.select(wrong.nonzero()[:, 0]), ball.select(wrong.nonzero()[:, 0])
    asked = listen(monkeypatch)
    attack(objective, ball, how)
    assert len(asked) == 1


def test_it_repeats_itself_and_images_do_not_matter_to_each_other():
    def made(**settings):
        objective, ball, how = bent(eps=0.16, steps=50, restarts=2, **settings)
        return attack(objective, ball, how)

    whole, again = made(n=12), made(n=12)
    few, turned = made(ids=[0, 1, 2]), made(ids=[5, 2, 9, 0], microbatch=3)
    for name in ("x", "margins", "made_by"):
        full = getattr(whole, name)
        assert torch.equal(full, getattr(again, name))
        assert torch.equal(full[:3], getattr(few, name))
        assert torch.equal(full[[5, 2, 9, 0]], getattr(turned, name))
    assert len(set(whole.made_by.tolist())) > 1
    assert 0.0 < whole.fooled[-1] < 1.0


def test_an_independent_attack_begins_elsewhere_with_longer_runs(monkeypatch):
    objective, ball, how = bent(4, 1, steps=100, classifier=Certain(), eps=0.05)
    objective = replace(objective, labels=torch.zeros(4, dtype=torch.int64))
    asked, begun = listen(monkeypatch), []
    for independent in (False, True):
        asked.clear()
        attack(objective, ball, how, independent=independent)
        # a run is its gradients and one look
        runs = [len(list(part)) for of, part in groupby(asked, lambda r: r.gradient) if of]
        assert runs[:3] == [20 if independent else 10] * 3
        assert sum(runs) == 100
        begun.append(next(request.x for request in asked if request.gradient))
    assert torch.equal(begun[0], ball.x)
    assert inside(ball, begun[1])
    assert not any(torch.equal(one, other) for one, other in zip(*begun))


def test_each_restart_begins_at_its_own_images(monkeypatch):
    objective, ball, how = bent(4, 1, steps=10, restarts=1, classifier=Certain(), eps=0.05)
    objective = replace(objective, labels=torch.zeros(4, dtype=torch.int64))
    starts = [ball.project(ball.x + 0.05 * normal(*ball.x.shape, seed=s).float()) for s in (1, 2)]
    asked = listen(monkeypatch)
    portfolio(objective, ball, how, None, starts, {})
    gradients = [request.x for request in asked if request.gradient]
    assert torch.equal(gradients[0], starts[0])
    assert torch.equal(gradients[10], starts[1])
