"""Comparisons: who is ranked where, what is correlated with what, and what is warned of."""

import io
from itertools import permutations

import numpy as np
import pytest
from rich.console import Console
from subjects import PROVENANCE, grey_images, run

from purify_audit.core.errors import PlanError, ReportError
from purify_audit.core.findings import finding
from purify_audit.render.terminal.comparison import show_comparison
from purify_audit.report.comparison import compare
from purify_audit.report.ranking import ball
from purify_audit.report.schema import ModelInfo
from purify_audit.spec.architectures import CnnArgs, UNetArgs
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.spec.card import ClassifierCard, DiffusionCard, ImageSpec
from purify_audit.spec.samplers import DDPMSampler, LinearSchedule
from purify_audit.statistics.correlation import correlations
from purify_audit.statistics.estimates import Estimate
from purify_audit.statistics.intervals import proportion_interval

EIGHT = 8 / 255
IMAGE = ImageSpec(channels=1, height=8, width=8)
CLASSIFIER = ClassifierCard(
    name="judge",
    image=IMAGE,
    provenance=PROVENANCE,
    network=CnnArgs(widths=(2, 3), hidden=4),
    classes=10,
    mean=(0.5,),
    std=(0.25,),
)


class Halves:
    """P(x) = 1/4 + x/2."""

    image, randomised, evaluations = IMAGE, False, 1

    def __call__(self, x, noise):
        return 0.25 + x / 2


@pytest.fixture(scope="module")
def base():
    """A real report: probes sign, sphere and power, no classifier, no attack."""
    probes = ({"kind": "sign"}, {"kind": "sphere"}, {"kind": "power", "iterations": 2})
    return run(Halves(), grey_images(4), probes=probes, draws=1, eps=(EIGHT,)).report


def accuracy(metric, value, n=64, **where):
    hits = round(value * n)
    values = np.array([1.0] * hits + [0.0] * (n - hits))
    value, lower, upper = proportion_interval(values, 0.95)
    return Estimate(
        metric=metric,
        value=value,
        lower=lower,
        upper=upper,
        level=0.95,
        method="clopper-pearson on images",
        n_images=n,
        **where,
    )


def attacked(value, eps=EIGHT, norm="linf", probe="aligned", n=64):
    return accuracy("aligned_robust_accuracy", value, n, norm=norm, eps=eps, probe=probe)


def predicted(value, eps=EIGHT, norm="linf"):
    return accuracy("predicted_robust_accuracy", value, norm=norm, eps=eps)


def diffusion(t_star):
    return DiffusionCard(
        name="digits",
        image=IMAGE,
        provenance=PROVENANCE,
        network=UNetArgs(width=8, multipliers=(1,), blocks=1),
        prediction="eps",
        time_conditioning="index",
        schedule=LinearSchedule(),
        data_range=(-1.0, 1.0),
        t_star=t_star,
        sampler=DDPMSampler(steps=1),
    )


@pytest.fixture
def report(base):
    """(t_star, rate, anchor, robust, *more estimates, **changes) -> a report; none: left out."""

    def make(t_star, rate=None, anchor=None, robust=None, *more, **changes):
        estimates = [
            e
            if rate is None or e.metric != "compression_rate"
            else e.model_copy(update={"value": rate, "lower": rate - 0.01, "upper": rate + 0.01})
            for e in base.estimates
        ]
        if anchor is not None:
            estimates += [accuracy("anchor_accuracy", anchor), accuracy("clean_accuracy", 0.97)]
        if robust is not None:
            estimates.append(robust if isinstance(robust, Estimate) else attacked(robust))
        checkpoint = base.checkpoint.model_copy(update={"card": diffusion(t_star)})
        update = {"estimates": (*estimates, *more), "checkpoint": checkpoint} | changes
        return base.model_copy(update=update)

    return make


@pytest.fixture
def ordered(report):
    """Six reports: the lower the rate the more robust, exactly; far enough apart to be ranked."""
    robust = (0.95, 0.7, 0.4, 0.2, 0.05, 0.0)
    return [
        (f"{n}.json", report(n + 1, 0.1 + 0.1 * n, 0.9, value, predicted(value)))
        for n, value in enumerate(robust)
    ]


