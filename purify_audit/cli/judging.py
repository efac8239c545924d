"""Options and output files that `gate`, `report` and `run` share."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from purify_audit.cli.output import write_text
from purify_audit.core.errors import PlanError, PurifyAuditError
from purify_audit.gate.judgement import EXIT_CODES, FailOn

if TYPE_CHECKING:
    from purify_audit.gate.judgement import Judgement
    from purify_audit.report.saved import SavedReport
    from purify_audit.report.schema import Report

Policy = Annotated[
    Path | None,
    typer.Option(
        help="Default: [gate] of purify-audit.toml, else [tool.purify-audit.gate] of"
        " pyproject.toml."
    ),
]
BaselineFile = Annotated[
    Path | None,
    typer.Option(
        help="Baseline of regression rules: a file of `baseline save`, or a report with its rows"
        " beside it. Default: the policy's, if any."
    ),
]
FailOnOption = Annotated[
    str,
    typer.Option(
        "--fail-on",
        help="Exit non-zero on: fail, FAIL only; inconclusive (default), FAIL or INCONCLUSIVE;"
        " warning, also count rules of severity warning.",
    ),
]
ExitZero = Annotated[
    bool, typer.Option("--exit-zero", help="Exit with 0 whatever is decided; bad input is still 2.")
]
Html = Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")]
Markdown = Annotated[
    Path | None, typer.Option(help="Write Markdown that fits a pull-request comment.")
]
Junit = Annotated[Path | None, typer.Option(help="Write JUnit XML, one test case per rule.")]
Sarif = Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0.")]
Github = Annotated[
    bool,
    typer.Option(
        "--github", help="Write annotations, step summary and outputs of a GitHub workflow."
    ),
]
GitlabMetrics = Annotated[
    Path | None, typer.Option("--gitlab-metrics", help="Write GitLab's metrics (OpenMetrics).")
]
GitlabQuality = Annotated[
    Path | None, typer.Option("--gitlab-codequality", help="Write GitLab's code quality JSON.")
]
InToto = Annotated[
    Path | None, typer.Option("--in-toto", help="Write an in-toto test-result statement.")
]


def exit_code(judgement: "Judgement", fail_on: FailOn) -> int:
    """0, 1 or 3."""
    if fail_on == "fail" and judgement.verdict == "inconclusive":
        return 0
    return EXIT_CODES[judgement.verdict]


def checked_fail_on(text: str) -> FailOn:
    """The choice of `--fail-on`.

    Raises:
        PlanError: there is no such choice.
    """
    if text not in ("fail", "inconclusive", "warning"):
        raise PlanError(f"--fail-on '{text}' is not fail, inconclusive or warning")
    return text  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Files:
    """What to write of a report and its judgement, and where; none is not written."""

    html: Path | None = None
    markdown: Path | None = None
    junit: Path | None = None
    sarif: Path | None = None
    gitlab_metrics: Path | None = None
    gitlab_codequality: Path | None = None
    in_toto: Path | None = None
    fail_on: FailOn = "inconclusive"

    def write(self, saved: "SavedReport", judgement: "Judgement | None") -> None:
        """Write them.

        Raises:
            PlanError: two of them are one file.
            PurifyAuditError: the disk refuses.
        """
        named = [p for f in fields(self) if isinstance(p := getattr(self, f.name), Path)]
        twice = [path for path in named if named.count(path) > 1 and str(path) != "-"]
        if twice:
            raise PlanError(f"{twice[0]}: two outputs are to be written there")
        if self.html is not None:
            from purify_audit.render.html.page import html_report

            page = html_report(saved.report, judgement, saved.samples(), saved.attacks())
            write_text(self.html, page)
        if self.markdown is not None:
            from purify_audit.render.markdown.comment import markdown_report

            write_text(self.markdown, markdown_report(saved.report, judgement))
        if self.gitlab_metrics is not None:
            from purify_audit.render.ci.gitlab import openmetrics

            write_text(self.gitlab_metrics, openmetrics(saved.report, judgement))
        if judgement is not None:
            for path, make in self._of_judgement(saved.report, judgement).items():
                write_text(path, make())

    def _of_judgement(
        self, report: "Report", judgement: "Judgement"
    ) -> dict[Path, Callable[[], str]]:
        from purify_audit.render.ci.gitlab import code_quality
        from purify_audit.render.ci.in_toto import test_result
        from purify_audit.render.ci.junit import junit_xml
        from purify_audit.render.ci.sarif import sarif_log

        seconds = None if report.run is None else report.run.seconds
        texts = {
            self.junit: lambda: junit_xml(judgement, seconds, self.fail_on),
            self.sarif: lambda: sarif_log(judgement, report, judgement.policy),
            self.gitlab_codequality: lambda: code_quality(judgement, judgement.policy),
            self.in_toto: lambda: test_result(report, judgement),
        }
        return {path: make for path, make in texts.items() if path is not None}


def tell_github(saved: "SavedReport", judgement: "Judgement") -> None:
    """Annotations on standard output; step summary and outputs where GitHub wants them."""
    from purify_audit.render.ci.github import annotations, outputs
    from purify_audit.render.markdown.comment import step_summary

    for line in annotations(judgement, judgement.policy):
        print(line)
    for name, text in (
        ("GITHUB_STEP_SUMMARY", step_summary(saved.report, judgement)),
        ("GITHUB_OUTPUT", outputs(judgement, saved.report, str(saved.path))),
    ):
        path = os.environ.get(name)
        if not path:
            continue
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise PurifyAuditError(f"{name}={path}: cannot be written: {error.strerror}") from None
