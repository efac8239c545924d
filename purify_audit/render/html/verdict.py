"""The page's first sections: the verdict, its rules, what was not tested, and the findings."""

from dataclasses import dataclass

from purify_audit.core.findings import Finding
from purify_audit.gate.judgement import WORDS, Decision, Judgement, RuleResult
from purify_audit.render.html.parts import ends_text, value_text
from purify_audit.render.html.sanity_checks import fewer_images
from purify_audit.render.untested import LAST, untested
from purify_audit.report.schema import Report
from purify_audit.statistics.attack_rows import AttackSamples

MOST_RULES = 150
MOST_FINDINGS = 50

_RANK: dict[Decision, int] = {"fail": 0, "inconclusive": 1, "pass": 2}
_SEVERITY = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class RuleRow:
    """One line of the table of rules, as it is written."""

    decision: Decision
    word: str
    result: RuleResult
    value: str
    interval: str
    images: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The banner and the table of rules.

    Attributes:
        decision: none without a judgement.
        word: the decision in one word.
        sentence: how many rules were decided how.
        rows: the rules; those that fail come first where there are more than fit.
        left_out: how many do not fit.
    """

    decision: Decision | None
    word: str
    sentence: str
    rows: tuple[RuleRow, ...] = ()
    left_out: int = 0


def verdict(judgement: Judgement | None) -> Verdict:
    """What the page says first."""
    if judgement is None:
        return Verdict(None, "NOT JUDGED", "No policy was held against this report.")
    rules = list(judgement.rules)
    if len(rules) > MOST_RULES:
        rules = sorted(rules, key=lambda r: _RANK[r.decision])[:MOST_RULES]
    rows = tuple(_row(r) for r in rules)
    left = len(judgement.rules) - len(rows)
    return Verdict(judgement.verdict, WORDS[judgement.verdict], _count(judgement), rows, left)


def _count(judgement: Judgement) -> str:
    words: dict[Decision, str] = {"pass": "passed", "fail": "failed", "inconclusive": "undecided"}
    of = [r.decision for r in judgement.rules]
    counts = [f"{of.count(d)} {words[d]}" for d in _RANK if of.count(d)]
    waived = sum(r.waived is not None for r in judgement.rules)
    counts += [f"{waived} of them waived"] if waived else []
    total = "1 rule" if len(of) == 1 else f"{len(of)} rules"
    return f"{total}: {', '.join(counts)}." if of else "The policy has no rules."


def _row(r: RuleResult) -> RuleRow:
    metric = r.metric or ""
    has = r.value is not None
    unit = " points" if has and value_text(metric, 0.0).startswith("+") else ""
    return RuleRow(
        decision=r.decision,
        word=WORDS[r.decision],
        result=r,
        value=value_text(metric, r.value) + unit,
        interval=ends_text(metric, r.lower, r.upper) if has else "—",
        images="—" if r.n_images is None else str(r.n_images),
    )


def gaps(report: Report, attacks: AttackSamples | None) -> list[str]:
    """What was not tested: what every format says, and what only the rows tell."""
    found = [s for s in untested(report) if s != LAST]
    plan, how = report.plan, report.plan.attack
    if plan.draws == 1:
        found.append("One draw only: how rates vary with the draw was not measured.")
    if not any(probe.kind == "power" for probe in plan.probes):
        found.append("The direction that is stretched most was not searched for (probe power).")
    attacked = report.attack is not None and how is not None and not how.predict_only
    if attacked and not any(e.probe == "fresh" for e in report.estimates):
        found.append("The usual protocol (fresh draws) was not attacked, so inflation is unknown.")
    found += fewer_images(attacks)
    found.append(
        "Only perturbations added to pixels inside a ball: no rotations, patches, corruptions or"
        " tampered weights."
    )
    return [*found, LAST]


def ranked_findings(report: Report) -> tuple[list[Finding], int]:
    """Findings, the gravest first, and how many do not fit."""
    found = sorted(report.findings, key=lambda f: (_SEVERITY[f.severity], f.code))
    return found[:MOST_FINDINGS], max(0, len(found) - MOST_FINDINGS)


def evidence(finding: Finding) -> list[tuple[str, str]]:
    """The numbers behind a finding, the longer lists cut."""
    told = []
    for name, value in list(finding.evidence.items())[:20]:
        if isinstance(value, list):
            text = ", ".join(_plain(v) for v in value[:20])
            text += f" and {len(value) - 20} more" if len(value) > 20 else ""
        else:
            text = _plain(value)
        told.append((name.replace("_", " "), text))
    return told


def _plain(value: float | int | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
