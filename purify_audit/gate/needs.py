"""What a policy needs to be measured, and whether a plan measures it."""

from typing import Any

from purify_audit.core.errors import PlanError
from purify_audit.gate.policy import Policy, Rule
from purify_audit.report.wording import named
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.norms import NORMS
from purify_audit.spec.probes import ISOTROPIC_PROBES
from purify_audit.statistics.compression import probe_names
from purify_audit.statistics.metrics import Stage, metric_info

_DEFAULT_PROBES = {
    "linf": ("sign", "lowfreq", "power"),
    "l2": ("sphere", "lowfreq", "power"),
    "l1": ("sphere", "lowfreq", "power"),
}
_SAME_RADIUS = 1e-9


def stage_needed(policy: Policy) -> Stage:
    """The furthest part of an audit that a rule needs."""
    stages = {rule.stage for rule in policy.rule}
    if "attack" in stages:
        return "attack"
    return "predict" if "predict" in stages else "compress"


def settings_for(policy: Policy, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an audit, with the probes and radii of the rules if none are set."""
    completed = dict(settings)
    radii = sorted({rule.eps for rule in policy.rule if rule.eps is not None})
    if radii and "eps" not in completed:
        completed["eps"] = radii
    names = [r.probe for r in policy.rule if r.probe is not None and r.stage == "compress"]
    if names and "probes" not in completed:
        probes = dict.fromkeys(_DEFAULT_PROBES[str(completed.get("norm", "linf"))])
        probes |= dict.fromkeys(name.partition(":")[0] for name in names)
        ranks = [int(n.partition(":")[2]) for n in names if n.startswith("power:")]
        block = f":block={max(ranks)}" if ranks else ""
        completed["probes"] = [f"power{block}" if name == "power" else name for name in probes]
    return completed


def check_answerable(policy: Policy, plan: AuditPlan) -> None:
    """Refuse, before the audit, a policy with a rule that the plan cannot decide.

    Raises:
        PlanError: names the rule and what is missing.
    """
    for rule in policy.rule:
        missing = None if rule.metric is None else _missing(policy, rule, plan)
        if missing:
            raise PlanError(f"rule '{rule.id}' cannot be decided: {missing}")


def _missing(policy: Policy, rule: Rule, plan: AuditPlan) -> str | None:
    least, attacked = policy.min_images_of(rule), rule.stage != "compress"
    assert rule.metric is not None, "the caller checks"
    if plan.images < least:
        return f"it requires {least} images and {plan.images} are planned"
    if "accuracy" in rule.metric and plan.classifier is None:
        return f"{rule.metric} needs a classifier; set one in the policy file"
    randomised = attacked or rule.metric in ("unaligned_ratio", "randomness_share")
    if randomised and not attacked and plan.draws < 2:
        return f"{rule.metric} needs at least 2 draws"
    radii = plan.attack.eps if attacked and plan.attack is not None else plan.eps
    if rule.eps is not None and all(abs(rule.eps - eps) > _SAME_RADIUS for eps in radii):
        return f"no radius {rule.eps:g} is planned; set eps in the policy file"
    norm = plan.attack.norm if attacked and plan.attack is not None else None
    without = rule.metric == "randomness_share" or (not attacked and "accuracy" in rule.metric)
    elsewhere = rule.norm != norm if attacked else rule.norm not in NORMS
    if rule.norm is not None and (without or elsewhere):
        return f"{rule.metric} is not measured in {rule.norm}"
    return _missing_probe(rule, plan)


def _missing_probe(rule: Rule, plan: AuditPlan) -> str | None:
    assert rule.metric is not None, "the caller checks"
    known = [name for names in probe_names(plan) for name in names]
    if metric_info(rule.metric).stage != "compress":
        own = metric_info(rule.metric).probe
        known = ["aligned", "fresh"] if own == "aligned" else [own] if own else []
    elif rule.metric == "rms_gain":
        known = [name for name in known if name in ISOTROPIC_PROBES]
    if rule.probe is not None and rule.probe not in known:
        return f"{named(rule)}: the probes are {', '.join(known) or 'none'}"
    if rule.metric in ("distance_anchor", "clean_accuracy", "anchor_accuracy") and rule.probe:
        return f"{rule.metric} has no probe"
    return None
