"""How a rule and its numbers are told."""

from purify_audit.estimates import Estimate
from purify_audit.gate.policy import Rule
from purify_audit.settings import radius_text


def what(rule: Rule, e: Estimate | None = None) -> str:
    """What a rule is about: a metric, with the norm, probe and radius where there are any."""
    at = rule if e is None else e
    eps = None if at.eps is None else radius_text(at.eps)
    parts = ", ".join(part for part in (at.norm, at.probe, eps) if part)
    return f"{rule.metric} ({parts})" if parts else str(rule.metric)


def requirement(rule: Rule, e: Estimate | None = None) -> str:
    """What a rule requires, on one line."""
    if rule.findings:
        return f"no finding {' or '.join(rule.findings)}"
    for name, words in (("max_increase", "rises"), ("max_decrease", "falls")):
        most = getattr(rule, name)
        if most is not None:
            return f"{what(rule, e)} {words} by at most {number(most)} against the baseline"
    op, threshold = rule.bound
    return f"{what(rule, e)} {op} {number(threshold)}"


def number(value: float) -> str:
    """Four digits, as far as they say anything."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
