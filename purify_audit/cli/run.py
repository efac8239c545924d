"""`purify-audit run`: measure what a policy needs, report, and judge. One command for CI."""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from purify_audit.cli import judging as j
from purify_audit.cli import options as o
from purify_audit.cli.allocator import hold_freed_memory
from purify_audit.cli.app import app
from purify_audit.cli.keeping import Keeping, manifest_of
from purify_audit.cli.measuring import Enough, kept_settled, measure, never, planned
from purify_audit.cli.output import Made, must_be_writable, write
from purify_audit.cli.settling import Open, like, settle
from purify_audit.cli.verify import plan_settings
from purify_audit.errors import PlanError, PurifyAuditError
from purify_audit.shard import Shard
from purify_audit.shipped import shipped_classifier

if TYPE_CHECKING:
    import torch

    from purify_audit.gate.baseline import Baseline
    from purify_audit.gate.policy import PolicyFile
    from purify_audit.subject import Subject

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


@app.command()
def run(
    checkpoint: Annotated[
        str | None, typer.Argument(help="What to audit. Default: the policy file's checkpoint.")
    ] = None,
    purifier: o.Code = None,
    arguments: o.Argument = None,
    policy: j.Policy = None,
    baseline: j.BaselineFile = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the report, its rows and everything made of them.")
    ] = Path("audit"),
    images: Annotated[
        int | None, typer.Option(min=1, help="How many at most. Default: the policy file's, or 64.")
    ] = None,
    device: o.Device = "auto",
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="End after this long with what there is.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Use all images, also when every rule is decided.")
    ] = False,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir", help="Keep finished work here: after an interruption, type the same again."
        ),
    ] = None,
    allow_pickle: o.AllowPickle = False,
    github: j.Github = False,
    fail_on: j.FailOnOption = "inconclusive",
    exit_zero: j.ExitZero = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure what a policy needs, write a report, and judge it: PASS, FAIL or INCONCLUSIVE.

    Sampling stops as soon as every rule is decided.
    """
    from purify_audit.gate.policy import read_policy

    when = j.checked_fail_on(fail_on)
    rules = read_policy(policy, Path())
    asked = dict(rules.settings)
    asked |= {} if images is None else {"images": images}
    if checkpoint is not None or purifier is not None:
        asked["checkpoint"] = o.one_purifier(checkpoint, purifier)
    asked["reading"] = o.reading(arguments=arguments, allow_pickle=allow_pickle)
    old = j.opened_baseline(rules, baseline)
    _make_folder(out)
    limit = math.inf if max_seconds is None else max_seconds
    try:
        made, code = _measured(rules, asked, Asked(out, old, device, limit, full, quiet, run_dir))
        judgement = j.judged(made, rules, old, when)
    except Exception as error:
        from purify_audit.render.junit import junit_error

        with suppress(PurifyAuditError):
            j.write_text(out / _FILES["junit"], junit_error(str(error)))
        raise
    from purify_audit.render.console import show_judgement

    show_judgement(Console(), judgement)
    j.write_text(out / _JUDGEMENT, judgement.model_dump_json(indent=1) + "\n")
    files = {name: out / file for name, file in _FILES.items()}
    j.Files(**files, fail_on=when).write(made, judgement)
    print(f"{out / _FILES['html']}")
    if github:
        j.tell_github(made, judgement)
    raise typer.Exit(code or (0 if exit_zero else j.exit_code(judgement, when)))


@dataclass(frozen=True, slots=True)
class Asked:
    """How to measure, as asked on the command line."""

    out: Path
    old: "Baseline | None"
    device: str
    max_seconds: float
    full: bool
    quiet: bool
    run_dir: Path | None


def _make_folder(out: Path) -> None:
    """Make the folder of a run, without what an earlier run left of these files.

    Raises:
        PlanError: it cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (_REPORT, _JUDGEMENT, *_FILES.values()):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise PlanError(f"{error.filename}: cannot be written: {error.strerror}") from None
    must_be_writable(out / _REPORT)


