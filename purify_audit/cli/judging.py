"""What `gate`, `report` and `run` share: judging a saved report, and writing what is made of it."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from purify_audit.errors import PlanError, PurifyAuditError, ReportError
from purify_audit.gate.judgement import EXIT_CODES, FailOn

if TYPE_CHECKING:
    from purify_audit.attack_samples import AttackSamples
    from purify_audit.gate.baseline import Baseline
    from purify_audit.gate.judgement import Judgement
    from purify_audit.gate.policy import PolicyFile
    from purify_audit.report.schema import Report
    from purify_audit.samples import CompressionSamples

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
        help="For regression rules: a file of `baseline save`, or a report with its rows beside"
        " it. Default: the policy's, if it names one."
    ),
]
FailOnOption = Annotated[
    str,
    typer.Option(
        "--fail-on",
        help="fail: only a FAIL ends with another code than 0; inconclusive (default): that too;"
        " warning: rules of severity warning count like others.",
    ),
]
ExitZero = Annotated[
    bool, typer.Option("--exit-zero", help="End with 0 whatever was decided; bad usage is still 2.")
]
Html = Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")]
Markdown = Annotated[
    Path | None, typer.Option(help="Write Markdown that fits a pull request's comment.")
]
Junit = Annotated[Path | None, typer.Option(help="Write JUnit XML, one test case a rule.")]
Sarif = Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0.")]
Github = Annotated[
    bool,
    typer.Option("--github", help="Annotations, step summary and outputs of a GitHub workflow."),
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


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved report and where it lies."""

    report: "Report"
    path: Path

    def samples(self) -> "CompressionSamples | None":
        """Its rows; none where nothing was measured or they no longer lie beside it."""
        from purify_audit.report.rows import stored_samples

        try:
            return stored_samples(self.report, self.path.parent)
        except ReportError:
            return None

    def attacks(self) -> "AttackSamples | None":
        """Its attacked images; none where nothing was attacked or they are gone."""
        from purify_audit.report.rows import stored_attacks

        try:
            return stored_attacks(self.report, self.path.parent)
        except ReportError:
            return None


def open_report(path: Path, level: float | None = None) -> Saved:
    """A saved report, with its intervals at another level if one is asked for.

    Intervals that do not follow from what the report holds (of correlations, and of decisions that
    random directions flip) are then left out.

    Raises:
        InputError: it cannot be read, or the level is none.
    """
    from purify_audit.report.schema import read_report

    report = read_report(path)
    if level is not None:
        from purify_audit.report.relevel import at_level

        if not 0.5 < level < 1:
            raise PlanError(f"--level {level:g} is not between 0.5 and 1")
        report = at_level(report, level)
    return Saved(report, path)


def opened_baseline(policy: "PolicyFile", named: Path | None) -> "Baseline | None":
    """The baseline that was named, else the policy's; none where no rule needs one.

    Raises:
        ReportError: it cannot be read.
    """
    path = named
    if path is None and policy.policy.baseline is not None:
        path = policy.file.path.parent / policy.policy.baseline
    if path is None or not any(rule.regression for rule in policy.policy.rule):
        return None
    from purify_audit.gate.baseline import open_baseline

    return open_baseline(path)


def judged(
    saved: Saved, policy: "PolicyFile", old: "Baseline | None", fail_on: FailOn = "inconclusive"
) -> "Judgement":
    """The judgement of a saved report.

    Raises:
        ReportError: the report's rows are gone, or it cannot be compared with the baseline.
    """
    from purify_audit.gate.judge import judge

    difference = None
    if old is not None:
        from purify_audit.gate.baseline import compare, values_of

        difference = compare(values_of(saved.report, saved.path.parent), old)
    found = judge(saved.report, policy, date.today(), difference, fail_on == "warning")
    return found.model_copy(update={"baseline_sha256": None if old is None else old.sha256})


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

    def write(self, saved: Saved, judgement: "Judgement | None") -> None:
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
            from purify_audit.render.html import html_report

            page = html_report(saved.report, judgement, saved.samples(), saved.attacks())
            write_text(self.html, page)
        if self.markdown is not None:
            from purify_audit.render.markdown import markdown_report

            write_text(self.markdown, markdown_report(saved.report, judgement))
        if self.gitlab_metrics is not None:
            from purify_audit.render.gitlab import openmetrics

            write_text(self.gitlab_metrics, openmetrics(saved.report, judgement))
        if judgement is not None:
            for path, make in self._of_judgement(saved.report, judgement).items():
                write_text(path, make())

    def _of_judgement(
        self, report: "Report", judgement: "Judgement"
    ) -> dict[Path, Callable[[], str]]:
        from purify_audit.render.attestation import test_result
        from purify_audit.render.gitlab import code_quality
        from purify_audit.render.junit import junit_xml
        from purify_audit.render.sarif import sarif_log

        seconds = None if report.run is None else report.run.seconds
        made = {
            self.junit: lambda: junit_xml(judgement, seconds, self.fail_on),
            self.sarif: lambda: sarif_log(judgement, report, judgement.policy),
            self.gitlab_codequality: lambda: code_quality(judgement, judgement.policy),
            self.in_toto: lambda: test_result(report, judgement),
        }
        return {path: make for path, make in made.items() if path is not None}


def tell_github(saved: Saved, judgement: "Judgement") -> None:
    """Annotations on standard output; step summary and outputs where GitHub wants them."""
    from purify_audit.render.github import annotations, outputs
    from purify_audit.render.markdown import step_summary

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


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all; `-` is standard output.

    Raises:
        PurifyAuditError: the disk refuses.
    """
    if str(path) == "-":
        sys.stdout.write(text)
        return
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        raise PurifyAuditError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        scratch.unlink(missing_ok=True)