def plan(report, **changes):
    return report.model_copy(update={"plan": report.plan.model_copy(update=changes)})


def said(comparison, part):
    """The one caution with these words."""
    found = [text for text in comparison.cautions if part in text]
    assert len(found) == 1, comparison.cautions
    return found[0]


def find(comparison, quantity, probe=None):
    return next(
        (a for a in comparison.associations if (a.quantity, a.probe) == (quantity, probe)), None
    )


# --- rows ----------------------------------------------------------------------------------------


def test_a_row_tells_what_its_report_holds(report):
    comparison = compare(
        [("a.json", report(20, 0.4, 0.9, 0.5, predicted(0.6))), ("b.json", report(30, 0.5, 0.8))]
    )
    row = comparison.rows[0]
    assert (row.name, row.purifier, row.rank) == ("a.json", "digits", 1)
    assert row.kind == "diffusion, ddpm sampler, t* = 20"
    assert (row.norm, row.status, row.errors) == ("linf", "complete", 0)
    assert [(e.probe, e.norm, e.value) for e in row.rates] == [
        (probe, "l2", 0.4) for probe in ("sign", "sphere", "power")
    ]
    assert (row.robust.value, row.robust.eps) == (0.5, EIGHT)
    assert row.predicted.value == pytest.approx(0.6, abs=0.01)
    assert row.anchor.value == pytest.approx(0.9, abs=0.01)
    assert row.clean.value == pytest.approx(0.97, abs=0.01)


def test_reports_are_ranked_by_robust_accuracy_then_by_anchor_accuracy(report):
    reports = [
        ("none.json", report(1)),
        ("worst.json", report(2, 0.1, 0.99, 0.1)),
        ("high.json", report(3, 0.1, 0.9)),
        ("best.json", report(4, 0.1, 0.2, 0.8)),
        ("tied.json", report(5, 0.1, 0.1, 0.8)),
        ("low.json", report(6, 0.1, 0.3)),
    ]
    expected = [
        ("best.json", 1),
        ("tied.json", 1),
        ("worst.json", 3),
        ("high.json", None),
        ("low.json", None),
        ("none.json", None),
    ]
    for order in list(permutations(reports))[::97]:
        assert [(r.name, r.rank) for r in compare(order).rows] == expected


def test_the_order_of_reports_does_not_matter(ordered):
    assert compare(ordered[::-1]) == compare(ordered)


def test_the_ball_that_most_reports_attack_is_compared(report):
    both = (attacked(0.9, 4 / 255), predicted(0.8), predicted(0.95, 4 / 255))
    comparison = compare(
        [
            ("a.json", report(1, 0.1, 0.9, 0.5, *both)),
            ("b.json", report(2, 0.1, 0.9, 0.4)),
            ("c.json", report(3, 0.1, 0.9, None, *both)),
        ]
    )
    by_name = {row.name: row for row in comparison.rows}
    assert [by_name[n].robust.eps for n in ("a.json", "b.json", "c.json")] == [
        EIGHT,
        EIGHT,
        4 / 255,
    ]
    assert by_name["a.json"].predicted.eps == EIGHT
    assert by_name["c.json"].predicted.eps == 4 / 255


def test_a_prediction_for_another_ball_is_not_of_this_attack(report):
    comparison = compare(
        [("a.json", report(1, 0.1, 0.9, 0.5, predicted(0.8, 0.5, "l2"))), ("b.json", report(2))]
    )
    assert comparison.rows[0].predicted is None


def test_only_the_aligned_attacks_own_images_count(report):
    fresh = attacked(0.99, probe="fresh")
    comparison = compare(
        [
            ("a.json", report(1, 0.1, 0.9, fresh, attacked(0.5))),
            ("b.json", report(2, 0.1, 0.9, fresh)),
        ]
    )
    assert comparison.rows[0].robust.value == 0.5
    assert comparison.rows[1].robust is None


