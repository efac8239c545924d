"""An in-toto test result: fields and values of the specification, and no pass for want of data."""

import json

import pytest
from render_support import (
    DIGEST,
    EVERY,
    HOSTILE,
    OPEN,
    PASS,
    VERDICTS,
    WAIVED,
    WARNS,
    hostile_judgement,
    hostile_report,
    judgement,
    many_rules,
    model,
    report,
)

from purify_audit.render.ci.in_toto import test_result as attest

RESULTS = ("PASSED", "WARNED", "FAILED")


def read(text):
    """The statement's parts, checked against Statement v1 and test-result v0.1."""
    statement = json.loads(text)
    assert list(statement) == ["_type", "subject", "predicateType", "predicate"]
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    predicate = statement["predicate"]
    tests = ("passedTests", "warnedTests", "failedTests")
    assert list(predicate) == ["result", "configuration", *tests]
    assert predicate["result"] in RESULTS
    assert all(isinstance(name, str) for kind in tests for name in predicate[kind])
    for descriptor in (*statement["subject"], *predicate["configuration"]):
        assert descriptor.keys() <= {"name", "digest", "annotations"}
        assert descriptor["name"]
        assert list(descriptor["digest"]) == ["sha256"]
    return statement["subject"], predicate


@pytest.mark.parametrize(
    ("judged", "result"),
    [
        (judgement(PASS), "PASSED"),
        (judgement(PASS, WARNS), "WARNED"),
        (judgement(PASS, WAIVED), "WARNED"),
        (VERDICTS["fail"], "FAILED"),
        (VERDICTS["inconclusive"], "FAILED"),
    ],
)
@pytest.mark.parametrize("attacked", [True, False])
def test_results(judged, result, attacked):
    text = attest(report(attacked=attacked), judged)
    assert text == attest(report(attacked=attacked), judged)
    assert read(text)[1]["result"] == result


def test_every_rule_is_in_one_list():
    predicate = read(attest(report(), EVERY))[1]
    assert predicate["passedTests"] == ["compresses"]
    assert predicate["failedTests"] == ["stands", "decided"]
    assert predicate["warnedTests"] == ["warns", "unsure", "waived"]


def test_what_failed_only_for_want_of_certainty_is_told():
    predicate = read(attest(report(), judgement(OPEN, WAIVED, verdict="inconclusive")))[1]
    policy = predicate["configuration"][0]
    assert policy["name"] == "policies/release.toml"
    assert policy["annotations"] == {
        "verdict": "inconclusive",
        "undecided": ["decided"],
        "waived": {"waived": "known since May"},
    }


def test_the_subject_is_the_model_s_file():
    subject = read(attest(report(), EVERY))[0]
    assert subject == [{"name": "purifier.safetensors", "digest": {"sha256": DIGEST}}]
    transform = report(checkpoint=model(source="jpeg:quality=75"))
    assert read(attest(transform, EVERY))[0][0]["name"] == "jpeg:quality=75"


def test_the_configuration_names_what_decided():
    names = [d["name"] for d in read(attest(report(), EVERY))[1]["configuration"]]
    assert names == ["policies/release.toml", "plan", "images", "report"]
    based = EVERY.model_copy(update={"baseline_sha256": "f" * 64})
    told = read(attest(report(), based))[1]["configuration"]
    assert told[1] == {"name": "baseline", "digest": {"sha256": "f" * 64}}


def test_hostile_and_many():
    subject, predicate = read(attest(hostile_report(), hostile_judgement()))
    assert predicate["configuration"][0]["name"] == HOSTILE
    assert subject[0]["name"] == HOSTILE.rpartition("/")[2]
    assert len(read(attest(report(), many_rules()))[1]["failedTests"]) == 500
