"""Metrics parsed by the grammar of OpenMetrics, and code quality by GitLab's required keys."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from render_support import (
    EVERY,
    HOSTILE,
    VERDICTS,
    estimate,
    hostile_judgement,
    hostile_report,
    judgement,
    many_findings,
    many_rules,
    report,
    result,
)

from purify_audit.render.ci.gitlab import code_quality, openmetrics

_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"'
_SAMPLE = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (\S+)")

_BACK = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def read(text):
    """(name, labels) -> value, by the OpenMetrics 1.0 text format; names do not come apart."""
    lines = text.split("\n")
    assert lines[-2:] == ["# EOF", ""]
    found, types = {}, []
    for line in lines[:-2]:
        if line.startswith("# TYPE "):
            types.append(line.split()[2])
            assert line == f"# TYPE {types[-1]} gauge"
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample, line
        assert sample[1] == types[-1]
        labels = re.findall(_LABEL, sample[2] or "")
        pairs = frozenset((k, re.sub(r"\\.", lambda e: _BACK[e[0]], v)) for k, v in labels)
        assert (sample[1], pairs) not in found
        found[sample[1], pairs] = float(sample[len(sample.groups())])
    assert len(types) == len(set(types))
    return found


def at(**labels):
    return frozenset(labels.items())


def test_estimates_and_their_ends():
    found = read(openmetrics(report(), None))
    sign = at(norm="l2", probe="sign", eps="0.15")
    assert found["purify_audit_compression_rate", sign] == 0.5
    assert found["purify_audit_compression_rate_lower", sign] == 0.4
    assert found["purify_audit_compression_rate_upper", sign] == 0.625
    power = at(norm="l2", probe="power", eps=repr(8 / 255))
    assert found["purify_audit_compression_rate", power] == 0.25
    assert ("purify_audit_compression_rate_lower", power) not in found
    assert found["purify_audit_anchor_accuracy", at()] == 0.9375
    aligned = at(norm="linf", probe="aligned", eps="0.15")
    assert found["purify_audit_aligned_robust_accuracy", aligned] == 0.25


def test_findings_are_counted():
    found = read(openmetrics(many_findings(), None))
    counted = {dict(k)["severity"]: v for (n, k), v in found.items() if n.endswith("_findings")}
    assert counted == {"error": 0, "warning": 0, "info": 10_000}


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 1), ("inconclusive", 3)])
def test_the_verdict_is_the_exit_code(verdict, code):
    text = openmetrics(report(attacked=False), VERDICTS[verdict])
    assert text == openmetrics(report(attacked=False), VERDICTS[verdict])
    assert read(text)["purify_audit_verdict", at()] == code
    assert "verdict" not in openmetrics(report(), None)


def test_hostile_labels_are_escaped():
    found = read(openmetrics(hostile_report(), hostile_judgement()))
    probes = {dict(labels).get("probe") for _, labels in found} - {None}
    strange = next(p for p in probes if p.startswith("=1+1"))
    assert "\"q\" 'p' \\ %" in strange
    assert "\\r\\n@team" in strange


def test_names_that_meet_keep_the_first_value():
    twice = report(estimates=(estimate("a-b", 0.25), estimate("a+b", 0.5)))
    assert read(openmetrics(twice, None))[
        "purify_audit_a_b", at(norm="l2", probe="sign", eps="0.15")
    ] == 0.25  # fmt: skip


def test_code_quality():
    found = json.loads(code_quality(EVERY, "./policies/release.toml"))
    assert [(d["check_name"], d["severity"], d["location"]["lines"]["begin"]) for d in found] == [
        ("stands", "critical", 20),
        ("decided", "major", 30),
        ("warns", "minor", 12),
        ("unsure", "info", 12),
    ]
    assert {d["location"]["path"] for d in found} == {"policies/release.toml"}
    assert all(d["description"] for d in found)
    assert len({d["fingerprint"] for d in found}) == 4


def test_code_quality_of_nothing_wrong_is_an_empty_list():
    assert code_quality(judgement(EVERY.rules[0], EVERY.rules[5]), "p.toml") == "[]\n"


def test_fingerprints_outlive_numbers():
    def fingerprint(rule):
        return json.loads(code_quality(judgement(rule), "p.toml"))[0]["fingerprint"]

    first = fingerprint(result(decision="fail"))
    assert first == fingerprint(result(decision="inconclusive", value=0.1, line=3))
    assert first != fingerprint(result("other", "fail"))


def test_hostile_and_many():
    found = json.loads(code_quality(hostile_judgement(), HOSTILE))
    assert len(found) == 2
    assert "\x1b" not in found[0]["description"]
    assert len(json.loads(code_quality(many_rules(), "p.toml"))) == 500
    line = json.loads(code_quality(judgement(result(decision="fail", line=None)), "p.toml"))
    assert line[0]["location"]["lines"]["begin"] == 1


@given(st.text(), st.text(min_size=1))
def test_any_text_is_valid(probe, metric):
    assert read(openmetrics(report(estimates=(estimate(metric, probe=probe),)), None))