def test_rates_are_those_at_the_attacks_radius(base, report):
    twice = [
        e.model_copy(update={"eps": eps, "value": eps})
        for e in base.estimates
        if e.metric == "compression_rate"
        for eps in (4 / 255, EIGHT)
    ]
    estimates = tuple(twice)
    rows = compare(
        [
            ("a.json", report(1, estimates=(*estimates, attacked(0.5)))),
            ("b.json", report(2, estimates=(*estimates, attacked(0.4, EIGHT, "l2")))),
            ("c.json", report(3, estimates=estimates)),
        ]
    ).rows
    assert [row.rates[0].eps for row in rows] == [EIGHT, 4 / 255, 4 / 255]


@pytest.mark.parametrize(
    ("eps", "words"), [(EIGHT, "linf 8/255"), (0.5, "linf 0.5"), (None, "given perturbations")]
)
def test_a_ball_in_words(eps, words):
    assert ball(attacked(0.5, eps)) == words


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_reports_are_refused(report, count):
    with pytest.raises(PlanError, match=f"at least two reports, not {count}"):
        compare([("a.json", report(1))] * count)


def test_a_report_given_twice_is_refused_by_its_names(report):
    same = report(1)
    with pytest.raises(PlanError, match=r"a\.json and c.json are the same report"):
        compare([("a.json", same), ("b.json", report(2)), ("c.json", same)])


def test_a_report_of_a_classifier_is_refused(report):
    odd = report(1)
    odd = odd.model_copy(
        update={"checkpoint": odd.checkpoint.model_copy(update={"card": CLASSIFIER})}
    )
    with pytest.raises(ReportError, match=r"a\.json: is about the classifier 'judge'"):
        compare([("a.json", odd), ("b.json", report(2))])


# --- correlations --------------------------------------------------------------------------------


def test_each_quantity_is_correlated_over_the_reports_that_have_both(report):
    rng = np.random.default_rng(0)
    rate, anchor, robust, guess = rng.uniform(0.2, 0.9, (4, 8))
    reports = [
        (
            f"{n}.json",
            report(
                n + 1,
                rate[n],
                None if n == 0 else anchor[n],
                None if n == 1 else robust[n],
                *([] if n in (2, 3) else [predicted(guess[n])]),
            ),
        )
        for n in range(8)
    ]
    comparison = compare(reports, seed=7, level=0.9)
    rows = {row.name: row for row in comparison.rows}
    kept = {
        "compression_rate": range(8),
        "anchor_accuracy": range(1, 8),
        "predicted_robust_accuracy": (0, 1, 4, 5, 6, 7),
    }
    for quantity, names in kept.items():
        probe = "sphere" if quantity == "compression_rate" else None
        both = [rows[f"{n}.json"] for n in names if n != 1]
        x = [row.get(quantity, probe).value for row in both]
        y = [row.robust.value for row in both]
        assert find(comparison, quantity, probe).correlations == correlations(x, y, 7, 0.9)
    assert [a.title for a in comparison.associations] == [
        "compression rate (sign)",
        "compression rate (sphere)",
        "compression rate (power)",
        "anchor accuracy",
        "predicted robust accuracy",
    ]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_four_attacked_reports_claim_no_correlation(report, count):
    robust = [0.2 * (n + 1) if n < count else None for n in range(6)]
    reports = [(f"{n}.json", report(n + 1, 0.1 * (n + 1), 0.9, robust[n])) for n in range(6)]
    comparison = compare(reports)
    assert comparison.associations == ()
    assert said(comparison, f"{count} of 6 reports have an aligned robust accuracy")
    assert not any("order" in text for text in comparison.cautions)


def test_a_quantity_of_few_reports_claims_no_correlation(ordered, report):
    fewer = [
        (
            n,
            r.model_copy(
                update={
                    "estimates": tuple(
                        e for e in r.estimates if e.metric != "predicted_robust_accuracy" or n < "2"
                    )
                }
            ),
        )
        for n, r in ordered
    ]
    comparison = compare(fewer)
    assert find(comparison, "predicted_robust_accuracy") is None
    assert "2 attacked reports have it" in said(comparison, "predicted robust accuracy")
    assert find(comparison, "compression_rate", "sign").correlations[0].n == 6


