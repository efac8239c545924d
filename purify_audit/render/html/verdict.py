"""The page's first sections: verdict, rules, what was not tested, and findings."""

from dataclasses import dataclass

from purify_audit.core.findings import Finding
from purify_audit.gate.judgement import WORDS, Decision, Judgement, RuleResult
from purify_audit.render.html.sanity_checks import fewer_images
from purify_audit.render.untested import LAST, untested
from purify_audit.report.schema import Report
from purify_audit.report.wording import count, interval_text, listed, value_text
from purify_audit.statistics.attack_rows import AttackSamples

MOST_RULES = 150
MOST_FINDINGS = 50

_RANK: dict[Decision, int] = {"fail": 0, "inconclusive": 1, "pass": 2}
_SEVERITY = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class RuleRow:
    """One row of the table of rules, as text."""

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
        sentence: the number of rules by decision.
        rows: the rules; failing ones first if there are more than fit.
        left_out: how many do not fit.
    """

    decision: Decision | None
    word: str
    sentence: str
    rows: tuple[RuleRow, ...] = ()
    left_out: int = 0


def verdict(judgement: Judgement | None) -> Verdict:
    """The banner and the rules of a judgement."""
    if judgement is None:
        return Verdict(None, "NOT JUDGED", "This report was not judged by a policy.")
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
    return f"{count(len(of), 'rule')}: {', '.join(counts)}." if of else "The policy has no rules."


def _row(r: RuleResult) -> RuleRow:
    metric = r.metric or ""
    has = r.value is not None
    unit = " points" if has and value_text(metric, 0.0).startswith("+") else ""
    return RuleRow(
        decision=r.decision,
        word=WORDS[r.decision],
        result=r,
        value=value_text(metric, r.value) + unit,
        interval=interval_text(metric, r.lower, r.upper) if has else "—",
        images="—" if r.n_images is None else str(r.n_images),
    )


def gaps(report: Report, attacks: AttackSamples | None) -> list[str]:
    """What was not tested: the sentences of every format, and more from plan and rows."""
    found = [s for s in untested(report) if s != LAST]
    plan, attack = report.plan, report.plan.attack
    if plan.draws == 1:
        found.append("Only one draw: the variation of rates over draws was not measured.")
    if not any(probe.kind == "power" for probe in plan.probes):
        found.append("The worst-case direction was not searched for (probe power).")
    attacked = report.attack is not None and attack is not None and not attack.predict_only
    if attacked and not any(e.probe == "fresh" for e in report.estimates):
        found.append("The fresh attack (the usual protocol) did not run, so inflation is unknown.")
    found += fewer_images(attacks)
    found.append(
        "Only additive perturbations inside a ball: no rotations, patches, corruptions or tampered"
        " weights."
    )
    return [*found, LAST]


def ranked_findings(report: Report) -> tuple[list[Finding], int]:
    """Findings, most severe first, and how many do not fit."""
    found = sorted(report.findings, key=lambda f: (_SEVERITY[f.severity], f.code))
    return found[:MOST_FINDINGS], max(0, len(found) - MOST_FINDINGS)


def evidence(finding: Finding) -> list[tuple[str, str]]:
    """The numbers behind a finding; long lists are cut."""
    return [
        (
            name.replace("_", " "),
            listed(map(_digits, value if isinstance(value, list) else [value])),
        )
        for name, value in list(finding.evidence.items())[:20]
    ]


def _digits(value: float | int | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
