"""Measure what a policy needs, and stop once every rule is decided."""

from datetime import date
from typing import Any

import torch

from purify_audit.audit.defaults import plan_settings
from purify_audit.audit.result import AuditResult, Decided
from purify_audit.audit.subject import Subject, prepare
from purify_audit.core.errors import PlanError
from purify_audit.gate.baseline import Baseline, columns, compare
from purify_audit.gate.judge import judge
from purify_audit.gate.needs import check_answerable, settings_for, stage_needed
from purify_audit.gate.policy import PolicyFile
from purify_audit.models.shipped import shipped_classifier


def prepare_for_policy(
    policy: PolicyFile, options: dict[str, Any], device: torch.device, *, all_images: bool = False
) -> Subject:
    """The subject of an audit that can decide every rule of a policy.

    Args:
        policy: the policy.
        options: settings by their option names, the policy file's and others.
        device: where it will run.
        all_images: whether all images are used, so that no early decision is planned.

    Raises:
        InputError: the settings cannot be used, or leave a rule that could not be decided.
    """
    if "checkpoint" not in options:
        raise PlanError("name a checkpoint, on the command line or in the policy file")
    rules = policy.policy
    stage = stage_needed(rules)
    fields = plan_settings(settings_for(rules, options))
    if stage == "compress":
        attack = fields.pop("attack")  # then these settings have nothing else to be about
        fields |= {name: attack[name] for name in ("draws", "microbatch") if name in options}
    elif stage == "predict":
        fields["attack"]["predict_only"] = True
    if not all_images:
        fields["first_look"] = max(8, *(rules.min_images_of(r) for r in rules.rule))
    subject = prepare(fields, device)
    if subject.plan.classifier is None and any("accuracy" in str(r.metric) for r in rules.rule):
        fields["classifier"] = shipped_classifier(subject.images.image_shape)
        subject = prepare(fields, device)
    check_answerable(rules, subject.plan)
    return subject


def decided_by(policy: PolicyFile, baseline: Baseline | None) -> Decided:
    """Early decision: whether the result so far decides every rule of its stage."""

    def decided(result: AuditResult) -> bool:
        report, difference = result.report, None
        if baseline is not None and result.samples is not None:
            new = Baseline(report, columns(report.plan, result.samples, result.attacks))
            difference = compare(new, baseline)
        judgement = judge(report, policy, date.today(), difference)
        attacked = result.attacks is not None
        mine = {r.id: r for r in policy.policy.rule if (r.stage != "compress") == attacked}
        late = (code for rule in mine.values() for code in rule.findings if code[:3] != "PA1")
        if any(late):  # later findings may appear only with more images
            return False
        return all(r.decision != "inconclusive" for r in judgement.rules if r.rule in mine)

    return decided