def test_what_does_not_vary_is_said_to_be_constant(ordered):
    comparison = compare(ordered)
    assert "constant" in said(comparison, "anchor accuracy")
    assert find(comparison, "anchor_accuracy").correlations[0].value is None


# --- cautions ------------------------------------------------------------------------------------


def test_comparable_reports_far_apart_give_no_other_caution(ordered):
    cautions = compare(ordered).cautions
    assert [text for text in cautions if "constant" not in text and "overlap" not in text] == []


def test_a_rate_that_rises_with_robustness_is_cautioned(ordered, report):
    reports = [
        (name, report(n + 1, 0.9 - 0.1 * n, 0.9, r.estimates[-2]))
        for n, (name, r) in enumerate(ordered)
    ]
    text = said(compare(reports), "order these purifiers")
    assert text.startswith(
        "The compression rate does not order these purifiers by robustness: sign"
    )
    assert "spearman 1.00, no interval" in text
    assert text.endswith("Compare the anchor accuracy too.")


def test_a_rate_whose_interval_reaches_above_0_is_cautioned(ordered, report):
    rates = (0.1, 0.7, 0.2, 0.6, 0.3, 0.5)
    reports = [
        (name, report(n + 1, rates[n], 0.9, r.estimates[-2])) for n, (name, r) in enumerate(ordered)
    ]
    text = said(compare(reports), "order these purifiers")
    c = find(compare(reports), "compression_rate", "sign").correlations[0]
    verb = "does not" if c.value > 0 else "does not significantly"
    assert c.upper > 0
    assert f"The compression rate {verb} order" in text
    numbers = f"sign (spearman {c.value:.2f}, 95% interval {c.lower:.2f} to {c.upper:.2f})"
    assert numbers.replace("-", "−") in text


def test_four_purifiers_in_perfect_order_prove_nothing(ordered):
    """No resample disagrees, so there is no interval; and the exact test has p = 2/24."""
    assert "spearman −1.00, no interval" in said(
        compare(ordered[:4]), "does not significantly order"
    )


def changed_data(r, **changes):
    return r.model_copy(update={"data": r.data.model_copy(update=changes)})


def judged(r, sha):
    judge = ModelInfo(source="j", sha256=sha, parameters=1, card=CLASSIFIER)
    return r.model_copy(update={"classifier": judge})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda r: changed_data(r, digest="e" * 64),
            "images differ: 4 of grey (digest eeeeeeee) in",
        ),
        (lambda r: judged(r, "f" * 64), "The classifiers differ: "),
        (lambda r: plan(r, norm="l2"), "Probe sign differs: l2 8/255 in"),
        (lambda r: plan(r, level=0.9), "The levels of intervals differ: 90.0% in"),
        (lambda r: r.model_copy(update={"status": "partial"}), "Partial, stopped before"),
        (
            lambda r: r.model_copy(update={"findings": (finding("PA103", "NaN.", {}),)}),
            "With errors among the findings, so not to be trusted: 0.json.",
        ),
    ],
)
def test_what_makes_reports_incomparable_is_said(ordered, change, words):
    before = compare(ordered).cautions
    (name, first), *rest = ordered
    after = compare([(name, change(first)), *rest]).cautions
    assert set(before) < set(after)
    new = [text for text in after if text not in before]
    assert any(words in text and "0.json" in text for text in new), new


def test_names_of_many_reports_are_counted(ordered):
    (name, first), *rest = ordered
    text = said(compare([(name, changed_data(first, digest="e" * 64)), *rest]), "images differ")
    assert "in 1.json, 2.json, 3.json and 2 more" in text


