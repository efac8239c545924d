"""A judgement in a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from purify_audit.gate.judgement import WORDS, Judgement, RuleResult
from purify_audit.render.terminal.style import TABLE
from purify_audit.render.wording import visible

_STYLE = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}


def show_judgement(console: Console, judgement: Judgement) -> None:
    """Print every rule, then notes, then the verdict."""
    name = escape(visible(f"{judgement.model} judged by {judgement.policy}"))
    table = Table(title=f"{name}, {judgement.judged}", **TABLE)
    table.add_column("rule", max_width=26, overflow="fold")
    table.add_column("decision", no_wrap=True)
    table.add_column("requirement and result", overflow="fold")
    for result in judgement.rules:
        style = "dim" if result.waived else _STYLE[result.decision]
        word = Text(WORDS[result.decision] + _aside(result), style=style)
        text = Text(visible(result.requirement) + "\n")
        text.append(visible(result.sentence), style="dim")
        if result.waived:
            text.append(f"\nWaived: {visible(result.waived)}", style="dim")
        table.add_row(Text(result.rule), word, text)
    console.print(table)
    for note in judgement.notes:
        console.print(Text(visible(note), style="yellow"))
    console.print(Text(WORDS[judgement.verdict], style=_STYLE[judgement.verdict]))


def _aside(result: RuleResult) -> str:
    if result.waived:
        return "\n(waived)"
    return "\n(warning)" if result.severity == "warning" and result.decision != "pass" else ""
