"""`purify-audit attack`, `predict`, `reproduce`, and `verify`, which does any of the three."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from purify_audit.cli import options as o
from purify_audit.cli.app import EXIT_INCONCLUSIVE, command
from purify_audit.cli.execute import Request, execute
from purify_audit.cli.output import must_be_writable
from purify_audit.cli.run_folder import run_folder
from purify_audit.core.errors import PlanError
from purify_audit.models.shipped import shipped_purifier
from purify_audit.spec.project_file import (
    ATTACK,
    ENGINE,
    SETTINGS,
    find_project,
    project_settings,
)

if TYPE_CHECKING:
    import torch

    from purify_audit.audit.subject import Subject

_FIXED = ("data", "ids", "t_star", "sampler", "seed", *ENGINE)
_ANSWERS = {"published": "as", "weights": "weights", "assume": "assume", "arguments": "arg"}
_DEFAULT_REPORT = Path("report.json")

Target = Annotated[
    str | None,
    typer.Argument(
        help="Checkpoint of any known format, input transformation, or report of `compress`."
        " Default: the checkpoint of purify-audit.toml or [tool.purify-audit], else the shipped"
        " digits model."
    ),
]
Cells = Annotated[int, typer.Option(min=1, help="Cells of the report to compute again.")]
Level = Annotated[
    float | None, typer.Option(help="Confidence level of the intervals. Default: 0.95.")
]


@dataclass(frozen=True, slots=True)
class Job:
    """Attack."""

    purifier: o.PurifierOptions
    classifier: o.ClassifierOptions
    images: o.ImageOptions
    threat: o.ThreatOptions
    attack_options: o.AttackOptions
    engine: o.EngineOptions
    run: o.RunOptions
    output: o.OutputOptions
    level: Level = None
    out: o.Out = Path("verify.json")

    def given(self, target: str | None) -> dict[str, Any]:
        """The settings that were given, by their names in project files."""
        values: dict[str, Any] = {
            "checkpoint": target,
            "classifier": self.classifier.classifier,
            **dataclasses.asdict(self.images),
            **dataclasses.asdict(self.threat),
            "t_star": self.purifier.t_star,
            "sampler": self.purifier.sampler,
            "seed": self.engine.seed,
            "level": self.level,
            "device": self.engine.device,
        }
        given = {name: value for name, value in values.items() if value is not None}
        return given | self.attack_options.given() | self.engine.given()


@command()
def attack(job: Job, target: Target = None) -> None:
    """Attack with aligned randomness: robust accuracy, beside the compression rate."""
    _measure(job, target, predict_only=False)


@command()
def predict(job: Job, target: Target = None) -> None:
    """Predict aligned robust accuracy by a short transfer attack: an upper bound."""
    _measure(job, target, predict_only=True)


@command()
def reproduce(
    report: Annotated[Path, typer.Argument(help="Report of `compress` or `attack`.")] = (
        _DEFAULT_REPORT
    ),
    cells: Cells = 16,
    device: o.Device = "auto",
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Recompute a sample of a report's cells, and report those that differ in any bit."""
    from purify_audit.models.runner import choose_device

    _reproduce(report, cells, choose_device(device), allow_pickle)


@command()
def verify(
    job: Job,
    target: Target = None,
    attack: Annotated[bool, typer.Option("--attack", help="The same as `attack`.")] = False,
    predict: Annotated[bool, typer.Option("--predict", help="The same as `predict`.")] = False,
    cells: Cells = 16,
) -> None:
    """Cross-check a compression rate: recompute its report, or attack with aligned randomness."""
    if attack or predict:
        return _measure(job, target, predict_only=predict)
    settings = _settings(job, _named(job, target))
    report = _report_path(settings)
    if report is None and target is None and _DEFAULT_REPORT.is_file():
        report = _DEFAULT_REPORT
    if report is None:
        raise PlanError("nothing to verify: give a report of `compress`, or --attack or --predict")

    from purify_audit.models.runner import choose_device

    where = choose_device(str(settings["device"]))
    return _reproduce(report, cells, where, job.purifier.allow_pickle)


