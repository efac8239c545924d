"""Protocols on tables small enough to count by hand, intervals by formula and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from subjects import grey_images, plan_for

from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.statistics.attack import (
    PROTOCOLS,
    attack_estimates,
    attack_norm,
    cap_points,
    disagreements,
    fooling_rates,
    image_verdicts,
    rank_correlations,
)
from purify_audit.statistics.attack_rows import RUNS, AttackSamples, CapRows, Scored
from purify_audit.statistics.compression_rows import (
    AnchorRows,
    CompressionSamples,
    ProbeRows,
    VarianceRows,
)
from purify_audit.statistics.estimates import ImageVerdict
from purify_audit.statistics.intervals import paired_interval, proportion_interval


def plan(n=5, norm="linf", **settings):
    attack = AttackPlan(
        norm=norm,
        eps=(0.1, 0.2),
        steps=3,
        draws=2,
        restarts=1,
        held_out=4,
        square_queries=1,
        microbatch=4,
    )
    return plan_for(grey_images(n), classifier="c", attack=attack, **settings)


def scored(name="aligned", eps=0.1, aligned=((0,),), held_out=None, **columns):
    aligned = np.array(aligned)
    n = len(aligned)
    held_out = np.zeros((n, 0), np.int64) if held_out is None else np.array(held_out)
    defaults = {
        "images": np.zeros((n, 1, 2, 2), np.float32),
        "change_l2": np.ones(aligned.shape),
        "delta_l2": np.ones(n),
        "change_linf": np.ones(aligned.shape),
        "delta_linf": np.ones(n),
        "fooling_radius": np.full(n, np.inf),
        "made_by": np.full(n, -1),
    }
    given = {k: np.asarray(v, defaults[k].dtype) for k, v in columns.items()}
    return Scored(name, eps, aligned=aligned, held_out=held_out, **defaults | given)


LABELS = np.array([0, 1, 2, 5, 0])
# Votes: a tie of 0 and 1; all for 1; 2 has three; 5 is above every label seen; all tied.
ALIGNED = [[0, 0], [1, 2], [0, 0], [1, 1], [0, 1]]
HELD_OUT = [[0, 0, 1, 1], [1, 1, 1, 1], [0, 2, 2, 2], [1, 0, 1, 0], [1, 2, 3, 0]]
CLEAN_ALIGNED = [[0, 0], [1, 1], [2, 2], [5, 1], [0, 0]]
CLEAN_HELD_OUT = [[0] * 4, [1] * 4, [2] * 4, [5, 5, 5, 1], [0] * 4]

VERDICTS = {  # attacked, clean; image by image
    "aligned": ([1.0, 0.5, 0.0, 0.0, 0.5], [1.0, 1.0, 1.0, 0.5, 1.0]),
    "heldout": ([1.0, 1.0, 0.0, 0.0, 0.0], [1.0] * 5),
    "mean": ([0.5, 1.0, 0.75, 0.0, 0.25], [1.0, 1.0, 1.0, 0.75, 1.0]),
    "worst_of_k": ([0.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0, 1.0]),
    "vote": ([0.0, 1.0, 1.0, 0.0, 0.0], [1.0] * 5),
}
N_DRAWS = {"aligned": 2, "heldout": 1, "mean": 4, "worst_of_k": 4, "vote": 4}


def table(*attacks, labels=LABELS, **changes):
    n = len(labels)
    settings = {
        "ids": np.arange(n) + 100,
        "labels": labels,
        "clean_aligned": np.array(CLEAN_ALIGNED)[:n],
        "clean_margins": np.ones((n, 2)),
        "clean_held_out": np.array(CLEAN_HELD_OUT)[:n],
        "bare_clean": labels.copy(),
    }
    return AttackSamples(**settings | changes, scored=attacks)


def found(samples, how=None):
    """(metric, probe, eps) -> estimate; each once."""
    estimates = list(attack_estimates(samples, plan() if how is None else how))
    by_key = {(e.metric, e.probe, e.eps): e for e in estimates}
    assert len(by_key) == len(estimates)
    return by_key


# --- protocols ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aligned", "fresh"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_by_hand(protocol, name):
    attacks = [scored("aligned", 0.1, ALIGNED, HELD_OUT)]
    if name == "fresh":
        attacks.append(scored("fresh", 0.1, ALIGNED, HELD_OUT))
    estimates = found(table(*attacks))
    attacked, clean = (np.array(v) for v in VERDICTS[protocol])
    metric = f"{protocol}_robust_accuracy"
    for suffix, values in (("", attacked), ("_control", clean)):
        e = estimates[metric + suffix, name, 0.1]
        want = proportion_interval(values, 0.95)
        assert (e.value, e.lower, e.upper) == pytest.approx(want)
        assert (e.n_images, e.n_draws) == (5, N_DRAWS[protocol])
        assert (e.norm, e.level, e.method) == ("linf", 0.95, "clopper-pearson on images")
    e = estimates[f"{metric}_excess", name, 0.1]
    assert e.value == pytest.approx((clean - attacked).mean())
    assert (e.lower, e.upper) == pytest.approx(paired_interval(clean - attacked, 0.95))
    assert e.lower <= e.value <= e.upper
    assert (e.n_images, e.method) == (5, "bonett-price on images")


def test_each_protocol_of_the_fresh_attack_has_the_images_aimed_at_it():
    """Vote and worst of K have their own; everything else the attack on the mean."""
    right, wrong = LABELS[:, None].repeat(4, 1), np.full((5, 4), 9)
    vote = right.copy()
    vote[0], vote[1] = 9, 9  # three of five votes
    worst = right.copy()
    worst[:4, 0] = 9  # one of five is right under all
    samples = table(
        scored("aligned", 0.1, wrong[:, :2], wrong),
        scored("fresh", 0.1, right[:, :2], right),
        scored("fresh-vote", 0.1, wrong[:, :2], vote),
        scored("fresh-worst", 0.1, wrong[:, :2], worst),
        scored("aligned", 0.2, wrong[:, :2], wrong),
        scored("fresh", 0.2, right[:, :2], right),
    )
    estimates = found(samples)
    want = {"aligned": 1.0, "heldout": 1.0, "mean": 1.0, "worst_of_k": 0.2, "vote": 0.6}
    for protocol, value in want.items():
        name = f"{protocol}_robust_accuracy"
        assert estimates[name, "fresh", 0.1].value == value
        control = estimates[f"{name}_control", "fresh", 0.1].value
        assert estimates[f"{name}_excess", "fresh", 0.1].value == pytest.approx(control - value)
        assert estimates[name, "aligned", 0.1].value == 0.0
        assert estimates[name, "fresh", 0.2].value == 1.0  # of reports without these aims
    assert estimates["randomness_inflation", "fresh", 0.1].value == 1.0
    assert {probe for _, probe, _ in estimates} == {"aligned", "fresh"}


def test_accuracies_by_hand():
    estimates = found(table(scored("aligned", 0.1, ALIGNED, HELD_OUT)))
    values = [estimates[f"{p}_robust_accuracy", "aligned", 0.1].value for p in PROTOCOLS]
    assert values == pytest.approx([0.4, 0.4, 0.5, 0.2, 0.4])
    controls = [estimates[f"{p}_robust_accuracy_control", "aligned", 0.1].value for p in PROTOCOLS]
    assert controls == pytest.approx([0.9, 1.0, 0.95, 0.8, 1.0])


@pytest.mark.parametrize(
    ("label", "votes", "right"),
    [
        (1, [1, 1, 0], 1),
        (1, [1, 0, 0], 0),
        (1, [1, 0], 0),  # a tie is no verdict for the true class
        (0, [0, 1], 0),
        (1, [1, 0, 2], 0),
        (1, [1, 1, 0, 0, 2], 0),
        (1, [1, 1, 0, 3, 2], 1),  # no majority, yet most
        (9, [1, 0, 3], 0),  # a true label above every predicted one
        (9, [9, 9, 3], 1),
        (0, [0, 0], 1),
        (0, [7, 7], 0),
        (7, [7], 1),
    ],
)
def test_votes(label, votes, right):
    one = scored("aligned", 0.1, [[label]], [votes])
    samples = table(
        one,
        labels=np.array([label]),
        clean_aligned=np.array([[label]]),
        clean_held_out=np.array([votes]),
    )
    estimates = found(samples, plan(1))
    assert estimates["vote_robust_accuracy", "aligned", 0.1].value == right
    assert estimates["vote_robust_accuracy_excess", "aligned", 0.1].value == 0.0


def test_without_scoring_draws_there_is_the_aligned_protocol_alone():
    samples = table(scored("aligned", 0.1, ALIGNED), clean_held_out=np.zeros((5, 0), np.int64))
    estimates = found(samples)
    assert {metric for metric, _, _ in estimates} == {
        "aligned_robust_accuracy",
        "aligned_robust_accuracy_control",
        "aligned_robust_accuracy_excess",
    }


def test_each_radius_has_its_own_estimates_and_certifying_attacks_have_none():
    worse = np.array(ALIGNED)
    worse[0] = 9
    samples = table(
        scored("aligned", 0.1, ALIGNED, HELD_OUT),
        scored("aligned", 0.2, worse, HELD_OUT),
        scored("bpda", 0.1, ALIGNED[:2]),
        scored("square", 0.1, ALIGNED[:2]),
        scored("unbounded", 0.5, ALIGNED[:2]),
    )
    estimates = found(samples)
    assert {probe for _, probe, _ in estimates} == {"aligned"}
    assert estimates["aligned_robust_accuracy", "aligned", 0.1].value == pytest.approx(0.4)
    assert estimates["aligned_robust_accuracy", "aligned", 0.2].value == pytest.approx(0.2)
    assert len(estimates) == 2 * 3 * len(PROTOCOLS)


def test_the_bare_classifier_and_its_control():
    bare = scored("bare", 0.1, [[0], [0], [2], [5], [1]])
    samples = table(bare, bare_clean=np.array([0, 1, 2, 5, 1]))
    estimates = found(samples)
    assert set(estimates) == {
        ("bare_robust_accuracy", "bare", 0.1),
        ("bare_robust_accuracy_control", "bare", 0.1),
    }
    for suffix, right in (("", [1, 0, 1, 1, 0]), ("_control", [1, 1, 1, 1, 0])):
        e = estimates["bare_robust_accuracy" + suffix, "bare", 0.1]
        assert (e.value, e.lower, e.upper) == pytest.approx(
            proportion_interval(np.array(right, float), 0.95)
        )
        assert e.n_draws == 1


@pytest.mark.parametrize(("swapped", "sign"), [(False, 1), (True, -1)])
def test_inflation_is_what_the_usual_protocol_says_more(swapped, sign):
    """Usual: the fresh attack by the mean of scoring draws; against the aligned one by its own."""
    standing, fallen = LABELS[:, None].repeat(4, 1), np.full((5, 4), 9)
    aligned, fresh = (standing, fallen) if swapped else (fallen, standing)
    samples = table(
        scored("aligned", 0.1, aligned[:, :2], fresh),  # its held-out verdicts do not matter
        scored("fresh", 0.1, aligned[:, :2], fresh),  # nor do the fresh attack's aligned ones
    )
    e = found(samples)["randomness_inflation", "fresh", 0.1]
    assert e.value == sign
    assert (e.lower, e.upper) == pytest.approx(paired_interval(np.full(5, float(sign)), 0.95))


def test_inflation_is_paired_image_by_image_and_radius_by_radius():
    fresh = [[0] * 4, [1, 1, 9, 9], [9] * 4, [9] * 4, [0] * 4]
    samples = table(
        scored("aligned", 0.1, ALIGNED, HELD_OUT),
        scored("fresh", 0.1, ALIGNED, fresh),
        scored("aligned", 0.2, [[9, 9]] * 5, HELD_OUT),
        scored("fresh", 0.2, ALIGNED, fresh),
    )
    estimates = found(samples)
    usual = np.array([1.0, 0.5, 0.0, 0.0, 1.0])
    for eps, own in ((0.1, np.array(VERDICTS["aligned"][0])), (0.2, np.zeros(5))):
        e = estimates["randomness_inflation", "fresh", eps]
        assert e.value == pytest.approx((usual - own).mean())
        assert (e.lower, e.upper) == pytest.approx(paired_interval(usual - own, 0.95))


def test_estimates_follow_the_plans_level_and_norm():
    samples = table(scored("aligned", 0.1, ALIGNED, HELD_OUT))
    wide, narrow = (found(samples, plan(level=level, norm="l2")) for level in (0.99, 0.8))
    assert attack_norm(plan(norm="l2")) == "l2"
    for key, e in wide.items():
        assert e.norm == narrow[key].norm == "l2"
        assert (e.level, narrow[key].level) == (0.99, 0.8)
        if 0.0 < e.value < 1.0:
            assert e.upper - e.lower > narrow[key].upper - narrow[key].lower


# --- the interval of a difference --------------------------------------------------------------


def test_the_paired_interval_by_hand():
    """Bentur et al. 2009: 21 pairs, 1 against 7 discordant. (2 − 8) / 23 ± 1.96 …, to 3 digits."""
    d = np.array([1.0] + [-1.0] * 7 + [0.0] * 13)
    half = 1.959964 * math.sqrt((10 / 23 - (6 / 23) ** 2) / 23)
    assert paired_interval(d, 0.95) == pytest.approx((-6 / 23 - half, -6 / 23 + half), abs=1e-6)
    assert paired_interval(d, 0.95) == pytest.approx((-0.508, -0.013), abs=5e-4)
    assert paired_interval(-d, 0.95) == pytest.approx((0.013, 0.508), abs=5e-4)


@pytest.mark.parametrize("n", [1, 2, 5, 20, 100])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_paired_interval_is_the_adjusted_wald_one(n, level):
    rng = np.random.default_rng(n)
    for _ in range(20):
        d = rng.choice([-1.0, 0.0, 1.0], n, p=rng.dirichlet([1, 1, 1]))
        p12, p21 = ((int((d == s).sum()) + 1) / (n + 2) for s in (1, -1))
        half = stats.norm.ppf((1 + level) / 2) * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
        want = max(-1.0, p12 - p21 - half), min(1.0, p12 - p21 + half)
        assert paired_interval(d, level) == pytest.approx(want)
        if level >= 0.95:
            assert want[0] <= d.mean() <= want[1]


def test_no_difference_is_in_its_interval_which_narrows():
    widths = []
    for n in (1, 4, 16, 64, 256):
        for d in (np.zeros(n), np.tile([0.5, -0.5], n)):
            lower, upper = paired_interval(d, 0.95)
            assert lower == -upper
            assert lower < 0.0 < upper
        lower, upper = paired_interval(np.zeros(n), 0.95)
        widths.append(upper - lower)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.03


def test_parts_of_a_difference_count_as_their_parts():
    halves = paired_interval(np.array([0.5, 0.5, -0.25, -0.75, 0.0]), 0.95)
    assert halves == pytest.approx(paired_interval(np.array([1.0, 0.0, -1.0, 0.0, 0.0]), 0.95))


def test_the_ends_of_the_scale_are_its_ends():
    for n in (1, 3, 1000):
        assert paired_interval(np.ones(n), 0.95)[1] == 1.0
        assert paired_interval(-np.ones(n), 0.95)[0] == -1.0
        assert paired_interval(np.ones(n), 0.95)[0] > -1.0


@pytest.mark.parametrize(("up", "down", "n"), [(0.3, 0.1, 32), (0.05, 0.05, 64), (0.5, 0.0, 128)])
def test_the_paired_interval_covers(up, down, n):
    """Within what 2,000 samples can tell, 95% or more."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(2000):
        d = rng.choice([1.0, -1.0, 0.0], n, p=[up, down, 1 - up - down])
        lower, upper = paired_interval(d, 0.95)
        hits += lower <= up - down <= upper
    assert 0.935 < hits / 2000 < 0.999


