"""JUnit XML, one test case per rule: GitLab, Jenkins, Azure and others read it.

There is no standard; this follows the schema of Jenkins (`tests/schemas/jenkins-junit.xsd`), in
which `skipped` has no attributes and properties belong to the suite.
"""

import re
from xml.etree import ElementTree as Xml

from purify_audit.gate.judgement import FailOn, Judgement, RuleResult
from purify_audit.render.wording import fails, message, visible, word

_NUMBERS = ("value", "lower", "upper", "threshold", "confidence", "n_images", "n_draws")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2


def junit_xml(
    judgement: Judgement, seconds: float | None = None, fail_on: FailOn = "inconclusive"
) -> str:
    """A judgement as a test suite.

    A rule that fails, or is undecided where `fail_on` counts that, is a failure; one that is
    waived, only warns, or may be undecided is skipped, with the reason.

    Args:
        judgement: the judgement.
        seconds: wall time of the audit.
        fail_on: what counts as a failure.
    """
    suite = Xml.Element("testsuite", name="purify-audit")
    _properties(suite, judgement)
    failures = skipped = 0
    for result in judgement.rules:
        case = _case(suite, result)
        if fails(result, fail_on):
            failures += 1
            text = _clean(message(result))
            problem = {"type": result.decision, "message": text}
            Xml.SubElement(case, "failure", problem).text = text
            continue
        skipped += result.decision != "pass"
        kind = "system-out" if result.decision == "pass" else "skipped"
        Xml.SubElement(case, kind).text = _clean(f"{visible(word(result))}: {message(result)}")
    return _whole(suite, (len(judgement.rules), failures, 0, skipped), seconds)


def junit_error(error: str) -> str:
    """An audit that could not run, as a suite of one case with this error message."""
    suite = Xml.Element("testsuite", name="purify-audit")
    case = Xml.SubElement(suite, "testcase", classname="purify_audit", name="audit")
    text = _clean(visible(error))
    Xml.SubElement(case, "error", {"type": "error", "message": text}).text = text
    return _whole(suite, (1, 0, 1, 0), None)


def _properties(suite: Xml.Element, judgement: Judgement) -> None:
    whole = Xml.SubElement(suite, "properties")
    properties: dict[str, object] = {
        name: getattr(judgement, name)
        for name in ("verdict", "model", "model_sha256", "policy", "policy_sha256")
    }
    properties |= {"report_sha256": judgement.report_sha256, "tool_version": judgement.tool_version}
    for result in judgement.rules:
        numbers = {name: getattr(result, name) for name in _NUMBERS}
        properties |= {f"{result.rule}.{n}": v for n, v in numbers.items() if v is not None}
    for name, value in properties.items():
        text = visible(value) if isinstance(value, str) else repr(value)
        Xml.SubElement(whole, "property", {"name": _clean(name), "value": _clean(text)})


def _case(suite: Xml.Element, result: RuleResult) -> Xml.Element:
    of = f"purify_audit.{result.metric or 'findings'}"
    return Xml.SubElement(suite, "testcase", classname=_clean(of), name=_clean(result.rule))


def _whole(suite: Xml.Element, counts: tuple[int, int, int, int], seconds: float | None) -> str:
    """The document.

    Args:
        suite: the one suite.
        counts: of tests, failures, errors and skipped ones.
        seconds: see `junit_xml`.
    """
    names = ("tests", "failures", "errors", "skipped")
    attributes = {name: str(n) for name, n in zip(names, counts, strict=True)}
    if seconds is not None:
        attributes["time"] = f"{seconds:.3f}"
    suite.attrib.update(attributes)
    attributes.pop("skipped")  # not an attribute of `testsuites`
    suites = Xml.Element("testsuites", {"name": "purify-audit", **attributes})
    suites.append(suite)
    Xml.indent(suites)
    text = Xml.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _clean(text: str) -> str:
    """Text without the characters that XML 1.0 cannot hold."""
    return _NOT_XML.sub("", text)