def test_settings_of_a_probe_are_compared(ordered):
    (name, first), *rest = ordered
    probes = tuple(
        p.model_copy(update={"iterations": 9}) if p.kind == "power" else p
        for p in first.plan.probes
    )
    text = said(compare([(name, plan(first, probes=probes)), *rest]), "Probe power differs")
    assert "linf 8/255, block 2, iterations 9 in 0.json" in text


def test_attacks_of_other_balls_sizes_and_strengths_are_told(report):
    weak, strong = (
        AttackPlan(
            norm="linf",
            eps=(EIGHT,),
            optimiser=optimiser,
            steps=steps,
            draws=1,
            restarts=1,
            held_out=1,
            square_queries=1,
            microbatch=1,
        )
        for optimiser, steps in (("pgd", 10), ("portfolio", 100))
    )
    robust = (
        attacked(0.5),
        attacked(0.5, 0.5, "l2"),
        attacked(0.5, n=32),
        attacked(0.5),
        attacked(0.5),
    )
    reports = [(f"{n}.json", report(n + 1, 0.5, 0.9, e)) for n, e in enumerate(robust)]
    reports[3:] = [(name, plan(r, attack=a)) for (name, r), a in zip(reports[3:], (weak, strong))]
    text = said(compare(reports), "The attacks differ")
    for part in (
        "linf 8/255, 64 images in 0.json",
        "l2 0.5, 64 images in 1.json",
        "linf 8/255, 32 images in 2.json",
        "pgd of 10 steps",
        "portfolio of 100 steps, step 1, 9 targets",
    ):
        assert part in text


def test_one_purifier_audited_twice_counts_twice(ordered, report):
    again = report(1, 0.15, 0.9, 0.9)
    text = said(compare([*ordered, ("again.json", again)]), "The same purifier counts")
    assert text == "The same purifier counts 2 times: 0.json, again.json."


def test_places_that_chance_may_have_given_are_told(report):
    robust = (0.9, 0.86, 0.2)
    reports = [(f"{n}.json", report(n + 1, 0.5, 0.9, value)) for n, value in enumerate(robust)]
    assert said(compare(reports), "overlapping").startswith("1 of 2 pairs of neighbours")


# --- on the screen -------------------------------------------------------------------------------


def shown(comparison, width):
    console = Console(file=io.StringIO(), width=width)
    show_comparison(console, comparison)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_nothing_is_cut_off(ordered, report, width):
    reports = [*ordered, ("bare.json", report(9)), ("late.json", report(10, 0.5, 0.75))]
    reports[1] = (
        "1.json",
        reports[1][1].model_copy(
            update={"status": "partial", "findings": (finding("PA103", "NaN.", {}),)}
        ),
    )
    text = shown(compare(reports), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    parts = "linf 8/255|95% intervals|t* = 10|late.json|PARTIAL|1 error finding|spearman|kendall"
    parts += "|pearson|−1.00 (no interval)|undefined|BCa|Cautions|•|95.3%|86.9–99.0|±0.010"
    for part in parts.split("|"):
        assert part in text, part


def test_numbers_stand_where_they_belong(report):
    reports = [("a.json", report(1, 0.25, 0.9, 0.75)), ("b.json", report(2, 0.5, 0.8, 0.5))]
    lines = shown(compare(reports), 200).splitlines()
    first = next(line for line in lines if "75.0%" in line)
    assert first.split()[:2] == ["1", "digits"]
    assert "predicted" not in "\n".join(lines)
    assert next(line for line in lines if "0.250" in line).split()[:3] == ["1", "a.json", "0.250"]


def test_reports_without_anything_still_show(report):
    text = shown(
        compare([("a.json", report(1, estimates=())), ("b.json", report(2, estimates=()))]), 80
    )
    assert "a.json" in text
    assert "Compression rate" not in text
    assert "Correlation" not in text


def test_names_are_not_markup(report):
    text = shown(compare([("[red]a.json", report(1)), ("b[/].json", report(2))]), 100)
    assert "[red]a.json" in text
    assert "b[/].json" in text


def test_a_comparison_round_trips_as_json(ordered):
    comparison = compare(ordered)
    assert type(comparison).model_validate_json(comparison.model_dump_json()) == comparison
