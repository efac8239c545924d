"""An in-toto statement that a model was tested: predicate `test-result` v0.1.

https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md. It is not signed;
`cosign attest-blob` and `gh attestation` do that.
"""

import json
from pathlib import PurePath
from typing import Any, Literal

from purify_audit.gate.judgement import Judgement
from purify_audit.render.wording import fails
from purify_audit.report.schema import Report

PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"


def test_result(report: Report, judgement: Judgement) -> str:
    """A judgement as an in-toto Statement v1, its subject the audited model.

    The predicate has three results, and an inconclusive verdict is FAILED: a verifier that requires
    a pass must not get one for lack of data. For the same reason undecided rules are among
    `failedTests`, because verifiers may accept `warnedTests`; the policy's annotation `undecided`
    lists them. `warnedTests` has rules that did not pass and do not count: waived, or of severity
    `warning`.
    """
    rules = judgement.rules
    failed = [r.rule for r in rules if fails(r)]
    passed = [r.rule for r in rules if r.decision == "pass"]
    warned = [r.rule for r in rules if r.decision != "pass" and not fails(r)]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [_subject(report)],
        "predicateType": PREDICATE,
        "predicate": {
            "result": _result(judgement, warned),
            "configuration": _configuration(report, judgement),
            "passedTests": passed,
            "warnedTests": warned,
            "failedTests": failed,
        },
    }
    return json.dumps(statement, indent=1) + "\n"


def _result(judgement: Judgement, warned: list[str]) -> Literal["PASSED", "WARNED", "FAILED"]:
    if judgement.verdict != "pass":
        return "FAILED"
    return "WARNED" if warned else "PASSED"


def _subject(report: Report) -> dict[str, Any]:
    """The model's file by name and digest; without a file, the digest of its card."""
    source = report.checkpoint.source
    return {
        "name": PurePath(source).name or source,
        "digest": {"sha256": report.checkpoint.sha256},
    }


def _configuration(report: Report, judgement: Judgement) -> list[dict[str, Any]]:
    """The inputs of the result as resource descriptors: policy, baseline, plan, images, report."""
    undecided = [r.rule for r in judgement.rules if r.decision == "inconclusive"]
    waived = {r.rule: r.waived for r in judgement.rules if r.waived is not None}
    policy = _descriptor(judgement.policy, judgement.policy_sha256)
    policy["annotations"] = {
        "verdict": judgement.verdict,
        "undecided": undecided,
        "waived": waived,
    }
    descriptors = [policy]
    if judgement.baseline_sha256 is not None:
        descriptors.append(_descriptor("baseline", judgement.baseline_sha256))
    return [
        *descriptors,
        _descriptor("plan", report.plan_digest),
        _descriptor("images", report.data.digest),
        _descriptor("report", judgement.report_sha256),
    ]


def _descriptor(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}