def _measured(rules: "PolicyFile", asked: dict[str, Any], how: Asked) -> tuple[j.Saved, int]:
    """The report, written; and the exit code of an interruption, else 0."""
    from purify_audit.loading import choose_device
    from purify_audit.progress import Reporter

    hold_freed_memory()
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    where = asked.pop("device", how.device) if how.device == "auto" else how.device
    console = Console(stderr=True)
    subject = planned_subject(rules, asked, choose_device(str(where)), how.full)
    if how.old is not None:
        subject = like(subject, how.old.report.plan, asked)
    subject, settled = settle(subject, Open(run_dir=how.run_dir), console)
    if how.old is not None:
        from purify_audit.gate.baseline import check_plan
        from purify_audit.runtime import environment

        here = environment(subject.device, subject.plan.engine)
        check_plan(subject.plan, here, how.old)
    reporter = Reporter(console, planned(subject), how.quiet, how.max_seconds)
    enough = never if how.full else _decided(rules, how.old)
    keep = Keeping(how.run_dir, Shard(), alone=False)
    with keep.open(manifest_of(subject, None, False)) as store, reporter.running():
        settled = kept_settled(store, settled)
        made = measure(subject, reporter, enough=enough, store=store)
    path = how.out / _REPORT
    written = write(path, replace(made, settled=settled), reporter, started)
    stop = reporter.stop_signal
    return j.Saved(written.report, path), 128 + stop if stop else 0


def planned_subject(
    rules: "PolicyFile", asked: dict[str, Any], device: "torch.device", full: bool = False
) -> "Subject":
    """The subject of an audit that can decide every rule of a policy.

    Args:
        rules: the policy.
        asked: settings by their option names, the policy file's and others.
        device: where it will run.
        full: whether it will use all images.

    Raises:
        InputError: the settings cannot be used, or leave a rule that could not be decided.
    """
    from purify_audit.gate.needs import check_answerable, settings_for, stage_needed
    from purify_audit.subject import prepare

    if "checkpoint" not in asked:
        raise PlanError("name a checkpoint, on the command line or in the policy file")
    stage = stage_needed(rules.policy)
    fields = plan_settings(settings_for(rules.policy, asked))
    if stage == "compress":
        attack = fields.pop("attack")  # then these settings have nothing else to be about
        fields |= {name: attack[name] for name in ("draws", "microbatch") if name in asked}
    elif stage == "predict":
        fields["attack"]["predict_only"] = True
    if not full:
        fields["first_look"] = max(8, *(rules.policy.min_images_of(r) for r in rules.policy.rule))
    subject = prepare(fields, device)
    if subject.plan.classifier is None and any(
        "accuracy" in str(r.metric) for r in rules.policy.rule
    ):
        fields["classifier"] = shipped_classifier(subject.images.image_shape)
        subject = prepare(fields, device)
    check_answerable(rules.policy, subject.plan)
    return subject


def _decided(rules: "PolicyFile", old: "Baseline | None") -> Enough:
    """Whether what there is decides every rule on it."""

    def enough(made: Made) -> bool:
        from purify_audit.gate.baseline import Baseline, columns, compare
        from purify_audit.gate.judge import judge

        report, difference = made.report, None
        if old is not None and made.samples is not None:
            new = Baseline(report, columns(report.plan, made.samples, made.attacks))
            difference = compare(new, old)
        judgement = judge(report, rules, date.today(), difference)
        attacked = made.attacks is not None
        mine = {r.id: r for r in rules.policy.rule if (r.stage != "compress") == attacked}
        late = (code for rule in mine.values() for code in rule.findings if code[:3] != "PA1")
        if any(late):  # not preflight's: what is not found among few images may be among more
            return False
        return all(r.decision != "inconclusive" for r in judgement.rules if r.rule in mine)

    return enough