def test_it_covers_means_over_draws_more_often():
    rng, hits = np.random.default_rng(2), 0
    for _ in range(1000):
        p = rng.uniform(size=(40, 2)) * [1.0, 0.6]
        d = rng.binomial(4, p) / 4
        lower, upper = paired_interval(d[:, 0] - d[:, 1], 0.95)
        hits += lower <= 0.2 <= upper
    assert hits / 1000 > 0.97


# --- fuzziness and caps ------------------------------------------------------------------------


def test_fuzziness_counts_images_by_their_share_of_fooled_draws():
    samples = table(
        scored("aligned", 0.1, ALIGNED, HELD_OUT),
        scored("fresh", 0.1, ALIGNED, [[9] * 4] * 5),
        scored("bare", 0.1, [[0]] * 5),
        scored("aligned", 0.2, ALIGNED, LABELS[:, None].repeat(4, 1)),
        scored("square", 0.1, ALIGNED),
    )
    clean, aligned, fresh, other = fooling_rates(samples)
    assert [(f.attack, f.eps) for f in (clean, aligned, fresh, other)] == [
        ("clean", None),
        ("aligned", 0.1),
        ("fresh", 0.1),
        ("aligned", 0.2),
    ]
    for f, counts, shares in (
        (clean, (4, 1, 0), [0, 0, 0, 0.25, 0]),
        (aligned, (1, 3, 1), [0.5, 0, 0.25, 1, 0.75]),
        (fresh, (0, 0, 5), [1] * 5),
        (other, (5, 0, 0), [0] * 5),
    ):
        assert (f.fool_none, f.fool_some, f.fool_all) == counts
        want = np.quantile(np.array(shares, float), [0.05, 0.25, 0.5, 0.75, 0.95])
        assert f.quantiles == pytest.approx(tuple(want))


