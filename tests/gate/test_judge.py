"""A report judged by a policy: what passes, what fails, and what can never pass."""

import math
from datetime import date

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judged import TODAY, decided, estimate, measured, report_of, rules

from purify_audit.core.findings import CODES, finding
from purify_audit.gate.judge import judge
from purify_audit.statistics.metrics import METRICS

RATE = 'id = "rate"\nmetric = "compression_rate"\nmax = 0.6'
ROBUST = 'id = "robust"\nmetric = "aligned_robust_accuracy"\nmin = 0.3'


def first(tmp_path, report, *texts, **parts):
    return decided(report, rules(tmp_path, *texts, **parts)).rules[0]


@pytest.mark.parametrize(
    ("bound", "decision"),
    [("max = 0.5", "pass"), ("max = 0.45", "inconclusive"), ("max = 0.29", "fail"),
     ("min = 0.3", "pass"), ("min = 0.4", "inconclusive"), ("min = 0.51", "fail")],
)  # fmt: skip
def test_a_rule_on_a_metric(tmp_path, bound, decision):
    rule = f'id = "a"\nmetric = "compression_rate"\n{bound}'
    judgement = decided(report_of(estimate()), rules(tmp_path, rule))
    assert judgement.verdict == judgement.rules[0].decision == decision
    assert judgement.rules[0].n_images == 64
    assert judgement.rules[0].line == 3


def test_what_is_told(tmp_path):
    rule = 'id = "a"\nmetric = "compression_rate"\nmax = 0.45'
    result = first(tmp_path, report_of(estimate(eps=8 / 255)), rule)
    assert result.requirement == "compression_rate (l2, sign, 8/255) <= 0.45"
    assert result.sentence == (
        "0.4, 95% interval 0.3 to 0.5 from 64 images, contains the threshold;"
        " about 192 more images would decide."
    )
    assert result.more_images == 192


def test_the_worst_of_all_matching_estimates_decides(tmp_path):
    good, bad = estimate(), estimate(probe="power", value=1.5, lower=1.4, upper=1.6)
    both = report_of(good, bad)
    assert first(tmp_path, both, RATE).decision == "fail"
    assert first(tmp_path, both, RATE).probe == "power"
    assert first(tmp_path, both, RATE + '\nprobe = "sign"').decision == "pass"
    other = report_of(estimate(norm="linf", value=2.0, lower=1.9, upper=2.1), good)
    assert first(tmp_path, other, RATE + '\nnorm = "l2"').decision == "pass"
    assert first(tmp_path, other, RATE + "\neps = 0.1").decision == "fail"


def test_a_radius_is_the_same_however_it_is_written(tmp_path):
    report = report_of(estimate(eps=0.03137254901960784))
    assert first(tmp_path, report, RATE + '\neps = "8/255"').decision == "pass"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bound", ["min = 0", "max = 1"])
def test_a_missing_estimate_never_passes(tmp_path, metric, bound):
    result = first(tmp_path, report_of(), f'id = "a"\nmetric = "{metric}"\n{bound}')
    assert result.decision == "inconclusive"
    assert "The report has no" in result.sentence


def test_attacked_images_are_the_aligned_attacks_unless_another_is_named(tmp_path):
    aligned = estimate("aligned_robust_accuracy", value=0.1, lower=0.05, upper=0.2)
    fresh = estimate("aligned_robust_accuracy", probe="fresh", value=0.9, lower=0.8, upper=0.95)
    report = report_of(fresh, aligned)
    assert first(tmp_path, report, ROBUST).decision == "fail"
    assert first(tmp_path, report, ROBUST + '\nprobe = "fresh"').decision == "pass"


@pytest.mark.parametrize("ends", [{"lower": None, "upper": None}, {"lower": None}])
def test_no_interval_decides_nothing(tmp_path, ends):
    assert first(tmp_path, report_of(estimate(**ends)), RATE).decision == "inconclusive"


