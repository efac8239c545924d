"""Judging a report by a policy. No torch; NumPy only for comparisons with a baseline."""

from collections.abc import Callable
from datetime import date
from operator import attrgetter

from purify_audit import __version__
from purify_audit.core.findings import Finding
from purify_audit.gate.decide import decide, images_that_decide, images_that_decide_share
from purify_audit.gate.judgement import Decision, Judgement, RuleResult
from purify_audit.gate.policy import Policy, PolicyFile, Rule, Waiver
from purify_audit.gate.wording import requirement
from purify_audit.report.schema import Report
from purify_audit.report.wording import count, named, number
from purify_audit.statistics.confidence import at_level, looks_behind
from purify_audit.statistics.estimates import Estimate, Pairing
from purify_audit.statistics.metrics import metric_info

Difference = Callable[[Estimate, float, int], Pairing]
"""The paired change of an estimate against a baseline, at a confidence level shared by a number of
looks."""

_WORST: dict[Decision, int] = {"fail": 0, "inconclusive": 1, "pass": 2}
_SAME_RADIUS = 1e-9
_SKEWED = (
    2.0  # above: wrong PASS with more than twice the nominal share (benchmarks/gate_errors.py)
)


def judge(
    report: Report,
    policy: PolicyFile,
    today: date,
    difference: Difference | None = None,
    warnings_too: bool = False,
) -> Judgement:
    """Decide every rule of a policy.

    PASS needs every rule of severity `error` to pass, each at its own confidence: an
    intersection–union test (Berger 1982), so its risk of passing wrongly needs no correction for
    the number of rules. With m rules, the risk that any fails wrongly is at most m times one's.

    Args:
        report: the report.
        policy: the policy and its file.
        today: decides which waivers have expired.
        difference: for regression rules; without it they are inconclusive.
        warnings_too: whether rules of severity `warning` count like the others.
    """
    gate, results, used = policy.policy, list[RuleResult](), set[int]()
    for place, rule in enumerate(gate.rule):
        result = judge_rule(report, gate, rule, difference)
        waiver = next((n for n, w in enumerate(gate.waiver) if _covers(w, rule, report, today)), -1)
        if waiver >= 0 and result.decision != "pass" and not result.blocked:
            used.add(waiver)
            result = result.model_copy(update={"waived": gate.waiver[waiver].reason})
        results.append(result.model_copy(update={"line": policy.line("rule", place)}))
    return Judgement(
        verdict=verdict(report, gate, results, warnings_too),
        rules=tuple(results),
        notes=(*_waiver_notes(gate, report, today, used), *_skewed(report, results)),
        policy=str(policy.file.path),
        policy_sha256=policy.file.sha256,
        report_sha256=report.digest,
        model=report.checkpoint.card.name,
        model_sha256=report.checkpoint.sha256,
        judged=today.isoformat(),
        tool_version=__version__,
    )


def verdict(
    report: Report, policy: Policy, results: list[RuleResult], warnings_too: bool
) -> Decision:
    """The worst decision among the rules that count: of severity `error`, and not waived.

    A waiver does not replace the measurement: a report that is partial or cannot be trusted is at
    best inconclusive, whichever rules count.
    """
    counted: list[Decision] = [
        r.decision for r in results if r.waived is None and (warnings_too or r.severity == "error")
    ]
    if any(_untrusted(report, rule, "pass") for rule in policy.rule):
        counted.append("inconclusive")
    return min(counted, key=_WORST.__getitem__, default="pass")


def judge_rule(
    report: Report, policy: Policy, rule: Rule, difference: Difference | None = None
) -> RuleResult:
    """Decide one rule: for a metric, the worst decision over all matching estimates."""
    if rule.findings:
        return _about_findings(report, policy, rule)
    matching = [e for e in report.estimates if _matches(rule, e)]
    if not matching:
        return RuleResult(
            rule=rule.id,
            decision="inconclusive",
            severity=rule.severity,
            requirement=requirement(rule),
            sentence=f"The report has no {named(rule)}.{_how_to_get(rule)}",
            metric=rule.metric,
            blocked=True,
        )
    results = [_about_estimate(report, policy, rule, e, difference) for e in matching]
    return min(results, key=lambda result: _WORST[result.decision])


