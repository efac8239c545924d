"""What every format says alike: texts made safe, rules that count, names of estimates."""

from purify_audit.core.records import printable
from purify_audit.gate.judgement import WORDS, FailOn, RuleResult
from purify_audit.report.schema import Report
from purify_audit.spec.notation import radius_text
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
"""What is told of an audit where there is no room for everything, the most asked for first."""


def visible(text: str, most: int = 1000) -> str:
    """Foreign text as one line in which nothing hides (`printable`), with room for sentences."""
    return printable(text, most)


def fails(result: RuleResult, fail_on: FailOn = "inconclusive") -> bool:
    """Whether a rule keeps the gate from ending well."""
    if result.decision == "pass" or result.waived is not None:
        return False
    if result.severity == "warning":
        return fail_on == "warning"
    return result.decision == "fail" or fail_on != "fail"


def word(result: RuleResult) -> str:
    """The decision on a rule, with why it does not count where it does not."""
    if result.waived is not None:
        return f"{WORDS[result.decision]} (waived: {result.waived})"
    if result.severity == "warning" and result.decision != "pass":
        return f"{WORDS[result.decision]} (warning)"
    return WORDS[result.decision]


def message(result: RuleResult) -> str:
    """What is required and why the decision fell as it did, on one line."""
    return visible(f"{result.requirement}: {result.sentence}")


def at(e: Estimate) -> str:
    """Where an estimate was taken: norm, probe and radius, as far as it has them."""
    eps = None if e.eps is None else radius_text(e.eps)
    return ", ".join(part for part in (e.norm, e.probe, eps) if part)


def key_estimates(report: Report) -> list[Estimate]:
    """The estimates of `KEY_METRICS`, in that order.

    Of aligned robust accuracy that of the aligned attack, and of unaligned ratios those in l2.
    """
    return [e for name in KEY_METRICS for e in report.estimates if e.metric == name and _main(e)]


def _main(e: Estimate) -> bool:
    if e.metric == "unaligned_ratio":
        return e.norm == "l2"
    return e.metric != "aligned_robust_accuracy" or e.probe == "aligned"
