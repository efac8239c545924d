"""What the page says first, and what it says of things that are not there."""

import re

import pytest
import render_support as rs
from page_support import ids, section, written

from purify_audit.statistics.estimates import Quantiles


class TestVerdict:
    @pytest.mark.parametrize("word", ["PASS", "FAIL", "INCONCLUSIVE"])
    def test_the_decision_is_a_word(self, word):
        page = written(judgement=rs.VERDICTS[word.lower()])
        assert re.match(rf"Verdict \S {word} ", section(page, "verdict"))
        assert f"<title>{word} · " in page.page

    def test_every_rule_with_its_numbers(self):
        told = section(written(judgement=rs.EVERY), "verdict")
        assert "6 rules: 3 failed, 2 undecided, 1 passed, 1 of them waived." in told
        assert "Waived: known since May" in told
        assert told.count("0.500 [0.400, 0.625]") == 6
        assert told.count("0.5, 0.95 interval 0.4 to 0.625 from 32 images.") == 6
        assert told.count("warning only") == 2

    def test_regressions_are_in_points(self):
        rule = rs.result(
            metric="randomness_inflation", value=-0.0625, lower=-0.125, upper=0.0, baseline=0.5,
            p_value=0.03, confidence=0.95,
        )  # fmt: skip
        told = section(written(judgement=rs.judgement(rule)), "verdict")
        assert "−6.2 points [−12.5, 0.0]" in told
        assert "Baseline 0.5. McNemar p = 0.03." in told

    def test_notes_are_shown(self):
        page = written(judgement=rs.judgement(rs.PASS, notes=("The waiver is not used.",)))
        assert "The waiver is not used." in section(page, "verdict")

    def test_without_a_judgement(self):
        told = section(written(), "verdict")
        assert "NOT JUDGED" in told
        assert "This report was not judged by a policy." in told
        assert "purify-audit gate report.json --policy POLICY.toml" in told

    def test_partial_is_told_in_the_banner_and_below(self):
        page = written(status="partial", judgement=rs.VERDICTS["inconclusive"])
        assert "PARTIAL." in section(page, "verdict")
        assert "ended early" in section(page, "untested")

    def test_too_many_rules_keep_those_that_fail(self):
        rules = [rs.result(f"rule-{n}") for n in range(400)]
        told = section(written(judgement=rs.judgement(*rules, rs.FAIL, verdict="fail")), "verdict")
        assert "stands" in told
        assert "251 more rules are not shown" in told


class TestWhatIsMissing:
    def test_nothing_proves_robustness(self):
        for attacked in (True, False):
            assert "No measurement proves robustness" in section(written(attacked), "untested")

    def test_no_attack(self):
        page = written(attacked=False)
        assert "robust accuracy was not measured" in section(page, "untested")
        assert "robust accuracy was not measured" in section(page, "attack")
        assert "soundness" not in ids(page)

    def test_no_fresh_attack(self):
        estimates = tuple(e for e in rs.report().estimates if e.probe != "fresh")
        told = section(written(estimates=estimates), "untested")
        assert "so inflation is unknown" in told

    def test_no_power_probe_and_one_draw(self):
        plan = rs.report().plan
        plan = plan.model_copy(update={"draws": 1, "probes": plan.probes[:1]})
        told = section(written(plan=plan), "untested")
        assert "worst-case direction was not searched for" in told
        assert "Only one draw" in told

    def test_nothing_at_all(self):
        page = written(attacked=False, estimates=(), findings=(), run=None)
        assert "Nothing was estimated." in section(page, "estimates")
        assert "No compression rate was measured." in section(page, "images")
        assert "was not measured" in section(page, "randomness")
        assert "No distance was measured." in section(page, "geometry")
        assert "No findings" in section(page, "findings")
        assert "was not recorded" in section(page, "reproduce")

    def test_predicted_only(self):
        plan = rs.report().plan
        attack = plan.attack.model_copy(update={"predict_only": True})
        page = written(plan=plan.model_copy(update={"attack": attack}))
        assert "was not attacked" in section(page, "attack")
        assert "PA303 the defence, run again, gives the attack's margins Robust" in (
            section(page, "soundness")
        )

    @pytest.mark.parametrize(
        ("changes", "findings", "states"),
        [
            ({}, (), {"PA301": "not run", "PA303": "passed", "PA310": "passed"}),
            ({}, ("PA311",), {"PA303": "unknown", "PA311": "failed"}),
            ({}, ("PA307",), {"PA307": "failed", "PA304": "passed"}),
        ],
    )
    def test_checks_that_ran_and_that_did_not(self, changes, findings, states):
        told = tuple(rs.finding(code, "error", "It failed.") for code in findings)
        page = section(written(findings=told, **changes), "soundness")
        for code, state in states.items():
            assert f"{state} {code} " in page

    def test_a_gradient_that_was_not_followed_is_not_enforced(self):
        plan = rs.report().plan
        attack = plan.attack.model_copy(update={"gradient": "bpda"})
        info = rs.NOTHING_FOUND.model_copy(update={"gradients": {"unrolled_error": 0.5}})
        page = written(plan=plan.model_copy(update={"attack": attack}), attack=info)
        assert "not enforced PA301" in section(page, "soundness")

    def test_quantiles_too_large_to_draw_are_told(self):
        huge = Quantiles(
            metric="compression_rate", norm="l2", probe="sign", quantiles=(0, 1, 2, 3, 1e300),
            n_images=9,
        )  # fmt: skip
        told = section(written(quantiles=(huge,)), "images")
        assert "median 2.000, 0.000 to 1e+300" in told
