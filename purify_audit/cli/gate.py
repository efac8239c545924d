"""`purify-audit gate`: judge a saved report by a policy. No torch."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from purify_audit.cli import judging as j
from purify_audit.cli.app import command


@command()
def gate(
    report: Annotated[Path, typer.Argument(help="Report of `compress`, `attack` or `run`.")],
    policy: j.Policy = None,
    baseline: j.BaselineFile = None,
    html: j.Html = None,
    markdown: j.Markdown = None,
    junit: j.Junit = None,
    sarif: j.Sarif = None,
    github: j.Github = False,
    gitlab_metrics: j.GitlabMetrics = None,
    gitlab_codequality: j.GitlabQuality = None,
    in_toto: j.InToto = None,
    fail_on: j.FailOnOption = "inconclusive",
    exit_zero: j.ExitZero = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the judgement as JSON.")] = False,
) -> None:
    """Judge a report by a policy: PASS, FAIL or INCONCLUSIVE, decided on intervals."""
    from purify_audit.gate.policy import read_policy
    from purify_audit.gate.saved import judge_saved, policy_baseline
    from purify_audit.report.saved import open_report

    when = j.checked_fail_on(fail_on)
    rules = read_policy(policy, Path())
    saved = open_report(report)
    judgement = judge_saved(saved, rules, policy_baseline(rules, baseline), when)
    if as_json:
        print(judgement.model_dump_json(indent=1))
    else:
        from purify_audit.render.terminal.judgement import show_judgement

        show_judgement(Console(), judgement)
    files = j.Files(html, markdown, junit, sarif, gitlab_metrics, gitlab_codequality, in_toto, when)
    files.write(saved, judgement)
    if github:
        j.tell_github(saved, judgement)
    raise typer.Exit(0 if exit_zero else j.exit_code(judgement, when))
