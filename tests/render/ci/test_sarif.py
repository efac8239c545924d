"""SARIF: valid by the official schema, kinds and levels as specified, within GitHub's limits."""

import gzip
import json
from pathlib import Path

import jsonschema
import pytest
from render_support import (
    EVERY,
    VERDICTS,
    hostile_judgement,
    hostile_report,
    judgement,
    many_rules,
    report,
    result,
)

from purify_audit.render.ci.sarif import MOST_RESULTS, sarif_log

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "sarif-2.1.0.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(
    SCHEMA, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
)


def read(text):
    log = json.loads(text)
    VALIDATOR.validate(log)
    return log["runs"][0]


def test_kinds_and_levels():
    run = read(sarif_log(EVERY, report(), "policies/release.toml", passed=True))
    found = {r["ruleId"]: (r["kind"], r["level"]) for r in run["results"]}
    assert found == {
        "compresses": ("pass", "none"),
        "stands": ("fail", "error"),
        "decided": ("open", "none"),
        "warns": ("fail", "warning"),
        "unsure": ("open", "none"),
        "waived": ("fail", "error"),
    }
    for r in run["results"]:
        assert run["tool"]["driver"]["rules"][r["ruleIndex"]]["id"] == r["ruleId"]


def test_github_is_given_no_passing_rules():
    run = read(sarif_log(EVERY, report(), "p.toml"))
    assert [r["ruleId"] for r in run["results"]] == [
        "stands",
        "decided",
        "warns",
        "unsure",
        "waived",
    ]
    assert len(run["tool"]["driver"]["rules"]) == 6
    assert run["properties"]["left_out"] == 1


def test_results_lie_at_their_rules():
    run = read(sarif_log(EVERY, report(), "my policies/ü%:1.toml"))
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "my%20policies/%C3%BC%25%3A1.toml"
    assert place["region"] == {"startLine": 20}
    assert run["artifacts"][0]["location"]["uri"] == place["artifactLocation"]["uri"]


def test_a_rule_without_a_line_lies_at_the_first():
    run = read(sarif_log(judgement(result(decision="fail", line=None)), report(), "p.toml"))
    assert run["results"][0]["locations"][0]["physicalLocation"]["region"] == {"startLine": 1}


def test_an_absolute_path_is_a_file_uri():
    run = read(sarif_log(EVERY, report(), "/srv/p.toml"))
    assert run["artifacts"][0]["location"]["uri"] == "file:///srv/p.toml"


def test_numbers_are_properties_of_results():
    told = result(decision="fail", confidence=None)
    run = read(sarif_log(judgement(told), report(), "p.toml"))
    numbers = {"value": 0.5, "lower": 0.4, "upper": 0.625, "threshold": 0.7, "n_images": 32}
    assert run["results"][0]["properties"] == numbers


def test_only_waived_rules_are_suppressed():
    run = read(sarif_log(EVERY, report(), "p.toml"))
    found = {r["ruleId"]: r.get("suppressions") for r in run["results"]}
    known = {"kind": "external", "status": "accepted", "justification": "known since May"}
    assert found.pop("waived") == [known]
    assert set(found.values()) == {None}


def test_fingerprints_outlive_numbers_and_lines():
    def fingerprints(rule, model="purifier"):
        run = read(sarif_log(judgement(rule, model=model), report(), "p.toml"))
        return run["results"][0]["partialFingerprints"]

    first = fingerprints(result(decision="fail"))
    assert first == fingerprints(result(decision="inconclusive", value=0.1, line=3, sentence="?"))
    assert first != fingerprints(result("other", "fail"))
    assert first != fingerprints(result(decision="fail"), model="another")


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 1), ("inconclusive", 3)])
def test_the_run_tells_the_verdict(verdict, code):
    text = sarif_log(VERDICTS[verdict], report(attacked=False), "p.toml")
    assert text == sarif_log(VERDICTS[verdict], report(attacked=False), "p.toml")
    invocation = read(text)["invocations"][0]
    assert (invocation["exitCode"], invocation["executionSuccessful"]) == (code, True)
    partial = read(sarif_log(VERDICTS[verdict], report(status="partial"), "p.toml"))
    assert not partial["invocations"][0]["executionSuccessful"]


def test_severities_are_github_s():
    rules = read(sarif_log(EVERY, report(), "p.toml"))["tool"]["driver"]["rules"]
    found = {r["id"]: r["properties"]["security-severity"] for r in rules}
    assert found["stands"] == "7.5"
    assert found["warns"] == "4.0"
    assert all("security" in r["properties"]["tags"] for r in rules)


def test_help_names_the_page_that_defines():
    rules = judgement(result(), result("clean", metric=None))
    found = read(sarif_log(rules, report(), "p.toml"))["tool"]["driver"]["rules"]
    assert found[0]["help"]["text"].startswith("docs/method.md defines compression_rate;")
    assert found[1]["help"]["text"].startswith("docs/findings.md explains ")
    assert [r["properties"]["tags"][-1] for r in found] == ["robustness", "findings"]


def test_hostile_text_is_valid():
    run = read(sarif_log(hostile_judgement(), hostile_report(), "a\nb.toml", passed=True))
    text = run["results"][0]["message"]["text"]
    assert "\\x00\\x07\\x1b[31m\\u202e" in text
    assert not set("\n\r\x00\x1b\u202e") & set(text)
    assert run["artifacts"][0]["location"]["uri"] == "a%0Ab.toml"
    assert run["invocations"][0]["toolConfigurationNotifications"][0]["level"] == "note"


def test_many_rules_stay_within_the_limits():
    text = sarif_log(many_rules(), report(), "p.toml")
    assert len(read(text)["results"]) == 500
    many = judgement(*(result(f"r{n}", "fail", sentence="x" * 2000) for n in range(25_100)))
    log = json.loads(sarif_log(many, report(), "p.toml"))
    assert len(log["runs"][0]["results"]) == MOST_RESULTS
    assert log["runs"][0]["properties"]["left_out"] == 100
    assert len(gzip.compress(json.dumps(log).encode(), 6)) < 10 * 2**20
