"""Judge a saved report by a policy, with its baseline if a rule needs one."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from purify_audit.gate.judge import judge
from purify_audit.gate.judgement import FailOn, Judgement
from purify_audit.gate.policy import PolicyFile
from purify_audit.report.saved import SavedReport

if TYPE_CHECKING:  # it needs NumPy, which a policy without regression rules does not
    from purify_audit.gate.baseline import Baseline


def policy_baseline(policy: PolicyFile, path: Path | None) -> "Baseline | None":
    """The baseline given, else the policy's; none if no rule needs one.

    Raises:
        ReportError: it cannot be read.
    """
    if path is None and policy.policy.baseline is not None:
        path = policy.file.path.parent / policy.policy.baseline
    if path is None or not any(rule.regression for rule in policy.policy.rule):
        return None
    from purify_audit.gate.baseline import open_baseline

    return open_baseline(path)


def judge_saved(
    saved: SavedReport,
    policy: PolicyFile,
    baseline: "Baseline | None",
    fail_on: FailOn = "inconclusive",
) -> Judgement:
    """The judgement of a saved report, today.

    Raises:
        ReportError: the report's rows are missing, or it cannot be compared with the baseline.
    """
    difference = None
    if baseline is not None:
        from purify_audit.gate.baseline import compare, values_of

        difference = compare(values_of(saved.report, saved.path.parent), baseline)
    judgement = judge(saved.report, policy, date.today(), difference, fail_on == "warning")
    digest = None if baseline is None else baseline.report.digest
    return judgement.model_copy(update={"baseline_sha256": digest})
