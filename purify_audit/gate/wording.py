"""How a rule is written."""

from purify_audit.gate.policy import Rule
from purify_audit.report.wording import named, number
from purify_audit.statistics.estimates import Estimate


def requirement(rule: Rule, e: Estimate | None = None) -> str:
    """What a rule requires, on one line."""
    if rule.findings:
        return f"no finding {' or '.join(rule.findings)}"
    for name, words in (("max_increase", "rises"), ("max_decrease", "falls")):
        most = getattr(rule, name)
        if most is not None:
            return f"{named(e or rule)} {words} by at most {number(most)} against the baseline"
    op, threshold = rule.bound
    return f"{named(e or rule)} {op} {number(threshold)}"
