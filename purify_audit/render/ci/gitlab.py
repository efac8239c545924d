"""GitLab: a metrics report (OpenMetrics text) and a code quality report.

https://docs.gitlab.com/ci/testing/metrics_reports/ and .../code_quality/
"""

import json
import re
from collections.abc import Iterator
from pathlib import PurePath

from purify_audit.gate.judgement import EXIT_CODES, Decision, Judgement, RuleResult
from purify_audit.render.ci.locations import fingerprint, line
from purify_audit.render.wording import message, visible, word
from purify_audit.report.schema import Report
from purify_audit.statistics.estimates import Estimate

_NOT_IN_NAMES = re.compile("[^a-zA-Z0-9_]")
_ENDS = {"": "value", "_lower": "lower", "_upper": "upper"}

_Series = dict[str, dict[str, float]]
"""Name of a metric -> its labels as text -> its value."""


def openmetrics(report: Report, judgement: Judgement | None) -> str:
    """A metrics report: every estimate with the ends of its interval, findings, and the verdict.

    GitLab shows each metric beside its value on the target branch. The verdict is the exit code:
    0 pass, 1 fail, 3 inconclusive.
    """
    series: _Series = {}
    for e in report.estimates:
        for suffix, end in _ENDS.items():
            value, name = getattr(e, end), f"{_name(e.metric)}{suffix}"
            if value is not None:
                series.setdefault(name, {}).setdefault(_labels(e), value)
    series["purify_audit_findings"] = {
        _written({"severity": severity}): sum(f.severity == severity for f in report.findings)
        for severity in ("error", "warning", "info")
    }
    if judgement is not None:
        series["purify_audit_verdict"] = {"": EXIT_CODES[judgement.verdict]}
    return "".join(f"{text}\n" for text in _lines(series)) + "# EOF\n"


def _lines(series: _Series) -> Iterator[str]:
    """The samples of each metric, directly after its type."""
    for name, samples in series.items():
        yield f"# TYPE {name} gauge"
        yield from (f"{name}{labels} {value!r}" for labels, value in samples.items())


def _name(metric: str) -> str:
    return f"purify_audit_{_NOT_IN_NAMES.sub('_', metric)}"


def _labels(e: Estimate) -> str:
    eps = None if e.eps is None else repr(e.eps)
    return _written({"norm": e.norm, "probe": e.probe, "eps": eps})


def _written(labels: dict[str, str | None]) -> str:
    text = ",".join(f'{name}="{_escaped(v)}"' for name, v in labels.items() if v is not None)
    return f"{{{text}}}" if text else ""


def _escaped(value: str) -> str:
    return visible(value).replace("\\", "\\\\").replace('"', '\\"')


_SEVERITIES: dict[tuple[str, Decision], str] = {
    ("error", "fail"): "critical",
    ("error", "inconclusive"): "major",
    ("warning", "fail"): "minor",
    ("warning", "inconclusive"): "info",
}


def code_quality(judgement: Judgement, policy_path: str) -> str:
    """A code quality report: the rules that neither pass nor are waived, at their lines.

    Args:
        judgement: the judgement.
        policy_path: path of the policy from the root of the repository.
    """
    path = PurePath(policy_path).as_posix()
    degradations = [
        _degradation(judgement, result, path)
        for result in judgement.rules
        if result.decision != "pass" and result.waived is None
    ]
    return json.dumps(degradations, indent=1) + "\n"


def _degradation(judgement: Judgement, result: RuleResult, path: str) -> dict[str, object]:
    return {
        "description": f"{visible(word(result))}. {message(result)}",
        "check_name": result.rule,
        "fingerprint": fingerprint(result, judgement.model),
        "severity": _SEVERITIES[result.severity, result.decision],
        "location": {"path": path, "lines": {"begin": line(result)}},
    }