def test_too_few_images_or_draws_decide_nothing(tmp_path):
    few = report_of(estimate(n_images=15))
    assert first(tmp_path, few, RATE).decision == "inconclusive"
    assert "15 images, fewer than the 16" in first(tmp_path, few, RATE).sentence
    assert first(tmp_path, few, RATE, gate="min_images = 15").decision == "pass"
    assert first(tmp_path, few, RATE + "\nmin_images = 15").decision == "pass"
    assert first(tmp_path, report_of(estimate()), RATE + "\nmin_draws = 5").decision != "pass"


def test_a_rule_may_ask_for_its_own_confidence(tmp_path):
    report = report_of(estimate(upper=0.5, lower=0.3))
    near = 'id = "a"\nmetric = "compression_rate"\nmax = 0.51'
    assert first(tmp_path, report, near).decision == "pass"
    strict = first(tmp_path, report, near + "\nconfidence = 0.999")
    assert (strict.decision, strict.confidence) == ("inconclusive", 0.999)
    assert first(tmp_path, report, near, gate="confidence = 0.999").decision == "inconclusive"


# --- what can never pass -----------------------------------------------------------------------

MEASURED = [c for c, about in CODES.items() if about.severity == "error" and c < "PA3"] + ["PA313"]
ATTACK = [c for c in CODES if c.startswith("PA3") and CODES[c].severity == "error" and c != "PA313"]


@pytest.mark.parametrize("code", MEASURED)
@pytest.mark.parametrize("bound", ["max = 0.6", "max = 0.1"])
def test_after_a_failed_preflight_nothing_is_decided(tmp_path, code, bound):
    report = report_of(estimate(), findings=(finding(code, "told", {}),))
    result = first(tmp_path, report, f'id = "a"\nmetric = "compression_rate"\n{bound}')
    assert result.decision == "inconclusive"
    assert code in result.sentence


@pytest.mark.parametrize("code", ATTACK)
def test_an_attack_that_failed_its_checks_passes_nothing(tmp_path, code):
    robust = estimate("aligned_robust_accuracy", value=0.5, lower=0.4, upper=0.6)
    report = report_of(robust, estimate(), findings=(finding(code, "told", {}),))
    judgement = decided(report, rules(tmp_path, ROBUST, RATE))
    assert [r.decision for r in judgement.rules] == ["inconclusive", "pass"]
    assert judgement.verdict == "inconclusive"


def test_robust_accuracy_too_low_stays_too_low_after_a_failed_check(tmp_path):
    low = estimate("aligned_robust_accuracy", value=0.1, lower=0.05, upper=0.2)
    gap = estimate("randomness_inflation", probe="fresh", norm="linf", value=0.5, lower=0.4,
                   upper=0.6)  # fmt: skip
    report = report_of(low, gap, findings=(finding("PA306", "told", {}),))
    assert first(tmp_path, report, ROBUST).decision == "fail"
    inflated = 'id = "a"\nmetric = "randomness_inflation"\nmax = 0.1'
    assert first(tmp_path, report, inflated).decision == "inconclusive"


def test_a_partial_report_passes_nothing_and_may_fail(tmp_path):
    report = report_of(estimate(), status="partial")
    assert first(tmp_path, report, RATE).decision == "inconclusive"
    assert first(tmp_path, report, RATE.replace("0.6", "0.1")).decision == "fail"


