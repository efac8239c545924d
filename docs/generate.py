"""Generate the reference pages from the code: `python docs/generate.py [--check]`.

With --check nothing is written; the exit code is 1 if a page is outdated.
"""

import sys
from functools import partial
from pathlib import Path

import click
import typer.main
from formats_page import formats_page
from reference_pages import exit_codes_page, plan_page, policy_page, report_page
from results_page import figure, results_page

from purify_audit.cli import app
from purify_audit.core.findings import CODES
from purify_audit.gate.policy import policy_schema
from purify_audit.report.schema import json_schema
from purify_audit.spec.samplers import SAMPLER_PRESETS, parse_sampler

DOCS = Path(__file__).parent


def cli_page() -> str:
    """The `--help` of every command."""
    parts = ["# Command line", "", "Generated from the program by `make docs`.", ""]
    commands = _commands("purify-audit", typer.main.get_command(app))
    for name, command in commands.items():
        context = command.context_class(command, info_name=name, terminal_width=92)
        parts += [f"## {name}", "", "```text", command.get_help(context).rstrip(), "```", ""]
    parts += ["See also: [exit codes](exit-codes.md).", ""]
    return "\n".join(parts)


def _commands(name: str, command: click.Command) -> dict[str, click.Command]:
    """A command and its subcommands by their full names, without hidden ones."""
    commands = {name: command}
    for part, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            commands |= _commands(f"{name} {part}", below)
    return commands


def findings_page() -> str:
    """Every finding code."""
    parts = ["# Findings", "", "Generated from `purify_audit/core/findings.py` by `make docs`.", ""]
    for code, about in CODES.items():
        parts += [f"## {code} {about.name}", "", f"*{about.severity}.* {about.meaning}", ""]
        parts += [f"What next: {about.advice}", ""]
    return "\n".join(parts)


def samplers_page() -> str:
    """Every sampler preset with its settings."""
    parts = [
        "# Sampler presets",
        "",
        "Generated from `purify_audit/spec/samplers.py` by `make docs`.",
        "",
    ]
    parts += ["Change a setting with `--sampler NAME:key=value`.", ""]
    parts += ["| preset | settings |", "|---|---|"]
    for name in SAMPLER_PRESETS:
        settings = parse_sampler(name, {}).model_dump()
        values = ", ".join(f"{key} {str(value).lower()}" for key, value in settings.items())
        parts.append(f"| `{name}` | {values} |")
    return "\n".join([*parts, ""])


PAGES = {
    "cli.md": cli_page,
    "findings.md": findings_page,
    "samplers.md": samplers_page,
    "formats.md": formats_page,
    "plan.md": plan_page,
    "policy.md": policy_page,
    "report.md": report_page,
    "exit-codes.md": exit_codes_page,
    "results.md": results_page,
    "report.schema.json": json_schema,
    "policy.schema.json": policy_schema,
    "attack_curves.svg": partial(figure, "attack_curves.svg"),
    "compression_robustness.svg": partial(figure, "compression_robustness.svg"),
    "predicted_measured.svg": partial(figure, "predicted_measured.svg"),
}


def main() -> None:
    """Write or check every page."""
    stale = []
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.exit(f"docs/{', docs/'.join(stale)}: outdated, run `make docs`")


if __name__ == "__main__":
    main()