def test_no_scoring_draws_no_fuzziness():
    samples = table(scored("aligned", 0.1, ALIGNED), clean_held_out=np.zeros((5, 0), np.int64))
    assert fooling_rates(samples) == []


def test_cap_points():
    bare, purified = np.array([[0.0, 0.5], [0.25, 1.0]]), np.array([[0.0, 0.0], [0.0, 0.25]])
    points = cap_points(CapRows(np.array([0.1, 0.4]), bare, purified), 0.9)
    assert [p.radius for p in points] == [0.1, 0.4]
    for n, point in enumerate(points):
        assert point.bare == pytest.approx(proportion_interval(bare[:, n], 0.9))
        assert point.purified == pytest.approx(proportion_interval(purified[:, n], 0.9))
    assert [p.bare[0] for p in points] == [0.125, 0.75]
    assert [p.purified[0] for p in points] == [0.0, 0.125]
    assert cap_points(None, 0.9) == []


# --- image by image ----------------------------------------------------------------------------


def test_what_the_attack_did_to_each_image():
    """The fooling radius is the smallest of the main and the unbounded attack (fewer images)."""
    main = scored(
        "aligned",
        0.1,
        ALIGNED,
        HELD_OUT,
        fooling_radius=[0.05, np.inf, 0.02, 0.0, np.inf],
        change_l2=[[1, 3], [4, 4], [0, 1], [2, 2], [5, 5]],
        delta_l2=[2, 1, 1, 4, 0],
    )
    later = scored("aligned", 0.2, ALIGNED, HELD_OUT, fooling_radius=[0.06, 0.15, 0.2, 0.0, np.inf])
    wide = scored("unbounded", 0.5, ALIGNED[:3], fooling_radius=[0.3, 0.4, 0.01])
    other = scored("bpda", 0.1, ALIGNED[:3], fooling_radius=[0.001] * 3)
    margins = np.array([[1.0, 3.0], [0.5, 0.5], [-1.0, 0.0], [-2.0, -2.0], [7.0, 8.0]])
    samples = table(main, later, other, wide, clean_margins=margins)
    found = image_verdicts(samples, None, plan())
    assert [v.image for v in found] == [100, 101, 102, 103, 104]
    assert [v.label for v in found] == LABELS.tolist()
    assert [v.margin for v in found] == [2.0, 0.5, -0.5, -2.0, 7.5]
    assert [v.robust for v in found] == [1.0, 0.5, 0.0, 0.0, 0.5]  # at the first radius
    assert [v.fooling_radius for v in found] == [0.05, 0.15, 0.01, 0.0, None]
    assert [v.rates for v in found] == [
        {"attack": 1.0},
        {"attack": 4.0},
        {"attack": 0.5},
        {"attack": 0.5},
        {},  # the attack did not move it
    ]


