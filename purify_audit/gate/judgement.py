"""The decisions of a gate and their reasons, as frozen data."""

from typing import Literal

from purify_audit.core.records import Record
from purify_audit.spec.norms import Norm

Decision = Literal["pass", "fail", "inconclusive"]
Severity = Literal["error", "warning"]

FailOn = Literal["fail", "inconclusive", "warning"]
"""What makes the exit code non-zero: FAIL; also INCONCLUSIVE; also failing warnings."""

EXIT_CODES: dict[Decision, int] = {"pass": 0, "fail": 1, "inconclusive": 3}
WORDS: dict[Decision, str] = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}


class RuleResult(Record):
    """The decision on one rule.

    Attributes:
        rule: its id.
        decision: pass, fail or inconclusive.
        severity: a `warning` changes the verdict only with `--fail-on warning`.
        requirement: as text, e.g. `compression_rate (l2, sign, 0.15) <= 0.5`.
        sentence: the reason of the decision.
        metric: the metric that was judged; none for a rule about findings.
        norm: see `Estimate`, as for probe and eps.
        probe: see `norm`.
        eps: see `norm`.
        value: the estimate (for a regression rule: the change against the baseline).
        lower: end of its interval at `confidence`.
        upper: the other end.
        threshold: that the interval is compared with.
        confidence: of the interval.
        n_images: images behind it.
        n_draws: draws of each.
        more_images: about how many more images would decide it, if that can be estimated.
        baseline: the baseline's estimate, for a regression rule.
        p_value: two-sided exact McNemar p value, for a regression rule on verdicts.
        blocked: whether it is undecided because data are missing, too few or not to be trusted,
            rather than because the interval is wide.
        waived: the reason given in its waiver, if it has one.
        line: of the rule in the policy file.
    """

    rule: str
    decision: Decision
    severity: Severity
    requirement: str
    sentence: str
    metric: str | None = None
    norm: Norm | None = None
    probe: str | None = None
    eps: float | None = None
    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    threshold: float | None = None
    confidence: float | None = None
    n_images: int | None = None
    n_draws: int | None = None
    more_images: int | None = None
    baseline: float | None = None
    p_value: float | None = None
    blocked: bool = False
    waived: str | None = None
    line: int | None = None


class Judgement(Record):
    """The verdict of a policy on a report.

    Attributes:
        schema_version: of this record.
        verdict: fail if any rule of severity `error` that is not waived fails; else inconclusive
            if any of them is undecided, the audit was interrupted or its numbers cannot be trusted;
            else pass.
        rules: every rule, in the policy's order.
        notes: expired and unused waivers, and other remarks.
        policy: path of the policy file.
        policy_sha256: of the file's bytes.
        report_sha256: of the report's body.
        model: name of the audited model.
        model_sha256: its digest.
        baseline_sha256: of the body of the baseline's report, if there was one.
        judged: date, ISO 8601.
        tool_version: version of purify-audit that judged.
    """

    schema_version: Literal["1.0"] = "1.0"
    verdict: Decision
    rules: tuple[RuleResult, ...]
    notes: tuple[str, ...] = ()
    policy: str
    policy_sha256: str
    report_sha256: str
    model: str
    model_sha256: str
    baseline_sha256: str | None = None
    judged: str
    tool_version: str
