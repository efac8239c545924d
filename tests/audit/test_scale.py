"""The baselines of `benchmarks/scale.py` compute the numbers that the tool computes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from subjects import CPU, plan_for

from purify_audit.attacks.objective import Defence, Objective
from purify_audit.compression.measure import measure_compression, random_cells
from purify_audit.models.runner import Runner, deterministic
from purify_audit.spec.tuning import Components
from purify_audit.statistics.allocation import variance

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

import scale_baselines
import scale_budget
import scale_growth
import scale_section
import scale_timing

ROOT = Path(__file__).parents[2]
SEED, DRAWS = 5, 2


@pytest.fixture(scope="module")
def purifier():
    return scale_baselines.chain("digits-ddpm", 60, 3, "ddpm")


@pytest.fixture(scope="module")
def images(purifier):
    return scale_baselines.pictures(purifier, 3)


@pytest.mark.parametrize("rival", ["serial_changes", "batched_changes"])
def test_a_serial_loop_finds_the_same_rows(purifier, images, rival):
    plan = plan_for(images, draws=DRAWS, seed=SEED, eps=(0.15,))
    with deterministic():
        rows = measure_compression(Runner(purifier, CPU, SEED, 16), images, plan).probes
    (cell,) = random_cells(images, plan, None)
    found = getattr(scale_baselines, rival)(purifier, SEED, images, cell.attacked, DRAWS)
    assert rows.change_l2.min() > 0.01
    np.testing.assert_allclose(found.ravel(), rows.change_l2, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_serial_loop_finds_the_same_gradient(purifier, images, size):
    judge = scale_baselines.Linear(purifier)
    labels = torch.from_numpy(images.labels.copy())
    defence = Defence(purifier, judge, CPU, SEED, 4)
    objective = Objective(
        defence, tuple(images.ids.tolist()), labels, lambda step: tuple(range(DRAWS))
    )
    with deterministic(gradients=True):
        ours = objective.loss_and_grad(torch.from_numpy(images.pixels.copy()), 0).gradient
    theirs = scale_baselines.serial_gradient((purifier, judge), SEED, images, DRAWS, size)
    assert ours.abs().max() > 0.01
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)


def test_pictures_that_no_bundled_image_fits_are_grey_noise():
    images = scale_baselines.pictures(scale_baselines.chain("cifar10-ddpm", 20, 1), 4)
    assert images.image_shape == (3, 32, 32)
    assert 0.25 <= images.pixels.min() < images.pixels.max() <= 0.75
    assert len(np.unique(images.pixels[:, 0, 0, 0])) == 4


def test_a_comparison_alternates_and_keeps_every_value(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(scale_timing.time, "process_time", lambda: now[0])
    monkeypatch.setattr(
        scale_timing.time, "perf_counter", lambda: 2.0 * now[0] + calls.count("top")
    )

    def taking(name, seconds):
        def run():
            calls.append(name)
            now[0] += seconds

        return run

    found = scale_timing.compared(3, taking("top", 3.0), taking("bottom", 2.0))
    wall = {"median": 1.75, "all": [1.75] * 3}  # twice the time, and a second more for the top
    assert found == {"median": 1.5, "all": [1.5] * 3, "seconds": [3.0, 2.0], "wall": wall}
    assert calls == ["bottom", "top", *["bottom", "top", "bottom"] * 3]


def test_a_comparison_that_spreads_is_made_once_more(monkeypatch):
    now, costs = [0.0], iter([1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    for clock in ("process_time", "perf_counter"):
        monkeypatch.setattr(scale_timing.time, clock, lambda: now[0])

    def top():
        now[0] += next(costs)

    def bottom():
        now[0] += 1.0

    found = scale_timing.compared(3, top, bottom)
    assert found["all"] == [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    assert found["median"] == 1.0


def test_the_slope_of_a_power_law_is_its_exponent():
    assert scale_growth.slope([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2.0)


def test_perturbations_that_share_nothing_have_all_of_the_variance():
    parts = Components(image=1.0, draw=8.0, pair=12.0, both=48.0, odd=1000.0)
    assert scale_budget.plain_variance(parts, each=1) == 1.0 + 8.0 + 12.0 + 48.0 + 1000.0
    assert scale_budget.plain_variance(parts, each=4) == 1.0 + 1068.0 / 4
    assert variance(parts, draws=4, pairs=2) == 1.0 + 2.0 + 6.0 + 6.0, "what is odd cancels"


@pytest.fixture
def measured():
    return json.loads((ROOT / "benchmarks" / "scale.json").read_text(encoding="utf-8"))


def test_every_figure_is_measured(measured):
    import scale

    assert measured["figures"].keys() == scale.FIGURES.keys()


@pytest.mark.parametrize(("value", "word"), [(1.08, "met"), (1.09, "missed")])
def test_the_page_says_whether_a_goal_is_met(measured, value, word):
    figure = measured["figures"]["gradient_digits"]["figure"]
    figure["none_kept"] |= {"median": value, "all": [1.0, value, 1.25]}
    page = scale_section.scale_section(measured)
    assert f"{value:.2f} [1.00, 1.25] | {word} with none |" in page
    assert "Nothing here was run on a GPU" in page