def _matches(rule: Rule, e: Estimate) -> bool:
    """Whether a rule applies to an estimate."""
    assert rule.metric is not None, "a rule about findings has no estimate"
    probe = rule.probe if rule.probe is not None else metric_info(rule.metric).probe
    radius = rule.eps is None or (e.eps is not None and abs(e.eps - rule.eps) <= _SAME_RADIUS)
    return (
        e.metric == rule.metric
        and rule.norm in (None, e.norm)
        and probe in (None, e.probe)
        and radius
    )


def _how_to_get(rule: Rule) -> str:
    if rule.stage == "compress":
        return ""
    return f" `purify-audit {rule.stage}` measures it."


def _about_estimate(
    report: Report, policy: Policy, rule: Rule, e: Estimate, difference: Difference | None
) -> RuleResult:
    confidence, pairing, blocked = policy.confidence_of(rule), None, ""
    looks = looks_behind(e.metric, report.plan)
    if not rule.regression:
        judged = at_level(e, confidence, looks)
    elif difference is None:
        judged = e
        blocked = "There is no baseline; give one with --baseline or in [gate]."
    else:
        pairing = difference(e, confidence, looks)
        judged = pairing.change
    op, threshold = rule.bound
    decision = decide(judged.lower, judged.upper, op, threshold)
    if decision == "fail" and pairing is not None and not pairing.surely_differs:
        decision, blocked = (
            "inconclusive",
            "The changed verdicts may be due to chance (McNemar's test).",
        )
    blocked = blocked or _too_few(policy, rule, judged) or _untrusted(report, rule, decision)
    decision = "inconclusive" if blocked else decision
    undecided = decision == "inconclusive" and not blocked
    more = _more_images(rule, judged, looks) if undecided else None
    result = RuleResult(
        rule=rule.id,
        decision=decision,
        severity=rule.severity,
        requirement=requirement(rule, e),
        sentence=blocked or _sentence(judged, decision, more),
        blocked=bool(blocked),
        threshold=threshold,
        confidence=confidence,
        more_images=more,
        metric=e.metric,
        norm=e.norm,
        probe=e.probe,
        eps=e.eps,
        n_images=judged.n_images,
        n_draws=e.n_draws,
    )
    if rule.regression and pairing is None:
        return result
    shown = {name: getattr(judged, name) for name in ("value", "lower", "upper")}
    if pairing is not None:
        shown |= {"baseline": pairing.baseline, "p_value": pairing.p_value}
    return result.model_copy(update=shown)


def _more_images(rule: Rule, judged: Estimate, looks: int) -> int | None:
    """About how many more images would decide a rule; none if that cannot be estimated."""
    if judged.lower is None or judged.upper is None:
        return None
    _, threshold = rule.bound
    if metric_info(judged.metric).kind == "share" and not rule.regression:
        level = 1.0 - (1.0 - judged.level) / looks
        return images_that_decide_share(judged.value, threshold, level, judged.n_images)
    ends = (judged.lower, judged.upper)
    return images_that_decide(judged.value, ends, threshold, judged.n_images)


def _too_few(policy: Policy, rule: Rule, e: Estimate) -> str:
    least = policy.min_images_of(rule)
    if e.n_images < least:
        return f"{count(e.n_images, 'image')}, fewer than the {least} that the policy requires."
    if (e.n_draws or 0) < rule.min_draws > 1:
        draws = count(e.n_draws or 0, "draw")
        return f"{draws}, fewer than the {rule.min_draws} that the policy requires."
    return ""


def _untrusted(report: Report, rule: Rule, decision: Decision) -> str:
    """Why a decision is not valid; empty if it is.

    Errors in the measurement void every decision. A failed check of the attack voids every decision
    on the attack's results, except one: robust accuracy that is too low stays too low, because a
    stronger attack would lower it further. An interrupted audit passes no rule.
    """
    errors = [f for f in report.findings if f.severity == "error"]
    measured = [f for f in errors if not f.code.startswith("PA3") or f.code == "PA313"]
    if measured:
        return f"The estimates cannot be trusted: {_codes(measured)}."
    if rule.stage != "compress":
        attack = [f for f in errors if f.code.startswith("PA3")]
        bounded = rule.metric is not None and metric_info(rule.metric).upper_bound
        holds = decision == "fail" and bounded and rule.min is not None
        if attack and not holds:
            return f"The attack failed its own checks: {_codes(attack)}."
    if decision == "pass" and report.status == "partial":
        return "The audit was interrupted, and a partial report passes no rule."
    return ""


