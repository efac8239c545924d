"""JUnit XML: valid by Jenkins' schema, right counts, harmless text."""

from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
import xmlschema
from hypothesis import given
from hypothesis import strategies as st
from render_support import EVERY, HOSTILE, VERDICTS, hostile_judgement, judgement, many_rules

from purify_audit.render.ci.junit import junit_error, junit_xml

SCHEMA = xmlschema.XMLSchema(str(Path(__file__).parents[2] / "schemas" / "jenkins-junit.xsd"))


def read(text):
    root = Xml.fromstring(text)
    assert SCHEMA.is_valid(root), next(SCHEMA.iter_errors(root))
    suite = root.find("testsuite")
    for name in ("tests", "failures", "errors"):
        assert root.get(name) == suite.get(name)
    return suite


def counts(suite):
    told = tuple(int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped"))
    cases = suite.findall("testcase")
    kinds = ("failure", "error", "skipped")
    assert told == (len(cases), *(len(suite.findall(f"testcase/{k}")) for k in kinds))
    return told


@pytest.mark.parametrize(
    ("fail_on", "failing"),
    [
        ("fail", {"stands": "fail"}),
        ("inconclusive", {"stands": "fail", "decided": "inconclusive"}),
        (
            "warning",
            {"stands": "fail", "decided": "inconclusive", "warns": "fail",
             "unsure": "inconclusive"},
        ),
    ],
)  # fmt: skip
def test_what_counts_as_a_failure(fail_on, failing):
    suite = read(junit_xml(EVERY, fail_on=fail_on))
    found = {
        case.get("name"): case.find("failure").get("type")
        for case in suite.findall("testcase")
        if case.find("failure") is not None
    }
    assert found == failing
    assert counts(suite) == (6, len(failing), 0, 5 - len(failing))


def test_skipped_rules_say_why():
    suite = read(junit_xml(EVERY, fail_on="fail"))
    told = {c.get("name"): c.findtext("skipped") for c in suite.findall("testcase")}
    assert told["waived"].startswith("FAIL (waived: known since May): compression_rate (l2, sign")
    assert told["warns"].startswith("FAIL (warning): ")
    assert told["decided"].startswith("INCONCLUSIVE: ")
    assert told["compresses"] is None
    out = {c.get("name"): c.findtext("system-out") for c in suite.findall("testcase")}
    assert out["compresses"].startswith("PASS: compression_rate (l2, sign, 0.15) <= 0.7: 0.5, ")


def test_numbers_are_properties_of_the_suite():
    suite = read(junit_xml(judgement(EVERY.rules[0]), seconds=1.25))
    told = {p.get("name"): p.get("value") for p in suite.findall("properties/property")}
    assert told["verdict"] == "pass"
    assert told["compresses.value"] == "0.5"
    assert told["compresses.lower"] == "0.4"
    assert told["compresses.n_images"] == "32"
    assert "compresses.n_draws" not in told
    assert suite.get("time") == "1.250"
    case = suite.find("testcase")
    assert (case.get("classname"), case.get("name")) == (
        "purify_audit.compression_rate",
        "compresses",
    )


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_is_valid_and_the_same_again(verdict):
    text = junit_xml(VERDICTS[verdict])
    assert text == junit_xml(VERDICTS[verdict])
    assert counts(read(text))[1] == (verdict != "pass")


def test_a_rule_about_findings():
    about = EVERY.rules[0].model_copy(update={"metric": None, "value": None})
    assert read(junit_xml(judgement(about))).find("testcase").get("classname").endswith(".findings")


def test_hostile_text_is_text():
    suite = read(junit_xml(hostile_judgement()))
    case = suite.find("testcase")
    assert case.get("name") == HOSTILE.translate({0: None, 7: None, 0x1B: None, 0xFFFE: None}) + "0"
    assert "</script><b>|`x`|" in case.find("failure").get("message")
    assert suite.find(".//script") is None


def test_an_audit_that_could_not_run():
    suite = read(junit_error(f"no such file {HOSTILE}"))
    assert counts(suite) == (1, 0, 1, 0)
    assert suite.find("testcase/error").get("message").startswith("no such file =1+1</script>")


def test_many_rules():
    assert counts(read(junit_xml(many_rules()))) == (500, 500, 0, 0)


@given(st.text())
def test_any_text_is_valid(text):
    assert counts(read(junit_error(text))) == (1, 0, 1, 0)
    assert counts(read(junit_xml(judgement(EVERY.rules[1].model_copy(update={"rule": text})))))