def test_what_broke_each_image():
    """Where at least half of the aligned draws are fooled, and if it is known."""
    places = [RUNS.index(name) for name in ("square", "transfer", "continuation", "image")]
    main = scored("aligned", 0.1, ALIGNED, HELD_OUT, made_by=[*places, -1])
    verdicts = image_verdicts(table(main), None, plan())
    assert [v.robust for v in verdicts] == [1.0, 0.5, 0.0, 0.0, 0.5]
    names = [None, "transfer", "continuation", "image", None]
    assert [v.broken_by for v in verdicts] == names


def test_without_an_aligned_attack_there_are_no_verdicts():
    assert image_verdicts(table(scored("bare", 0.1, [[0]] * 5)), None, plan()) == []


def compression(rows):
    """Rows (image, draw, probe, radius, direction, delta, change)."""
    image, draw, probe, radius, direction, delta, change = (np.array(c) for c in zip(*rows))
    nothing = np.full(len(rows), 77.0)
    others = {
        name: nothing
        for name in ProbeRows.__dataclass_fields__
        if name.partition("_")[0] in ("delta", "change", "unaligned", "moved")
    }
    others |= {"delta_l2": delta.astype(float), "change_l2": change.astype(float)}
    probes = ProbeRows(
        image=image, draw=draw, probe=probe, radius=radius, direction=direction, **others
    )
    empty = np.zeros(0)
    anchors = AnchorRows(*[empty] * len(AnchorRows.__dataclass_fields__))
    variances = VarianceRows(*[empty] * len(VarianceRows.__dataclass_fields__))
    return CompressionSamples(probes, anchors, variances)


