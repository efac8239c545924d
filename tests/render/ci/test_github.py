"""Annotations and outputs, read back as the runner does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from render_support import (
    COMPRESSION,
    EVERY,
    HOSTILE,
    VERDICTS,
    hostile_judgement,
    hostile_report,
    judgement,
    many_rules,
    report,
    result,
)

from purify_audit.render.ci.github import annotations, outputs


def parse(line):
    """A workflow command as the runner reads it: command, properties, message."""
    assert "\n" not in line
    assert "\r" not in line
    _, command, text = line.split("::", 2)
    name, _, rest = command.partition(" ")
    properties = dict(part.split("=", 1) for part in rest.split(","))
    for codes in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        properties = {k: v.replace(*codes) for k, v in properties.items()}
    for codes in (("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        text = text.replace(*codes)
    return name, properties, text


def test_marks():
    found = [parse(line) for line in annotations(EVERY, "policies/release.toml")]
    assert [(kind, p["title"]) for kind, p, _ in found] == [
        ("error", "stands: FAIL"),
        ("warning", "decided: INCONCLUSIVE"),
        ("warning", "warns: FAIL (warning)"),
        ("warning", "unsure: INCONCLUSIVE (warning)"),
    ]
    assert found[0][1] | {"title": ""} == {
        "file": "policies/release.toml",
        "line": "20",
        "title": "",
    }
    assert found[0][2] == (
        "compression_rate (l2, sign, 0.15) <= 0.7: 0.5, 0.95 interval 0.4 to 0.625 from 32 images."
    )


def test_passing_and_waived_rules_get_none():
    assert annotations(judgement(EVERY.rules[0], EVERY.rules[5]), "p.toml") == []


def test_escapes_are_the_runner_s():
    rule = result("a", "fail", requirement="50%", sentence="b:,\nc")
    line = annotations(judgement(rule), "x:1,%.toml")[0]
    assert line == "::error file=x%3A1%2C%25.toml,line=12,title=a%3A FAIL::50%25: b:,\\nc"


def test_hostile_text_makes_no_command():
    lines = annotations(hostile_judgement(), HOSTILE)
    kinds = [parse(line)[0] for line in lines]
    assert kinds == ["error", "warning"]
    assert parse(lines[0])[1]["title"].startswith("=1+1</script><b>|`x`|``\\r\\n@team")


def test_ten_of_a_kind_then_a_count():
    lines = annotations(many_rules(), "p.toml")
    assert [parse(line)[0] for line in lines[:-1]] == ["error"] * 10
    assert lines[-1] == "::notice title=purify-audit::490 more are in the report"
    both = [result(f"f{n}", "fail") for n in range(11)]
    both += [result(f"i{n}", "inconclusive") for n in range(12)]
    lines = annotations(judgement(*both), "p.toml")
    assert [line.split()[0] for line in lines] == ["::error"] * 10 + ["::warning"] * 10 + [
        "::notice"
    ]
    assert lines[-1].endswith("::3 more are in the report")


def read(text):
    """The file of outputs as the runner reads it."""
    found, lines = {}, text.split("\n")
    assert lines.pop() == ""
    while lines:
        line = lines.pop(0)
        equals, here = line.find("="), line.find("<<")
        if here < 0 or 0 <= equals < here:
            name, _, value = line.partition("=")
        else:
            name, _, end = line.partition("<<")
            stop = lines.index(end)
            value, lines = "\n".join(lines[:stop]), lines[stop + 1 :]
        assert name not in found
        found[name] = value
    return found


@pytest.mark.parametrize("verdict", VERDICTS)
def test_outputs(verdict):
    assert read(outputs(VERDICTS[verdict], report(), "out/report.json")) == {
        "verdict": verdict,
        "robust_accuracy": "0.25",
        "robust_accuracy_ci_low": "0.125",
        "robust_accuracy_ci_high": "0.5",
        "compression_rate": "0.5",
        "compression_rate_ci_low": "0.4",
        "compression_rate_ci_high": "0.625",
        "report": "out/report.json",
    }


def test_what_was_not_measured_is_left_out():
    told = read(outputs(EVERY, report(attacked=False), "r.json"))
    assert "robust_accuracy" not in told
    told = read(outputs(EVERY, report(estimates=(COMPRESSION[2],)), "r.json"))
    assert told["compression_rate"] == "0.25"
    assert "compression_rate_ci_low" not in told


@pytest.mark.parametrize("path", [HOSTILE, "a\nverdict=pass\nEND", "a=b<<c", "<<c", ""])
def test_a_path_sets_no_other_output(path):
    told = read(outputs(EVERY, hostile_report(), path))
    assert told["verdict"] == "fail"
    assert told["report"] == path


@given(st.text())
def test_any_text_is_one_command(text):
    rule = result(text, "fail", requirement=text, sentence=text)
    (line,) = annotations(judgement(rule), text)
    kind, properties, _ = parse(line)
    assert (kind, list(properties)) == ("error", ["file", "line", "title"])