@given(
    value=st.floats(-1, 3),
    half=st.floats(0, 2),
    lower_by=st.floats(0, 1),
    wider=st.floats(0, 2),
    threshold=st.floats(-1, 3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_lower_rates_keep_passing_and_wider_intervals_decide_less(
    tmp_path, value, half, lower_by, wider, threshold
):
    policy = rules(tmp_path, f'id = "a"\nmetric = "compression_rate"\nmax = {threshold!r}')

    def of(shift, grow):
        e = estimate(value=value - shift, lower=value - shift - half - grow,
                     upper=value - shift + half + grow)  # fmt: skip
        return decided(report_of(e), policy).verdict

    before = of(0.0, 0.0)
    if before == "pass":
        assert of(lower_by, 0.0) == "pass"
    if before == "inconclusive":
        assert of(0.0, wider) == "inconclusive"
    assert of(0.0, wider) in (before, "inconclusive")


def test_an_infinite_or_missing_number_cannot_be_in_a_report():
    with pytest.raises(ValueError, match="finite"):
        estimate(value=math.nan)


# --- findings, severities, waivers -------------------------------------------------------------

NONE = 'id = "clean"\nfindings = ["PA107", "PA2"]'


def test_a_rule_about_findings(tmp_path):
    assert first(tmp_path, report_of(), NONE, gate="min_images = 2").decision == "pass"
    warned = report_of(findings=(finding("PA204", "the class is lost", {}),))
    result = first(tmp_path, warned, NONE, gate="min_images = 2")
    assert result.decision == "fail"
    assert "PA204: the class is lost" in result.sentence
    other = report_of(findings=(finding("PA109", "x", {}),))
    assert first(tmp_path, other, NONE, gate="min_images = 2").decision == "pass"
    assert (
        first(tmp_path, report_of(status="partial"), NONE, gate="min_images = 2").decision
        == "inconclusive"
    )


@pytest.mark.parametrize("codes", ['["PA309"]', '["PA3"]', '["PA"]'])
def test_what_only_an_attack_can_find_needs_an_attack(tmp_path, codes):
    result = first(tmp_path, report_of(), f'id = "a"\nfindings = {codes}')
    assert result.decision == "inconclusive"
    assert "purify-audit attack" in result.sentence


def test_a_warning_is_told_and_changes_nothing(tmp_path):
    failing = RATE.replace("0.6", "0.1")
    policy = rules(tmp_path, failing + '\nseverity = "warning"', ROBUST)
    robust = estimate("aligned_robust_accuracy", value=0.5, lower=0.4, upper=0.6)
    report = report_of(estimate(), robust)
    judgement = decided(report, policy)
    assert judgement.rules[0].decision == "fail"
    assert judgement.verdict == "pass"
    assert judge(report, policy, TODAY, None, warnings_too=True).verdict == "fail"


def waiver(model, expires="2026-12-31", rule="rate"):
    return (
        f'[[gate.waiver]]\nrule = "{rule}"\nmodel = "{model}"\nreason = "known"\n'
        f"expires = {expires}\n"
    )


def test_a_waiver_covers_its_rule_its_model_and_its_time(tmp_path):
    failing, report = RATE.replace("0.6", "0.1"), report_of(estimate())
    sha = report.checkpoint.sha256
    for model in (sha, sha[:12]):
        judgement = decided(report, rules(tmp_path, failing, after=waiver(model)))
        assert (judgement.verdict, judgement.rules[0].decision) == ("pass", "fail")
        assert judgement.rules[0].waived == "known"
        assert judgement.notes == ()
    other = decided(report, rules(tmp_path, failing, after=waiver("0" * 12)))
    assert other.verdict == "fail"
    assert "for another model" in other.notes[0]
    late = decided(report, rules(tmp_path, failing, after=waiver(sha)), today=date(2027, 1, 1))
    assert late.verdict == "fail"
    assert "expired on 2026-12-31" in late.notes[0]
    last_day = rules(tmp_path, failing, after=waiver(sha))
    assert decided(report, last_day, today=date(2026, 12, 31)).verdict == "pass"


def test_a_waiver_that_nothing_needs_is_told(tmp_path):
    report = report_of(estimate())
    judgement = decided(report, rules(tmp_path, RATE, after=waiver(report.checkpoint.sha256)))
    assert judgement.rules[0].waived is None
    assert "is not used: the rule passes" in judgement.notes[0]


def test_the_judgement_names_what_it_judged(tmp_path):
    policy = rules(tmp_path, RATE)
    judgement = decided(report_of(estimate()), policy)
    assert judgement.policy_sha256 == policy.file.sha256
    assert judgement.model_sha256 == measured().checkpoint.sha256
    assert judgement.judged == TODAY.isoformat()


def test_without_a_baseline_a_regression_rule_is_open(tmp_path):
    rule = 'id = "a"\nmetric = "compression_rate"\nmax_increase = 0.1'
    result = first(tmp_path, report_of(estimate()), rule)
    assert (result.decision, result.sentence) == (
        "inconclusive",
        "There is no baseline; give one with --baseline or in [gate].",
    )


@pytest.mark.parametrize(("high", "told"), [(1.3, True), (0.7, False)])
def test_a_long_upper_tail_is_told(tmp_path, high, told):
    from purify_audit.statistics.estimates import Quantiles

    quantiles = Quantiles(
        metric="compression_rate", norm="l2", probe="sign", eps=0.1,
        quantiles=(0.2, 0.3, 0.4, 0.6, high), n_images=64,
    )  # fmt: skip
    report = report_of(estimate(), quantiles=(quantiles,))
    notes = decided(report, rules(tmp_path, RATE)).notes
    assert [
        n.startswith("compression_rate (l2, sign, 0.1) has a long upper tail") for n in notes
    ] == ([True] if told else [])


# --- what a review found to pass and must not ---------------------------------------------------


def attacked_report(*estimates, predict_only=False, **changes):
    """A report with an attack in it, as far as the gate looks."""
    from purify_audit.report.schema import AttackInfo
    from purify_audit.spec.attack_plan import AttackPlan

    plan = AttackPlan(norm="linf", eps=(0.1,), steps=2, draws=1, restarts=1, held_out=2,
                      square_queries=10, microbatch=8, predict_only=predict_only)  # fmt: skip
    info = AttackInfo(gradients={}, fuzziness=(), caps=(), correlations={}, images=(),
                      fooled_despite_compression=(), robust_without_compression=(), evaluations=0,
                      environment={})  # fmt: skip
    before = measured()
    return report_of(
        *estimates, plan=before.plan.model_copy(update={"attack": plan}), attack=info, **changes
    )


FEW = "min_images = 2"


@pytest.mark.parametrize("codes", ['["PA309"]', '["PA3"]', '["PA301", "PA306"]'])
def test_an_attacks_findings_need_a_whole_and_sound_attack(tmp_path, codes):
    rule = f'id = "a"\nfindings = {codes}'
    assert first(tmp_path, attacked_report(), rule, gate=FEW).decision == "pass"
    predicted_scores = first(tmp_path, attacked_report(predict_only=True), rule, gate=FEW)
    assert (predicted_scores.decision, predicted_scores.blocked) == ("inconclusive", True)
    unsound = attacked_report(findings=(finding("PA305", "x", {}),))
    assert first(tmp_path, unsound, rule, gate=FEW).decision != "pass"
    broken = attacked_report(findings=(finding("PA101", "x", {}),))
    assert first(tmp_path, broken, rule, gate=FEW).decision == "inconclusive"


def test_few_images_find_little(tmp_path):
    rule = 'id = "a"\nfindings = ["PA1"]'
    assert first(tmp_path, report_of(), rule, gate="min_images = 4").decision == "pass"
    few = first(tmp_path, report_of(), rule, gate="min_images = 5")
    assert (few.decision, few.n_images) == ("inconclusive", 4)


def test_without_a_classifier_nobody_looks_for_lost_classes(tmp_path):
    result = first(tmp_path, report_of(), 'id = "a"\nfindings = ["PA204"]', gate=FEW)
    assert result.decision == "inconclusive"


@pytest.mark.parametrize(
    "changes", [{"status": "partial"}, {"findings": (finding("PA101", "x", {}),)}]
)
@pytest.mark.parametrize("severity", ["error", "warning"])
def test_no_waiver_and_no_warning_passes_what_was_not_measured(tmp_path, changes, severity):
    report = report_of(estimate(), **changes)
    after = waiver(report.checkpoint.sha256)
    judgement = decided(report, rules(tmp_path, RATE + f'\nseverity = "{severity}"', after=after))
    assert judgement.rules[0].waived is None
    assert judgement.verdict == "inconclusive"


def test_draws_that_an_estimate_does_not_have_are_too_few(tmp_path):
    gap = estimate("randomness_inflation", probe="fresh", norm="linf", n_draws=None, value=0.0,
                   lower=-0.01, upper=0.01)  # fmt: skip
    rule = 'id = "a"\nmetric = "randomness_inflation"\nmax = 0.1'
    assert first(tmp_path, attacked_report(gap), rule).decision == "pass"
    asked = first(tmp_path, attacked_report(gap), rule + "\nmin_draws = 4")
    assert asked.decision == "inconclusive"