def test_rates_are_means_over_draws_at_the_first_radius_and_of_the_first_direction_of_power():
    rows = compression(
        [
            (100, 0, 0, 0, 0, 2.0, 1.0),
            (100, 1, 0, 0, 1, 1.0, 1.0),
            (100, 0, 0, 1, 0, 1.0, 9.0),  # another radius
            (100, 0, 0, 0, 2, 0.0, 9.0),  # nothing was applied
            (100, 0, 1, 0, 0, 1.0, 0.75),
            (100, 0, 1, 0, 1, 1.0, 9.0),  # the second direction
            (101, 0, 0, 0, 0, 4.0, 1.0),
            (101, 0, 1, 0, 0, 1.0, np.nan),  # broken
            (103, 0, 1, 0, 0, 1.0, 0.5),
        ]
    )
    how = plan(probes=({"kind": "sign"}, {"kind": "power", "block": 2}))
    samples = table(scored("aligned", 0.1, ALIGNED, HELD_OUT, delta_l2=[1, 0, 0, 0, 0]))
    found = image_verdicts(samples, rows, how)
    assert [v.rates for v in found] == [
        {"sign": 0.75, "power": 0.75, "attack": 1.0},
        {"sign": 0.25},
        {},
        {"power": 0.5},
        {},
    ]


