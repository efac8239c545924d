"""`purify-audit run`: measure what a policy needs, report, and judge. One command for CI."""

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from purify_audit.cli import judging as j
from purify_audit.cli import options as o
from purify_audit.cli.app import command
from purify_audit.cli.execute import now, run_record, teller
from purify_audit.cli.output import must_be_writable, write_text
from purify_audit.core.errors import PlanError, PurifyAuditError
from purify_audit.spec import from_text

if TYPE_CHECKING:
    from purify_audit.audit.subject import Subject
    from purify_audit.gate.baseline import Baseline
    from purify_audit.gate.policy import PolicyFile
    from purify_audit.report.saved import SavedReport

_REPORT, _JUDGEMENT = "report.json", "judgement.json"
_FILES = {
    "html": "report.html",
    "markdown": "report.md",
    "junit": "junit.xml",
    "sarif": "purify-audit.sarif",
    "gitlab_metrics": "metrics.txt",
    "gitlab_codequality": "codequality.json",
    "in_toto": "test-result.json",
}


@command()
def run(
    checkpoint: Annotated[
        str | None, typer.Argument(help="What to audit. Default: the policy file's checkpoint.")
    ] = None,
    purifier: o.Code = None,
    arguments: o.Argument = None,
    allow_pickle: o.AllowPickle = False,
    policy: j.Policy = None,
    baseline: j.BaselineFile = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Most images to use. Default: the policy file's, or 64."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Use all images, even when every rule is decided.")
    ] = False,
    device: o.Device = "auto",
    max_seconds: o.MaxSeconds = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            help="Store finished work here; after an interruption, repeat the command.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the report, its rows and all files made from them.")
    ] = Path("audit"),
    github: j.Github = False,
    fail_on: j.FailOnOption = "inconclusive",
    exit_zero: j.ExitZero = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure what a policy needs, write a report, and judge it: PASS, FAIL or INCONCLUSIVE.

    Sampling stops as soon as every rule is decided.
    """
    from purify_audit.gate.policy import read_policy
    from purify_audit.gate.saved import judge_saved, policy_baseline
    from purify_audit.render.terminal.judgement import show_judgement

    when = j.checked_fail_on(fail_on)
    rules = read_policy(policy, Path())
    options = dict(rules.settings)
    options |= {} if images is None else {"images": images}
    if checkpoint is not None or purifier is not None:
        options["checkpoint"] = o.one_purifier(checkpoint, purifier)
    options["load_options"] = from_text.load_options(arguments=arguments, allow_pickle=allow_pickle)
    old = policy_baseline(rules, baseline)
    _make_folder(out)
    limit = math.inf if max_seconds is None else max_seconds
    request = _Request(out, old, device, limit, full, quiet, run_dir)
    try:
        saved, code = _measured(rules, options, request)
        judgement = judge_saved(saved, rules, old, when)
    except Exception as error:
        from purify_audit.render.ci.junit import junit_error

        with suppress(PurifyAuditError):
            write_text(out / _FILES["junit"], junit_error(str(error)))
        raise
    show_judgement(Console(), judgement)
    write_text(out / _JUDGEMENT, judgement.model_dump_json(indent=1) + "\n")
    files = {name: out / file for name, file in _FILES.items()}
    j.Files(**files, fail_on=when).write(saved, judgement)
    print(f"{out / _FILES['html']}")
    if github:
        j.tell_github(saved, judgement)
    raise typer.Exit(code or (0 if exit_zero else j.exit_code(judgement, when)))


@dataclass(frozen=True, slots=True)
class _Request:
    """How to measure, as the options say."""

    out: Path
    baseline: "Baseline | None"
    device: str
    max_seconds: float
    full: bool
    quiet: bool
    run_dir: Path | None


def _make_folder(out: Path) -> None:
    """Make the folder of a run, and delete what an earlier run left of these files.

    Raises:
        PlanError: it cannot be made or emptied, or nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (_REPORT, _JUDGEMENT, *_FILES.values()):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise PlanError(f"{error.filename}: cannot be written: {error.strerror}") from None
    must_be_writable(out / _REPORT)


def _measured(
    rules: "PolicyFile", options: dict[str, Any], request: _Request
) -> "tuple[SavedReport, int]":
    """The report, written; and the exit code of an interruption, else 0."""
    from purify_audit.audit.cost import planned_evaluations
    from purify_audit.audit.policy_run import decided_by
    from purify_audit.audit.result import never_decided
    from purify_audit.audit.run import RunFolder, run_in_folder
    from purify_audit.audit.save import save_result
    from purify_audit.audit.tuning.tune import OpenSettings, tune
    from purify_audit.cli.progress import Reporter
    from purify_audit.report.saved import SavedReport

    started, console = now(), Console(stderr=True)
    subject = _subject(rules, options, request)
    left_open = OpenSettings(run_dir=request.run_dir)
    subject, tuning = tune(subject, left_open, teller(console, quiet=False))
    _check_baseline(subject, request.baseline)
    reporter = Reporter(console, planned_evaluations(subject), request.quiet, request.max_seconds)
    with reporter.running():
        result = run_in_folder(
            subject,
            reporter.progress,
            RunFolder(request.run_dir),
            decided=never_decided if request.full else decided_by(rules, request.baseline),
            tuning=tuning,
        )
    assert result is not None, "a run of one part makes its report"
    path = request.out / _REPORT
    result = save_result(path, result, run_record(reporter, started))
    stop = reporter.stop_signal
    return SavedReport(result.report, path), 128 + stop if stop else 0


def _subject(rules: "PolicyFile", options: dict[str, Any], request: _Request) -> "Subject":
    """What is audited, with the micro-batches of the baseline."""
    from purify_audit.audit.policy_run import prepare_for_policy
    from purify_audit.audit.tuning.tune import like
    from purify_audit.models.runner import choose_device

    named = options.pop("device", request.device)
    device = choose_device(str(named if request.device == "auto" else request.device))
    subject = prepare_for_policy(rules, options, device, all_images=request.full)
    if request.baseline is None:
        return subject
    return like(subject, request.baseline.report.plan, options)


def _check_baseline(subject: "Subject", baseline: "Baseline | None") -> None:
    """Refuse, before anything is computed, a plan that the baseline cannot be compared with.

    Raises:
        ReportError: it cannot.
    """
    if baseline is None:
        return
    from purify_audit.gate.baseline import check_plan
    from purify_audit.models.runner import environment

    check_plan(subject.plan, environment(subject.device, subject.plan.engine), baseline)
