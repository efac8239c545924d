"""A report in GitHub-flavoured Markdown, for a pull request's comment or a step's summary."""

from collections.abc import Iterator

from purify_audit.gate.judgement import WORDS, Judgement
from purify_audit.gate.wording import number
from purify_audit.render.markdown.text import Section, escaped, fenced, fitted, table
from purify_audit.render.untested import untested
from purify_audit.render.wording import at, key_estimates, word
from purify_audit.report.schema import Report
from purify_audit.spec.notation import radius_text
from purify_audit.statistics.estimates import Estimate

MARKER = "<!-- purify-audit -->"
"""By which a later run finds the comment that it should replace."""
COMMENT = 65_000
"""A little less than the 65,536 characters that GitHub takes in a comment."""
SUMMARY = 900_000
"""Bytes; a step's summary over 1 MiB is dropped whole, and the job still passes."""

_SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}
_PROTOCOLS = {
    "aligned": "the attack's own draws",
    "heldout": "one draw never seen",
    "mean": "mean of fresh draws",
    "worst_of_k": "worst of fresh draws",
    "vote": "vote of fresh draws",
}
_BAR = 20  # characters


def markdown_report(report: Report, judgement: Judgement | None, limit: int = COMMENT) -> str:
    """A report as a comment: verdict, rules, what was not tested, numbers, findings, how to redo.

    Args:
        report: what was measured.
        judgement: what a policy made of it, if there was one.
        limit: the most UTF-8 bytes, at least 200; rows that do not fit are counted at the end of
            their table.
    """
    sections = [
        _subject(report),
        *(_rules(judgement) if judgement is not None else ()),
        _untested(report),
        *_numbers(report),
        *_findings(report),
        _reproduce(report),
    ]
    return fitted(_opening(report, judgement), sections, limit)


def step_summary(report: Report, judgement: Judgement | None) -> str:
    """The same for `$GITHUB_STEP_SUMMARY`, where there is more room."""
    return markdown_report(report, judgement, SUMMARY)


def _opening(report: Report, judgement: Judgement | None) -> str:
    verdict = "measured" if judgement is None else WORDS[judgement.verdict]
    sign = "" if judgement is None else f"{_SIGNS[judgement.verdict]} "
    partial = " (PARTIAL: stopped before the plan was done)" if report.status == "partial" else ""
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
    yield table("Rules", ("rule", "requires", "decision", "why"), rows)
    if judgement.notes:
        yield Section("### Notes\n\n", tuple(f"- {escaped(note)}\n" for note in judgement.notes))


def _untested(report: Report) -> Section:
    rows = tuple(f"- {escaped(sentence)}\n" for sentence in untested(report))
    return Section("### What was not tested\n\n", rows)


def _numbers(report: Report) -> Iterator[Section]:
    estimates = key_estimates(report)
    if estimates:
        columns = ("metric", "at", "value:", "interval:", "", "images:")
        rows = [_estimate(e) for e in estimates]
        yield table(f"Main numbers, {100 * report.plan.level:.4g}% intervals", columns, rows)
    how = report.plan.attack
    if how is None or how.predict_only:
        return
    for eps in how.eps:
        scores = list(_protocols(report, eps))
        if scores:
            title = f"Robust accuracy, {how.norm} {radius_text(eps)}"
            attacks = ("scored by", "aligned attack:", "fresh attack:", "clean control:")
            yield table(title, attacks, scores)


def _estimate(e: Estimate) -> tuple[str, ...]:
    return escaped(e.metric), escaped(at(e)), number(e.value), _ends(e), _bar(e), str(e.n_images)


def _ends(e: Estimate) -> str:
    if e.lower is None or e.upper is None:
        return "none"
    return f"{number(e.lower)} to {number(e.upper)}"


def _bar(e: Estimate) -> str:
    """Where the interval of a share lies between 0 and 1; empty for other numbers."""
    if not e.metric.endswith("_accuracy") or e.lower is None or e.upper is None:
        return ""
    low, value, high = (min(max(int(x * _BAR), 0), _BAR - 1) for x in (e.lower, e.value, e.upper))
    marks = ["━" if low <= n <= high else "┈" for n in range(_BAR)]
    marks[value] = "●"
    return "".join(marks)


def _protocols(report: Report, eps: float) -> Iterator[tuple[str, ...]]:
    found = {(e.metric, e.probe): e for e in report.estimates if e.eps == eps}
    for protocol, told in _PROTOCOLS.items():
        metric = f"{protocol}_robust_accuracy"
        cells = [found.get((metric, attack)) for attack in ("aligned", "fresh")]
        cells.append(found.get((f"{metric}_control", "aligned")))
        if any(cells):
            yield (told, *(_share(e) for e in cells))
    bare = found.get(("bare_robust_accuracy", "bare"))
    if bare is not None:
        control = found.get(("bare_robust_accuracy_control", "bare"))
        yield ("classifier without purifier", _share(bare), "—", _share(control))


def _share(e: Estimate | None) -> str:
    return "—" if e is None else f"{number(e.value)} ({_ends(e)})"


def _findings(report: Report) -> Iterator[Section]:
    if not report.findings:
        yield Section("### Findings\n\nNone.\n", ())
        return
    rows = [
        (escaped(f.code), f.severity, escaped(f.sentence), escaped(f.advice))
        for f in report.findings
    ]
    yield table("Findings", ("code", "severity", "found", "next"), rows)


def _reproduce(report: Report) -> Section:
    """The command and what identifies model, images and environment, folded away."""
    told = {
        "model sha256": report.checkpoint.sha256,
        "images digest": report.data.digest,
        "plan digest": report.plan_digest,
        "report body sha256": report.digest,
        "seed": report.plan.seed,
        "purify-audit": report.tool_version,
        **report.environment,
    }
    lines = [f"# {name}: {value}" for name, value in told.items()]
    if report.run is not None:
        lines.insert(0, report.run.command)
    text, fence = fenced("\n".join(lines), "sh")
    head = "<details><summary>Reproduce</summary>\n\n"
    return Section(head, (text + fence,), "\n</details>\n")