def verdict(image, rate, fooling_radius, robust=0.0, name="power"):
    return ImageVerdict(
        image=image,
        label=0,
        margin=1.0,
        robust=robust,
        fooling_radius=fooling_radius,
        rates={} if rate is None else {name: rate},
    )


def test_rank_correlations_leave_out_what_was_wrong_and_put_what_stands_last():
    """Ranks of rates 1 2 3 4 5; of radii 3 2 1, then two that stand: 4.5 each."""
    verdicts = [
        verdict(1, 0.1, 0.30),
        verdict(2, 0.2, 0.20),
        verdict(3, 0.3, 0.10),
        verdict(4, 0.4, None),
        verdict(5, 0.5, None),
        verdict(6, 0.0, 0.0),  # wrong anyway
        verdict(7, 99.0, 0.0),
        verdict(8, None, 0.4),  # no rate
    ]
    found = rank_correlations(verdicts, plan())
    assert list(found) == ["power"]
    c = found["power"]
    assert (c.kind, c.n, c.level) == ("spearman", 5, 0.95)
    want = stats.spearmanr([1, 2, 3, 4, 5], [3, 2, 1, 4.5, 4.5]).statistic
    assert c.value == pytest.approx(want)


@pytest.mark.parametrize("radius", [1e-9, 0.3, 50.0])
def test_what_stands_ranks_above_all_whatever_the_scale(radius):
    falls = [1.0, 0.75, None, None]
    verdicts = [
        verdict(n, [0.8, 0.9, 0.1, 0.2][n], None if f is None else f * radius)
        for n, f in enumerate(falls)
    ]
    want = stats.spearmanr([0.8, 0.9, 0.1, 0.2], [2, 1, 3.5, 3.5]).statistic
    assert rank_correlations(verdicts, plan())["power"].value == pytest.approx(want)


