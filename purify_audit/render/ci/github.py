"""What GitHub Actions reads of a judgement: annotations on standard output, and step outputs.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

import hashlib
from collections.abc import Callable

from purify_audit.gate.judgement import Judgement, RuleResult
from purify_audit.render.ci.locations import line
from purify_audit.render.wording import message, visible, word
from purify_audit.report.schema import Report
from purify_audit.statistics.estimates import Estimate

MOST_ANNOTATIONS = 10
"""GitHub shows ten errors and ten warnings of a step, and drops the rest without a word."""


def annotations(judgement: Judgement, policy_path: str) -> list[str]:
    """Workflow commands that mark the rules which do not pass, at their lines of the policy.

    A failure of severity `error` is an error; whatever else did not pass is a warning, but for
    waived rules, which get no mark. A last notice counts those that found no place.

    Args:
        judgement: what was decided.
        policy_path: path of the policy from the root of the repository.
    """
    kinds: dict[str, list[RuleResult]] = {"error": [], "warning": []}
    for result in judgement.rules:
        if result.decision != "pass" and result.waived is None:
            failed = result.decision == "fail" and result.severity == "error"
            kinds["error" if failed else "warning"].append(result)
    lines = [
        _command(kind, result, policy_path)
        for kind, results in kinds.items()
        for result in results[:MOST_ANNOTATIONS]
    ]
    more = sum(len(results[MOST_ANNOTATIONS:]) for results in kinds.values())
    if more:
        lines.append(f"::notice title=purify-audit::{more} more are in the report")
    return lines


def _command(kind: str, result: RuleResult, path: str) -> str:
    title = visible(f"{result.rule}: {word(result)}")
    properties = {"file": visible(path), "line": str(line(result)), "title": title}
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{kind} {told}::{_data(message(result))}"


def _data(text: str) -> str:
    """Text of a workflow command, escaped as the runner takes it back."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """The value of a workflow command's property, likewise."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def outputs(judgement: Judgement, report: Report, report_path: str) -> str:
    """Lines for the file that `$GITHUB_OUTPUT` names: verdict, main numbers, where the report is.

    The numbers are those of the first aligned attack and of the first compression rate (l2); what
    was not measured is left out.

    Args:
        judgement: what was decided.
        report: what was measured.
        report_path: where the report is.
    """
    told: dict[str, str] = {"verdict": judgement.verdict}
    found: dict[str, Callable[[Estimate], bool]] = {
        "robust_accuracy": lambda e: (e.metric, e.probe) == ("aligned_robust_accuracy", "aligned"),
        "compression_rate": lambda e: (e.metric, e.norm) == ("compression_rate", "l2"),
    }
    for name, is_it in found.items():
        e = next(filter(is_it, report.estimates), None)
        ends = {} if e is None else {"": e.value, "_ci_low": e.lower, "_ci_high": e.upper}
        told |= {name + end: repr(value) for end, value in ends.items() if value is not None}
    told["report"] = report_path
    return "".join(_output(name, value) for name, value in told.items())


def _output(name: str, value: str) -> str:
    """`name=value`, or between delimiters where the value has several lines.

    The delimiter holds a digest of the value, so that no line of a value can be its own end.
    """
    if not any(end in value for end in "\r\n"):
        return f"{name}={value}\n"
    end = f"END_{hashlib.sha256(value.encode(errors='surrogateescape')).hexdigest()}"
    return f"{name}<<{end}\n{value}\n{end}\n"
