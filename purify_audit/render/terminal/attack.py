"""The attack's part of a report in a terminal."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from purify_audit.render.summary import (
    Table,
    flips_table,
    fuzziness_table,
    robust_accuracy_tables,
)
from purify_audit.render.terminal.style import rich_table
from purify_audit.report.schema import AttackInfo, Report
from purify_audit.report.wording import attack_text, coefficient, spread_text

_COSINES = {
    "cosine_draws": "two draws",
    "cosine_bpda": "BPDA and exact",
    "cosine_surrogate": "a shorter chain and exact",
    "cosine_none": "finite differences and exact",
}


def attack_parts(report: Report) -> Iterator[RenderableType]:
    """Tables and sentences about the attack."""
    info, plan = report.attack, report.plan.attack
    assert info is not None, "the caller checks"
    assert plan is not None, "a report of an attack has its plan"
    if not plan.predict_only:
        yield Text(f"\nAttack: {attack_text(plan)}; {report.plan.level:.0%} intervals.\n")
    tables = robust_accuracy_tables(report)
    tables += [fuzziness_table(info), flips_table(info), _correlations(info)]
    yield from (rich_table(table) for table in tables if table.rows)
    cosines = [
        f"{text} {info.gradients[n]:.2f}" for n, text in _COSINES.items() if n in info.gradients
    ]
    if cosines:
        yield Text(f"Cosine between gradients: {', '.join(cosines)}.")


def _correlations(info: AttackInfo) -> Table:
    rows = tuple(
        (
            "attack direction" if name == "attack" else name,
            "undefined"
            if c.value is None
            else coefficient(c.value)
            + ("" if c.lower is None or c.upper is None else f" {spread_text(c.lower, c.upper)}"),
            str(c.n),
        )
        for name, c in info.correlations.items()
    )
    columns = ("compression rate", "Spearman", "images")
    return Table("Rank correlation with the smallest fooling radius", columns, rows)
