"""How a rule and its numbers are told."""

from purify_audit.gate.policy import Rule
from purify_audit.spec.notation import radius_text
from purify_audit.statistics.estimates import Estimate, Quantiles


def named(of: Estimate | Quantiles | Rule) -> str:
    """A metric, with the norm, probe and radius where there are any."""
    eps = None if of.eps is None else radius_text(of.eps)
    parts = ", ".join(part for part in (of.norm, of.probe, eps) if part)
    return f"{of.metric} ({parts})" if parts else str(of.metric)


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


def number(value: float) -> str:
    """Four digits, as far as they say anything."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
