"""A saved report at another confidence level."""

from purify_audit.report.schema import AttackInfo, Report
from purify_audit.statistics import confidence as levels


def at_level(report: Report, level: float) -> Report:
    """The report with every estimate's interval, and its plan, at another level.

    Intervals of correlations and of decisions changed by random directions need data that are not
    in the report, and are left out.
    """
    plan = report.plan
    estimates = tuple(
        levels.at_level(e, level, levels.looks_behind(e.metric, plan)) for e in report.estimates
    )
    changes = {
        "estimates": estimates,
        "plan": plan.model_copy(update={"level": level}),
        "attack": None if report.attack is None else _without_intervals(report.attack),
    }
    return report if level == plan.level else report.model_copy(update=changes)


def _without_intervals(info: AttackInfo) -> AttackInfo:
    nothing = {"lower": None, "upper": None}
    caps = (
        p.model_copy(
            update={"bare": (p.bare[0], None, None), "purified": (p.purified[0], None, None)}
        )
        for p in info.caps
    )
    correlations = {k: c.model_copy(update=nothing) for k, c in info.correlations.items()}
    return info.model_copy(update={"caps": tuple(caps), "correlations": correlations})
