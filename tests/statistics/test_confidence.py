"""An interval at another level is the one that its rows would have given."""

import math
import subprocess
import sys

import numpy as np
import pytest

from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.statistics.compression import (
    PerImageValues,
    estimate,
)
from purify_audit.statistics.confidence import at_level, looks_behind
from purify_audit.statistics.estimates import Estimate
from purify_audit.statistics.intervals import mean_interval, paired_interval, proportion_interval

LEVELS = (0.6, 0.8, 0.9, 0.95, 0.99, 0.999)
PLAN = {
    "checkpoint": "x",
    "data": "x",
    "images": 64,
    "norm": "linf",
    "eps": (0.1,),
    "probes": ({"kind": "sign"},),
    "draws": 2,
    "directions": 2,
    "seed": 0,
    "microbatch": 8,
}


def plan(**changes):
    return AuditPlan.model_validate(PLAN | changes)


def told(metric, values, level, **changes):
    data = PerImageValues(metric, "l2", "sign", 0.1, np.arange(len(values)), values, 2)
    return estimate(data, plan(level=level, **changes))


VALUES = np.random.default_rng(0).gamma(2.0, 0.3, 23)
VERDICTS = (np.random.default_rng(1).uniform(size=23) < 0.7).astype(float)


@pytest.mark.parametrize("metric", ["compression_rate", "rms_gain", "anchor_accuracy"])
@pytest.mark.parametrize("before", LEVELS)
@pytest.mark.parametrize("now", LEVELS)
@pytest.mark.parametrize("changes", [{}, {"tolerance": 0.1}])
def test_as_if_measured_at_that_level(metric, before, now, changes):
    values = VERDICTS if metric == "anchor_accuracy" else VALUES
    looks = looks_behind(metric, plan(**changes))
    got = at_level(told(metric, values, before, **changes), now, looks)
    want = told(metric, values, now, **changes)
    for name in ("value", "lower", "upper", "level"):
        # the lower end of a root may have been cut at 0, which hides nothing from the upper one
        assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_proportions_at_the_ends(share):
    values = np.full(20, share)
    got = at_level(told("anchor_accuracy", values, 0.9), 0.99)
    assert (got.value, got.lower, got.upper) == pytest.approx(proportion_interval(values, 0.99))


@pytest.mark.parametrize("d", [[0.0] * 20, [1.0] * 20, [-1.0, 0, 0, 1, 1, 0.5] * 4, [1.0, -1.0]])
@pytest.mark.parametrize("now", LEVELS)
def test_differences(d, now):
    values = np.array(d)
    lower, upper = paired_interval(values, 0.9)
    e = Estimate(
        metric="randomness_inflation",
        value=float(values.mean()),
        lower=lower,
        upper=upper,
        level=0.9,
        method="bonett-price on images",
        n_images=len(d),
    )
    got = at_level(e, now)
    want = paired_interval(values, now)
    if (lower, upper) == (-1.0, 1.0):
        assert (got.lower, got.upper) == (-1.0, 1.0)  # never narrower than the truth
    else:
        assert (got.lower, got.upper) == pytest.approx(want, abs=1e-12)


def test_no_interval_stays_no_interval():
    e = told("compression_rate", np.array([0.3]), 0.9)
    assert at_level(e, 0.99) == e
    assert e.lower is None


def test_the_t_interval_by_hand():
    e = told("compression_rate", VALUES, 0.95)
    got = at_level(e, 0.9)
    assert (got.value, got.lower, got.upper) == pytest.approx(mean_interval(VALUES, 0.9))
    assert math.isclose(got.upper - got.value, got.value - got.lower)


def test_looks_of_an_attack_and_of_a_rate():
    both, tolerance = plan(first_look=16), plan(tolerance=0.1)
    assert both.looks == (16, 32, 64)
    assert looks_behind("compression_rate", both) == looks_behind("vote_robust_accuracy", both) == 3
    assert looks_behind("compression_rate", tolerance) == 4
    assert looks_behind("aligned_robust_accuracy", tolerance) == 1


def test_the_same_level_needs_no_scipy():
    script = "import sys, purify_audit.statistics.confidence; sys.exit('scipy' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