def test_compression_that_protects_makes_it_negative():
    verdicts = [verdict(n, 0.1 * n, 1.0 - 0.1 * n) for n in range(1, 8)]
    c = rank_correlations(verdicts, plan())["power"]
    assert c.value == pytest.approx(-1.0)
    assert (c.n, c.p < 0.01) == (7, True)


def test_every_rate_has_its_own_images():
    verdicts = [
        verdict(1, 0.1, 0.1, name="sign"),
        verdict(2, 0.2, 0.2, name="power"),
        verdict(3, 0.3, 0.3, name="power"),
    ]
    found = rank_correlations(verdicts, plan())
    assert {name: c.n for name, c in found.items()} == {"sign": 1, "power": 2}
    assert found["sign"].value is None
    assert found["power"].value == pytest.approx(1.0)


def test_when_all_stand_or_none_is_left_there_is_no_correlation():
    assert rank_correlations([], plan()) == {}
    assert rank_correlations([verdict(1, 0.5, 0.0)], plan()) == {}
    standing = [verdict(n, 0.1 * n, None) for n in range(5)]
    assert rank_correlations(standing, plan())["power"].value is None


def test_disagreements_by_hand():
    """Rates 1 … 8: the quarters end at 2.75 and 6.25."""
    verdicts = [
        verdict(20, 2.0, 0.1, robust=0.5),  # low, and half of its draws fell
        verdict(10, 1.0, 0.1, robust=0.0),  # low, and fell
        verdict(30, 3.0, 0.1, robust=0.0),  # fell, and not low
        verdict(40, 4.0, 0.1, robust=0.0),
        verdict(50, 5.0, None, robust=1.0),
        verdict(60, 6.0, None, robust=1.0),  # stands, and not high
        verdict(70, 7.0, 0.2, robust=0.75),  # high, and stands at the first radius
        verdict(80, 8.0, None, robust=1.0),
        verdict(90, 0.5, 0.0, robust=0.0),  # wrong anyway
        verdict(91, 99.0, 0.0, robust=1.0),
        verdict(92, None, 0.1, robust=1.0),
    ]
    assert disagreements(verdicts) == ([10, 20], [80, 70])


def test_agreement_is_no_disagreement():
    verdicts = [verdict(n, float(n), 1.0, robust=1.0 if n < 4 else 0.0) for n in range(8)]
    assert disagreements(verdicts) == ([], [])


def test_the_strongest_rate_judges():
    """Power where there is one, else the first."""
    verdicts = []
    for n in range(8):
        rates = {"sign": float(n), "power": float(-n), "attack": 1.0}
        verdicts.append(verdict(n, 0.0, 0.1).model_copy(update={"rates": rates}))
    assert disagreements(verdicts) == ([7, 6], [])
    for v in verdicts:
        del v.rates["power"]
    assert disagreements(verdicts) == ([0, 1], [])


def test_too_few_images_are_no_quarters():
    assert disagreements([]) == ([], [])
    three = [verdict(n, float(n), 0.1) for n in range(3)]
    assert disagreements(three) == ([], [])
    assert disagreements([*three, verdict(3, 3.0, 0.1)])[0] == [0]


@pytest.mark.parametrize("rates", [{}, {"attack": 1.0}], ids=str)
def test_an_image_without_a_rate_does_not_decide_for_the_others(rates):
    verdicts = [verdict(n, float(n), 0.1) for n in range(8)]
    broken = verdict(99, 0.0, 0.1).model_copy(update={"rates": rates})
    assert disagreements([*verdicts, broken]) == ([0, 1], [])
    assert disagreements([broken, *verdicts]) == ([0, 1], [])
