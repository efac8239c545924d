"""Shared by all formats: untrusted texts made safe, decisions in words, main estimates."""

from purify_audit.core.records import printable
from purify_audit.gate.judgement import WORDS, FailOn, RuleResult
from purify_audit.report.schema import Report
from purify_audit.statistics.estimates import Estimate

KEY_METRICS = (
    "aligned_robust_accuracy",
    "mean_robust_accuracy",
    "randomness_inflation",
    "predicted_robust_accuracy",
    "bare_robust_accuracy",
    "anchor_accuracy",
    "clean_accuracy",
    "compression_rate",
    "unaligned_ratio",
    "randomness_share",
)
"""Reported where there is no room for every metric, the most important first."""


def visible(text: str, most: int = 1000) -> str:
    """Untrusted text on one line, with escaped control characters (`printable`)."""
    return printable(text, most)


def fails(result: RuleResult, fail_on: FailOn = "inconclusive") -> bool:
    """Whether a rule makes the exit code non-zero."""
    if result.decision == "pass" or result.waived is not None:
        return False
    if result.severity == "warning":
        return fail_on == "warning"
    return result.decision == "fail" or fail_on != "fail"


def word(result: RuleResult) -> str:
    """The decision on a rule, and why it does not count if it does not."""
    if result.waived is not None:
        return f"{WORDS[result.decision]} (waived: {result.waived})"
    if result.severity == "warning" and result.decision != "pass":
        return f"{WORDS[result.decision]} (warning)"
    return WORDS[result.decision]


def message(result: RuleResult) -> str:
    """The requirement and the reason of the decision, on one line."""
    return visible(f"{result.requirement}: {result.sentence}")


def key_estimates(report: Report) -> list[Estimate]:
    """The estimates of `KEY_METRICS`, in that order.

    Aligned robust accuracy is that of the aligned attack; unaligned ratios are those in l2.
    """
    return [e for name in KEY_METRICS for e in report.estimates if e.metric == name and _main(e)]


def _main(e: Estimate) -> bool:
    if e.metric == "unaligned_ratio":
        return e.norm == "l2"
    return e.metric != "aligned_robust_accuracy" or e.probe == "aligned"