def _named(job: Job, target: str | None) -> str | None:
    return target if job.purifier.purifier is None else job.purifier.named(target)


def _settings(job: Job, checkpoint: str | None) -> dict[str, Any]:
    """The options given, and for the others, the settings of the project's file.

    Of the file, a report takes only the settings of the attack: it names its own subject.

    Raises:
        PlanError: the file cannot be used, or a setting contradicts the report.
    """
    given = {name: value for name, value in job.given(checkpoint).items() if name in SETTINGS}
    project = project_settings(find_project(Path()))
    if given.get("device") == "auto":  # the option's default
        given["device"] = project.get("device", "auto")
    if _report_path(project | given) is not None:
        fixed = [name for name in given if name in _FIXED]
        fixed += [option for name, option in _ANSWERS.items() if getattr(job.purifier, name)]
        if fixed:
            option = fixed[0].replace("_", "-")
            raise PlanError(f"--{option} cannot be changed: the report fixes it")
        kept = ATTACK.keys() | {"checkpoint", "classifier", "preset"}
        project = {name: value for name, value in project.items() if name in kept}
    settings = project | given
    allow_pickle = job.purifier.allow_pickle
    settings["load_options"] = job.purifier.load_options()
    settings["allow_pickle"] = allow_pickle
    settings["classifier_load_options"] = job.classifier.load_options(allow_pickle=allow_pickle)
    return settings


def _report_path(settings: dict[str, Any]) -> Path | None:
    """The report that is meant, if one is."""
    named = str(settings.get("checkpoint", ""))
    return Path(named) if named.endswith(".json") else None


def _measure(job: Job, target: str | None, *, predict_only: bool) -> None:
    """Attack or predict, a checkpoint or the subject of a report."""
    settings = _settings(job, _named(job, target))
    report = _report_path(settings)
    if predict_only:
        settings["predict_only"] = True

    from purify_audit.audit.from_report import CHECKED_CELLS, from_report
    from purify_audit.audit.tuning.tune import OpenSettings
    from purify_audit.models.runner import choose_device

    where = choose_device(str(settings.pop("device")))
    must_be_writable(job.out)
    folder, basis = run_folder(job.run.run_dir, job.run.shard, job.out), None
    if report is None:
        subject = _prepared(settings, where)
    else:
        cells = 0 if job.run.dry_run else CHECKED_CELLS
        subject, basis = from_report(report, settings, where, cells)
    left_open = OpenSettings(compression=basis is None, run_dir=folder.path)
    execute(subject, Request(job.out, folder, job.run, job.output, basis), left_open)


def _prepared(settings: dict[str, Any], where: "torch.device") -> "Subject":
    from purify_audit.audit.defaults import plan_settings
    from purify_audit.audit.subject import prepare

    if "checkpoint" not in settings:
        settings["checkpoint"] = shipped_purifier()
    return prepare(plan_settings(settings), where)


def _reproduce(path: Path, cells: int, where: "torch.device", allow_pickle: bool) -> None:
    """Compute a sample of a report's cells again, and print which differ.

    Raises:
        Exit: a cell differs.
    """
    from purify_audit.audit.replay import reproduce as run

    reproduction = run(path, cells, where, allow_pickle=allow_pickle)
    for cell in reproduction.different:
        at = cell.address
        probe = reproduction.report.plan.probes[at.probe].kind
        print(
            f"image {at.image}, draw {at.draw}, probe {probe},"
            f" direction {at.direction}: differs by {cell.largest_difference:.3g}"
        )
    same = len(reproduction.cells) - len(reproduction.different)
    print(
        f"{same} of {len(reproduction.cells)} cells reproduce, bit for bit"
        + (" (`attack` cross-checks what they mean)" if not reproduction.different else "")
    )
    if reproduction.different:
        print_environment(reproduction.environment)
        raise typer.Exit(EXIT_INCONCLUSIVE)


def print_environment(differences: Mapping[str, tuple[object, object]]) -> None:
    """Print what differs from where a report was made."""
    for name, (then, now) in differences.items():
        print(f"  {name}: {then} then, {now} now")
