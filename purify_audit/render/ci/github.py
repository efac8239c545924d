"""GitHub Actions: annotations on standard output, and step outputs.

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
"""GitHub shows ten errors and ten warnings of a step, and silently drops the rest."""


def annotations(judgement: Judgement, policy_path: str) -> list[str]:
    """Workflow commands that mark the rules which do not pass, at their lines of the policy.

    A failure of severity `error` is an error, other rules that do not pass are warnings; waived
    rules are not marked. A last notice counts those beyond `MOST_ANNOTATIONS`.

    Args:
        judgement: the judgement.
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
    text = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{kind} {text}::{_data(message(result))}"


def _data(text: str) -> str:
    """Text of a workflow command, escaped as the runner unescapes it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """The value of a workflow command's property, escaped."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def outputs(judgement: Judgement, report: Report, report_path: str) -> str:
    """Lines for the file `$GITHUB_OUTPUT`: verdict, main numbers, path of the report.

    The numbers are those of the first aligned attack and of the first compression rate (l2), if
    measured.
    """
    values: dict[str, str] = {"verdict": judgement.verdict}
    wanted: dict[str, Callable[[Estimate], bool]] = {
        "robust_accuracy": lambda e: (e.metric, e.probe) == ("aligned_robust_accuracy", "aligned"),
        "compression_rate": lambda e: (e.metric, e.norm) == ("compression_rate", "l2"),
    }
    for name, is_it in wanted.items():
        e = next(filter(is_it, report.estimates), None)
        ends = {} if e is None else {"": e.value, "_ci_low": e.lower, "_ci_high": e.upper}
        values |= {name + end: repr(value) for end, value in ends.items() if value is not None}
    values["report"] = report_path
    return "".join(_output(name, value) for name, value in values.items())


def _output(name: str, value: str) -> str:
    """`name=value`, or between delimiters if the value has several lines.

    The delimiter contains a digest of the value, so that no line of the value can equal it.
    """
    if not any(end in value for end in "\r\n"):
        return f"{name}={value}\n"
    end = f"END_{hashlib.sha256(value.encode(errors='surrogateescape')).hexdigest()}"
    return f"{name}<<{end}\n{value}\n{end}\n"
