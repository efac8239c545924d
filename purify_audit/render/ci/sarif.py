"""SARIF 2.1.0, for code scanning: https://docs.oasis-open.org/sarif/sarif/v2.1.0/."""

import json
from typing import Any

from purify_audit.gate.judgement import EXIT_CODES, WORDS, Decision, Judgement, RuleResult
from purify_audit.render.ci.locations import fingerprint, line, uri
from purify_audit.render.wording import message, visible, word
from purify_audit.report.schema import Report

MOST_RESULTS = 25_000
"""GitHub rejects a run with more."""

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
_KINDS: dict[Decision, str] = {"pass": "pass", "fail": "fail", "inconclusive": "open"}
_SEVERITY = {"error": "7.5", "warning": "4.0"}  # GitHub: high from 7.0, medium from 4.0


def sarif_log(judgement: Judgement, report: Report, policy_uri: str, passed: bool = False) -> str:
    """A judgement as a SARIF log of one run.

    Results are located in the policy file, at their rules, because GitHub shows only results in
    files of the repository. By the specification (3.27.9, 3.27.10) an undecided rule is of kind
    `open`, and only failures have a level. GitHub shows every result as an alert.

    Args:
        judgement: the judgement.
        report: the report.
        policy_uri: path of the policy from the root of the repository, not yet encoded.
        passed: include passing rules, of kind `pass`, for tools that read kinds.
    """
    rules = judgement.rules
    shown = [n for n, result in enumerate(rules) if passed or result.decision != "pass"]
    place = uri(policy_uri)
    run = {
        "tool": {
            "driver": {
                "name": "purify-audit",
                "version": judgement.tool_version,
                "semanticVersion": judgement.tool_version,
                "rules": [_rule(result) for result in rules],
            }
        },
        "invocations": [_invocation(judgement, report)],
        "artifacts": [{"location": {"uri": place}, "hashes": {"sha-256": judgement.policy_sha256}}],
        "columnKind": "unicodeCodePoints",
        "results": [_result(judgement, n, place) for n in shown[:MOST_RESULTS]],
        "properties": {
            "verdict": judgement.verdict,
            "model": visible(judgement.model),
            "model_sha256": judgement.model_sha256,
            "report_sha256": judgement.report_sha256,
            "left_out": len(rules) - len(shown[:MOST_RESULTS]),
        },
    }
    log = {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [run],
    }
    return json.dumps(log, indent=1, ensure_ascii=False) + "\n"


def _invocation(judgement: Judgement, report: Report) -> dict[str, Any]:
    notes = [{"level": "note", "message": {"text": visible(n)}} for n in judgement.notes]
    return {
        "executionSuccessful": report.status == "complete",
        "exitCode": EXIT_CODES[judgement.verdict],
        "exitCodeDescription": WORDS[judgement.verdict],
        "toolConfigurationNotifications": notes,
    }


def _rule(result: RuleResult) -> dict[str, Any]:
    requirement = visible(result.requirement)
    of_findings = result.metric is None
    text = (
        "docs/findings.md explains each finding and what to do about it."
        if of_findings
        else f"docs/method.md defines {visible(str(result.metric))}; the rule passes if the whole"
        " interval is within the bound."
    )
    return {
        "id": result.rule,
        "shortDescription": {"text": f"{result.rule}: {requirement}"},
        "fullDescription": {"text": f"The policy requires: {requirement}."},
        "help": {"text": text},
        "defaultConfiguration": {"level": result.severity},
        "properties": {
            "tags": ["security", "machine-learning", "findings" if of_findings else "robustness"],
            "precision": "high",
            "security-severity": _SEVERITY[result.severity],
        },
    }


def _result(judgement: Judgement, place: int, where: str) -> dict[str, Any]:
    result = judgement.rules[place]
    entry: dict[str, Any] = {
        "ruleId": result.rule,
        "ruleIndex": place,
        "kind": _KINDS[result.decision],
        "level": result.severity if result.decision == "fail" else "none",
        "message": {"text": f"{visible(word(result))}. {message(result)}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": where, "index": 0},
                    "region": {"startLine": line(result)},
                }
            }
        ],
        "partialFingerprints": {"ruleAndModel/v1": fingerprint(result, judgement.model)},
        "properties": {
            name: value
            for name in ("value", "lower", "upper", "threshold", "confidence", "n_images")
            if (value := getattr(result, name)) is not None
        },
    }
    if result.waived is not None:
        entry["suppressions"] = [
            {"kind": "external", "status": "accepted", "justification": visible(result.waived)}
        ]
    return entry
