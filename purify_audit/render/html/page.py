"""The report as one self-contained HTML page: no scripts, no fonts, no requests."""

import base64
import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from purify_audit import __version__
from purify_audit.gate.judgement import Judgement
from purify_audit.render.html import attack as html_attack
from purify_audit.render.html import estimates as html_estimates
from purify_audit.render.html import rates as html_rates
from purify_audit.render.html import sanity_checks as html_checks
from purify_audit.render.html.verdict import evidence, gaps, ranked_findings, verdict
from purify_audit.render.summary import fuzziness_table, robust_accuracy_tables, summary
from purify_audit.render.wording import visible
from purify_audit.report.schema import Report
from purify_audit.report.wording import (
    attack_text,
    count,
    describe,
    estimate_text,
    norm_text,
    radius,
)
from purify_audit.spec.card import ClassifierCard
from purify_audit.statistics.attack_rows import AttackSamples
from purify_audit.statistics.compression_rows import CompressionSamples

MOST_BYTES = 2_000_000
"""A page is smaller than this, whatever the report contains."""

_PICTURES = 700_000  # bytes of them
_LONGEST = (4000, 300, 60)  # characters of untrusted texts, tried in turn until the page fits


def html_report(
    report: Report,
    judgement: Judgement | None = None,
    samples: CompressionSamples | None = None,
    attacks: AttackSamples | None = None,
) -> str:
    """A report and its judgement as one page; the same input gives the same bytes.

    Args:
        report: the report.
        judgement: if it was judged by a policy.
        samples: the report's rows; without them histograms are replaced by quantiles.
        attacks: the report's attacked images; without them none are shown.
    """
    context = _context(report, judgement, samples, attacks)
    page = ""
    for longest in _LONGEST:
        page = _environment(longest).get_template("report.html.j2").render(context)
        if len(page.encode()) < MOST_BYTES:
            break
    return page


def _environment(longest: int) -> Environment:
    """Templates that escape every text and make its control characters visible."""

    def finalize(value: object) -> object:
        if isinstance(value, str) and not isinstance(value, Markup):
            return visible(value, longest)
        return value

    return Environment(
        loader=PackageLoader("purify_audit", "render/html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _context(
    report: Report,
    judgement: Judgement | None,
    samples: CompressionSamples | None,
    attacks: AttackSamples | None,
) -> dict[str, Any]:
    css = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    findings, more_findings = ranked_findings(report)
    return {
        "css": Markup(css),  # a file of this package
        "css_digest": base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        "version": __version__,
        "report": report,
        "judgement": judgement,
        "facts": _facts(report),
        "verdict": verdict(judgement),
        "gaps": gaps(report, attacks),
        "findings": [(f, evidence(f)) for f in findings],
        "more_findings": more_findings,
        "key": _key_figures(report),
        "forests": html_estimates.forests(report),
        "estimates": html_estimates.estimate_table(report),
        "has_rows": samples is not None,
        "spreads": html_rates.distributions(report, samples),
        "radii": html_rates.radius_curves(report),
        "randomness": html_rates.randomness(report, samples),
        "distances": html_rates.geometry(report),
        "summary": list(summary(report)),
        "attack": _attack(report, attacks),
        "commands": _commands(report, judgement),
        "reproduce": _reproduce(report, judgement),
    }


def _facts(report: Report) -> list[tuple[str, str]]:
    """What was audited, in a few words each."""
    model, data, plan = report.checkpoint, report.data, report.plan
    assert not isinstance(model.card, ClassifierCard), "a purifier was audited"
    calls = model.evaluations
    cost = "" if calls is None else f", {count(calls, 'network evaluation')}"
    classifier = "none" if report.classifier is None else report.classifier.card.name
    of = f"{len(data.ids)} of {data.source} ({data.available} available)"
    radii = ", ".join(map(radius, plan.eps))
    draws = count(plan.draws, "draw")
    return [
        ("purifier", describe(model.card) + cost),
        ("images", f"{of}, {'×'.join(map(str, data.image_shape))}"),
        ("probes", f"{norm_text(plan.norm)} ball, ε {radii}, {draws} of each image"),
        ("classifier", classifier),
    ]


_KEY: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("compression rate", "compression_rate", lambda e: e.norm == "l2"),
    ("accuracy on purified clean images", "anchor_accuracy", lambda e: True),
    ("aligned robust accuracy", "aligned_robust_accuracy", lambda e: e.probe == "aligned"),
    ("robust accuracy, usual protocol", "mean_robust_accuracy", lambda e: e.probe == "fresh"),
    ("predicted robust accuracy", "predicted_robust_accuracy", lambda e: True),
)


