"""A report in GitHub-flavoured Markdown, for a pull request's comment or a step's summary."""

from collections.abc import Iterator
from dataclasses import replace

from purify_audit.gate.judgement import WORDS, Judgement
from purify_audit.render.markdown.text import Section, escaped, fenced, fitted, table
from purify_audit.render.summary import robust_accuracy_tables, summary
from purify_audit.render.untested import untested
from purify_audit.render.wording import key_estimates, word
from purify_audit.report.schema import Report
from purify_audit.report.wording import at, interval_text, value_text
from purify_audit.statistics.estimates import Estimate

MARKER = "<!-- purify-audit -->"
"""Identifies the comment that a later run replaces."""
COMMENT = 65_000
"""Bytes; GitHub accepts 65,536 characters in a comment."""
SUMMARY = 900_000
"""Bytes; GitHub drops a step summary over 1 MiB, and the job still passes."""

_SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}
_BAR = 20  # characters


def markdown_report(report: Report, judgement: Judgement | None, limit: int = COMMENT) -> str:
    """A report as a comment: verdict, rules, what was not tested, numbers, findings, command.

    Args:
        report: the report.
        judgement: if it was judged by a policy.
        limit: UTF-8 bytes at most, at least 200; rows that do not fit are counted at the end of
            their table.
    """
    sections = [
        _subject(report),
        *(_rules(judgement) if judgement is not None else ()),
        _untested(report),
        *_summary(report),
        *_numbers(report),
        *_findings(report),
        _reproduce(report),
    ]
    return fitted(_opening(report, judgement), sections, limit)


def step_summary(report: Report, judgement: Judgement | None) -> str:
    """The same for `$GITHUB_STEP_SUMMARY`, which may be longer."""
    return markdown_report(report, judgement, SUMMARY)


def _opening(report: Report, judgement: Judgement | None) -> str:
    verdict = "measured" if judgement is None else WORDS[judgement.verdict]
    sign = "" if judgement is None else f"{_SIGNS[judgement.verdict]} "
    partial = (
        " (PARTIAL: stopped before the plan was complete)" if report.status == "partial" else ""
    )
    return f"{MARKER}\n## {sign}purify-audit: {verdict}{partial}\n"


def _subject(report: Report) -> Section:
    model, data = report.checkpoint, report.data
    return Section(
        f"**{escaped(model.card.name, 200)}** on {len(data.ids)} images of"
        f" {escaped(data.source, 200)}, model {escaped(model.sha256[:12])}.\n",
        (),
    )


def _rules(judgement: Judgement) -> Iterator[Section]:
    rows = [
        (
            escaped(result.rule),
            escaped(result.requirement),
            f"{_SIGNS[result.decision]} {escaped(word(result), 300)}",
            escaped(result.sentence),
        )
        for result in judgement.rules
    ]
    yield table("Rules", ("rule", "requirement", "decision", "reason"), rows)
    if judgement.notes:
        yield Section("### Notes\n\n", tuple(f"- {escaped(note)}\n" for note in judgement.notes))


def _untested(report: Report) -> Section:
    rows = tuple(f"- {escaped(sentence)}\n" for sentence in untested(report))
    return Section("### What was not tested\n\n", rows)


def _summary(report: Report) -> Iterator[Section]:
    rows = tuple(f"- {escaped(sentence)}\n" for sentence in summary(report))
    if rows:
        yield Section("### Summary\n\n", rows)


def _numbers(report: Report) -> Iterator[Section]:
    estimates = key_estimates(report)
    if estimates:
        columns = ("metric", "norm, probe, radius", "value:", "interval:", "", "images:")
        title = f"Main numbers, {100 * report.plan.level:.4g}% intervals"
        yield table(title, columns, map(_estimate, estimates))
    for shared in robust_accuracy_tables(report):
        aligned = (shared.columns[0], *(f"{name}:" for name in shared.columns[1:]))
        cells = [tuple(map(escaped, row)) for row in shared.rows]
        yield replace(table(shared.title, aligned, cells), foot=f"\n{escaped(shared.note)}\n")


def _estimate(e: Estimate) -> tuple[str, ...]:
    value = escaped(value_text(e.metric, e.value))
    ends = escaped(interval_text(e.metric, e.lower, e.upper))
    return escaped(e.metric), escaped(at(e)), value, ends, _bar(e), str(e.n_images)


def _bar(e: Estimate) -> str:
    """The interval of a share drawn on the axis from 0 to 1; empty for other numbers."""
    if not e.metric.endswith("_accuracy") or e.lower is None or e.upper is None:
        return ""
    low, value, high = (min(max(int(x * _BAR), 0), _BAR - 1) for x in (e.lower, e.value, e.upper))
    marks = ["━" if low <= n <= high else "┈" for n in range(_BAR)]
    marks[value] = "●"
    return "".join(marks)


def _findings(report: Report) -> Iterator[Section]:
    if not report.findings:
        yield Section("### Findings\n\nNone.\n", ())
        return
    rows = [
        (escaped(f.code), f.severity, escaped(f.sentence), escaped(f.advice))
        for f in report.findings
    ]
    yield table("Findings", ("code", "severity", "finding", "advice"), rows)


def _reproduce(report: Report) -> Section:
    """The command, digests of model, images and plan, and the environment, folded."""
    facts = {
        "model sha256": report.checkpoint.sha256,
        "images digest": report.data.digest,
        "plan digest": report.plan_digest,
        "report body sha256": report.digest,
        "seed": report.plan.seed,
        "purify-audit": report.tool_version,
        **report.environment,
    }
    lines = [f"# {name}: {value}" for name, value in facts.items()]
    if report.run is not None:
        lines.insert(0, report.run.command)
    text, fence = fenced("\n".join(lines), "sh")
    head = "<details><summary>Reproduce</summary>\n\n"
    return Section(head, (text + fence,), "\n</details>\n")