def _codes(findings: list[Finding]) -> str:
    return ", ".join(dict.fromkeys(map(attrgetter("code"), findings)))


def _sentence(e: Estimate, decision: Decision, more: int | None) -> str:
    if e.lower is None or e.upper is None:
        return f"{number(e.value)} from {count(e.n_images, 'image')} has no interval."
    ends = f"{100 * e.level:.4g}% interval {number(e.lower)} to {number(e.upper)}"
    measured = f"{number(e.value)}, {ends} from {count(e.n_images, 'image')}"
    if decision != "inconclusive":
        return f"{measured}."
    if more is None:
        return f"{measured}, contains the threshold; the estimate is too close to it."
    return f"{measured}, contains the threshold; about {count(more, 'more image')} would decide."


def _about_findings(report: Report, policy: Policy, rule: Rule) -> RuleResult:
    """Pass if the report has none of the codes and every check that reports them was run."""
    found = [f for f in report.findings if f.code.startswith(rule.findings)]
    blocked = "" if found else _not_checked(report, policy, rule)
    text = "; ".join(f"{f.code}: {f.sentence}" for f in found) or "The report has none."
    return RuleResult(
        rule=rule.id,
        decision="fail" if found else "inconclusive" if blocked else "pass",
        severity=rule.severity,
        requirement=requirement(rule),
        sentence=blocked or text,
        n_images=len(report.data.ids),
        blocked=bool(blocked),
    )


def _not_checked(report: Report, policy: Policy, rule: Rule) -> str:
    """Why the absence of a finding proves nothing; empty if it does."""
    plan, least, images = report.plan.attack, policy.min_images_of(rule), len(report.data.ids)
    if rule.stage == "attack" and (report.attack is None or plan is None or plan.predict_only):
        return f"The report has no attack.{_how_to_get(rule)}"
    if "PA204" in rule.findings and report.classifier is None:
        return "Without a classifier PA204 is not checked."
    if images < least:
        return f"{count(images, 'image')}, fewer than the {least} that the policy requires."
    return _untrusted(report, rule, "pass")


def _covers(waiver: Waiver, rule: Rule, report: Report, today: date) -> bool:
    return waiver.rule == rule.id and _applies(waiver, report) and today <= waiver.expires


def _applies(waiver: Waiver, report: Report) -> bool:
    return report.checkpoint.sha256.startswith(waiver.model)


def _waiver_notes(policy: Policy, report: Report, today: date, used: set[int]) -> list[str]:
    """Waivers without effect, each with the reason."""
    notes = []
    for n, waiver in enumerate(policy.waiver):
        name = f"The waiver of '{waiver.rule}' for model {waiver.model[:12]}"
        if n in used:
            continue
        if today > waiver.expires:
            notes.append(f"{name} expired on {waiver.expires.isoformat()}.")
        elif not _applies(waiver, report):
            notes.append(f"{name} is for another model.")
        else:
            notes.append(f"{name} is not used: the rule passes.")
    return notes


def _skewed(report: Report, results: list[RuleResult]) -> list[str]:
    """Notes on rules decided on rates with a long upper tail, where t intervals are too short."""
    notes = []
    for q in report.quantiles:
        low, _, middle, _, high = q.quantiles
        key = (q.metric, q.norm, q.probe, q.eps)
        judged = [r.rule for r in results if (r.metric, r.norm, r.probe, r.eps) == key]
        if judged and high - middle > _SKEWED * (middle - low) > 0:
            notes.append(
                f"{named(q)} has a long upper tail over images (5%, 50%, 95%: {number(low)},"
                f" {number(middle)}, {number(high)}), so its interval is too short on the upper"
                f" side; rule '{judged[0]}' needs more images (docs/results.md)."
            )
    return notes