def _key_figures(report: Report) -> list[tuple[str, str, str]]:
    """The main figures: name, value, and interval with norm, probe and radius."""
    figures = []
    for label, metric, wanted in _KEY:
        e = next((e for e in report.estimates if e.metric == metric and wanted(e)), None)
        if e is not None:
            value, _, interval = estimate_text(e).partition(" ")
            where = [norm_text(e.norm), "" if e.eps is None else radius(e.eps)]
            if metric == "compression_rate":
                where.insert(1, str(e.probe))
            figures.append((label, value, " · ".join([interval, *filter(None, where)])))
    return figures


def _attack(report: Report, attacks: AttackSamples | None) -> dict[str, Any] | None:
    info, plan = report.attack, report.plan.attack
    if info is None or plan is None:
        return None
    return {
        "text": attack_text(plan),
        "predict_only": plan.predict_only,
        "has_rows": attacks is not None,
        "accuracies": robust_accuracy_tables(report),
        "curves": html_attack.accuracy_curves(report),
        "fuzziness": fuzziness_table(info),
        "checks": html_checks.checks(report, attacks),
        "gradients": html_checks.gradient_numbers(report),
        "comparison": html_checks.comparison_table(report, attacks),
        "caps": html_attack.caps(info),
        "fooling_radii": html_attack.fooling_radii(info, plan.eps[0]),
        "gallery": html_attack.example_images(attacks, _PICTURES),
        "outcomes": html_attack.outcomes(info, plan.eps[0]),
    }


def _commands(report: Report, judgement: Judgement | None) -> list[tuple[str, str]]:
    """Commands that check the page, each with its purpose."""
    run = report.run
    rows = None if run is None else run.rows_file
    stem = "report" if rows is None else rows.removesuffix(".rows.safetensors")
    file = shlex.quote(f"{stem}.json")
    commands = [("Run the audit again", run.command)] if run is not None else []
    if rows is not None:
        first = f" --image {report.data.ids[0]}" if report.data.ids else " --image ID"
        commands.append(("Recompute one number, bit for bit", f"purify-audit replay {file}{first}"))
    commands.append(("Recompute a sample of the rows", f"purify-audit reproduce {file}"))
    policy = "POLICY.toml" if judgement is None else shlex.quote(judgement.policy)
    commands.append(("Judge again", f"purify-audit gate {file} --policy {policy}"))
    return commands


def _reproduce(report: Report, judgement: Judgement | None) -> list[tuple[str, str]]:
    run, plan, model = report.run, report.plan, report.checkpoint
    rows = [("checkpoint", f"{model.source}  sha256 {model.sha256}")]
    if report.classifier is not None:
        classifier = report.classifier
        rows.append(("classifier", f"{classifier.source}  sha256 {classifier.sha256}"))
    rows += [
        ("data", f"{report.data.source}  sha256 {report.data.digest}"),
        ("plan", f"sha256 {report.plan_digest}"),
        ("rows", f"sha256 {report.rows_sha256}" if report.rows_sha256 else "none"),
        ("attacked images", f"sha256 {report.attacks_sha256}" if report.attacks_sha256 else "none"),
        ("report", f"sha256 {report.digest} (body)"),
    ]
    if judgement is not None:
        rows.append(("policy", f"{judgement.policy}  sha256 {judgement.policy_sha256}"))
    if judgement is not None and judgement.baseline_sha256 is not None:
        rows.append(("baseline", f"sha256 {judgement.baseline_sha256} (body)"))
    rows += [
        ("randomness", f"{report.noise_spec}, seed {plan.seed}"),
        ("micro-batch", f"{plan.microbatch} rows" + _attack_batch(report)),
        ("tool", f"purify-audit {report.tool_version}, report schema {report.schema_version}"),
    ]
    rows += [(str(k).replace("_", " "), str(v)) for k, v in list(report.environment.items())[:40]]
    if run is not None:
        rows.append(("started", run.started))
        rows.append(("run time", f"{run.seconds:.1f} s, {run.evaluations:,} network evaluations"))
    return rows


def _attack_batch(report: Report) -> str:
    plan = report.plan.attack
    return "" if plan is None else f"; {plan.microbatch} in the attack"
