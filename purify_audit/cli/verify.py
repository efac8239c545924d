"""`purify-audit verify`: a report's cells computed again, or the whole attack."""

import math
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from purify_audit.attack_plan import PRESETS
from purify_audit.cli import keeping as k
from purify_audit.cli import options as o
from purify_audit.cli.app import EXIT_INCONCLUSIVE, app
from purify_audit.cli.measuring import Asked, carry_out, duration, finish, planned
from purify_audit.cli.output import must_be_writable
from purify_audit.cli.settling import Open, settle
from purify_audit.errors import PlanError
from purify_audit.settings import (
    ATTACK,
    AUDIT,
    ENGINE,
    SETTINGS,
    find_project,
    project_settings,
)
from purify_audit.shipped import shipped_purifier

if TYPE_CHECKING:
    import torch

    from purify_audit.audit import Outcome
    from purify_audit.report.schema import Report
    from purify_audit.subject import Subject

_FIXED = ("data", "ids", "t_star", "sampler", "seed", *ENGINE)
_ANSWERS = {"published": "as", "weights": "weights", "assume": "assume", "arguments": "arg"}
CHECKED = 4  # cells of a report that are computed again before its attack
_DEFAULT_REPORT = "report.json"


@app.command()
def verify(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint of any known format, an input transformation, or a report of"
            " `compress`. Default: the checkpoint of purify-audit.toml or [tool.purify-audit], else"
            " the shipped digits model."
        ),
    ] = None,
    purifier: o.Code = None,
    arguments: o.Argument = None,
    published: o.Preset = None,
    weights: o.Weights = None,
    assume: o.Assume = None,
    allow_pickle: o.AllowPickle = False,
    attack: Annotated[
        bool, typer.Option("--attack", help="Attack too; without it, recompute a report's cells.")
    ] = False,
    predict: Annotated[
        bool,
        typer.Option("--predict", help="Only foretell the attack, at about 1/50 of its cost."),
    ] = False,
    classifier: Annotated[
        str | None,
        typer.Option(help="The classifier to fool. Default: the shipped one if it fits."),
    ] = None,
    classifier_preset: o.ClassifierPreset = None,
    classifier_arguments: o.ClassifierArgument = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="smoke (PGD-10, 1 draw, 64 images; default), standard (PGD-100, 4 draws, 2"
            " restarts, 128 images) or paper (PGD-200, 20 draws, 512 images)."
        ),
    ] = None,
    optimiser: Annotated[
        str | None, typer.Option(help="pgd (default), apgd, or square (needs no gradient).")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Gradients of each restart.")] = None,
    draws: Annotated[int | None, typer.Option(min=1, help="Draws of the attack (EOT).")] = None,
    restarts: Annotated[
        int | None, typer.Option(min=1, help="The first from the image, others from random points.")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="margin (default), ce or dlr.")] = None,
    gradient: Annotated[
        str | None,
        typer.Option(
            help="exact (default); or, named as what they are, bpda (identity), surrogate (a"
            " shorter chain), none (finite differences, forward passes only)."
        ),
    ] = None,
    leave: Annotated[
        bool | None,
        typer.Option(
            "--leave/--no-leave",
            help="Attack an image no further once all aligned draws misjudge it.",
        ),
    ] = None,
    held_out: Annotated[
        int | None, typer.Option("--held-out", min=1, help="Draws that score, never seen before.")
    ] = None,
    data: o.Data = None,
    ids: o.Ids = None,
    images: Annotated[int | None, typer.Option(min=1, help="How many; see --preset.")] = None,
    norm: o.Norm = None,
    eps: o.Eps = None,
    t_star: o.TStar = None,
    sampler: o.Sampler = None,
    precision: o.Precision = None,
    compile: o.Compile = None,
    channels_last: o.ChannelsLast = None,
    seed: o.Seed = None,
    level: Annotated[
        float | None, typer.Option(help="Confidence level of the intervals. Default: 0.95.")
    ] = None,
    device: o.Device = "auto",
    microbatch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows at a time in the attack. Default: by the size of the images, and never more"
            " than images x draws.",
        ),
    ] = None,
    cells: Annotated[int, typer.Option(min=1, help="Cells of a report to recompute.")] = 16,
    dry_run: o.DryRun = False,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="End after this long with what there is.")
    ] = None,
    measure_anyway: o.MeasureAnyway = False,
    run_dir: k.RunDir = None,
    shard: k.ShardOption = None,
    out: o.Out = Path("verify.json"),
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Cross-check a compression rate: recompute its report, or attack with aligned randomness."""
    from purify_audit.loading import choose_device

    if purifier is not None:
        target = o.one_purifier(target, purifier)
    asked = settings(context.params, target)
    asked["reading"] = o.reading(
        preset=published,
        weights=weights,
        assume=assume,
        arguments=arguments,
        allow_pickle=allow_pickle,
    )
    asked["allow_pickle"] = allow_pickle
    asked["classifier_reading"] = o.reading(
        preset=classifier_preset, arguments=classifier_arguments, allow_pickle=allow_pickle
    )
    where = choose_device(str(asked.pop("device")))
    report = _report_path(target, asked, attack or predict)
    if predict:
        asked["predict_only"] = True
    if not (attack or predict):
        if report is None:
            raise PlanError(
                "nothing to verify: give a report of `compress`, or --attack or --predict"
            )
        return _recompute(report, cells, where, allow_pickle)
    must_be_writable(out)
    limit = math.inf if max_seconds is None else max_seconds
    keep = k.keeping(run_dir, shard, out)
    if report:
        subject, outcome = from_report(report, asked, where, 0 if dry_run else CHECKED)
        run = Asked(keep, out, (report, outcome), measure_anyway)
    else:
        subject, run = _planned(asked, where), Asked(keep, out, None, measure_anyway)
    return _attack(subject, run, How(dry_run, limit, as_json, quiet))


@dataclass(frozen=True, slots=True)
class How:
    """How to run, as asked on the command line."""

    dry_run: bool
    max_seconds: float
    as_json: bool
    quiet: bool


def settings(params: dict[str, Any], checkpoint: str | None) -> dict[str, Any]:
    """What was asked, and for what was not, what the project's own file says.

    Of the file, a report takes only what says how to attack: it brings its own subject.

    Raises:
        PlanError: the file cannot be used, or a setting contradicts the report.
    """
    given = {name: params[name] for name in SETTINGS if params.get(name) is not None}
    if checkpoint is not None:
        given["checkpoint"] = checkpoint
    elsewhere = project_settings(find_project(Path()))
    if given.get("device") == "auto":  # the option's default
        given["device"] = elsewhere.get("device", "auto")
    if str((elsewhere | given).get("checkpoint", "")).endswith(".json"):
        fixed = [name for name in given if name in _FIXED]
        fixed += [option for name, option in _ANSWERS.items() if params.get(name)]
        if fixed:
            told = fixed[0].replace("_", "-")
            raise PlanError(f"--{told} cannot be changed: the report fixes it")
        kept = ATTACK.keys() | {"checkpoint", "classifier", "preset"}
        elsewhere = {name: value for name, value in elsewhere.items() if name in kept}
    return elsewhere | given


def plan_settings(asked: dict[str, Any]) -> dict[str, Any]:
    """Fields of an audit plan with an attack, from settings by their option names."""
    preset = str(asked.get("preset", "smoke"))
    if preset not in PRESETS:
        raise PlanError(f"no preset '{preset}'; there are {', '.join(PRESETS)}")
    attack = PRESETS[preset]["attack"] | {n: asked[n] for n in ATTACK if n in asked}
    attack |= {n: asked[n] for n in ("predict_only",) if n in asked}
    audit = dict(PRESETS[preset]["audit"])
    fields = audit | {"preset_images": audit.pop("images"), "attack": attack}
    fields |= {
        n: asked[n] for n in AUDIT if n in asked and n not in ("eps", "ids", "sampler", "probes")
    }
    fields |= {n: asked[n] for n in ("reading", "classifier_reading") if n in asked}
    if "eps" in asked:
        eps = asked["eps"]
        fields["eps"] = o.radii(eps) if isinstance(eps, str) else _listed(eps)
    if "probes" in asked:
        fields["probes"] = o.probes([str(probe) for probe in asked["probes"]])
    fields |= o.engine_setting({n: asked.get(n) for n in ENGINE})
    return fields | o.id_range(asked.get("ids")) | o.sampler_setting(asked.get("sampler"))


def _listed(eps: object) -> list[object]:
    return list(eps) if isinstance(eps, list | tuple) else [eps]


def _report_path(target: str | None, asked: dict[str, Any], attack: bool) -> Path | None:
    """The report that is meant, if one is."""
    if target is None and not attack and Path(_DEFAULT_REPORT).is_file():
        return Path(_DEFAULT_REPORT)
    named = str(asked.get("checkpoint", ""))
    return Path(named) if named.endswith(".json") else None


def _recompute(path: Path, cells: int, where: "torch.device", allow_pickle: bool) -> None:
    """Compute a sample of a report's cells again, and tell."""
    from purify_audit.replay import check_trust, replay_report
    from purify_audit.report.schema import read_report
    from purify_audit.runtime import environment

    saved = read_report(path)
    check_trust(saved.plan, allow_pickle)
    replayed = replay_report(saved, path.parent, cells, where)
    different = [cell for cell in replayed if not cell.same]
    for cell in different:
        at = cell.address
        print(
            f"image {at.image}, draw {at.draw}, probe {saved.plan.probes[at.probe].kind},"
            f" direction {at.direction}: differs by {cell.largest_difference:.3g}"
        )
    print(
        f"{len(replayed) - len(different)} of {len(replayed)} cells reproduce, bit for bit"
        + (" (`--attack` cross-checks what they mean)" if not different else "")
    )
    if different:
        for key, now in environment(where, saved.plan.engine).items():
            if saved.environment.get(key) != now:
                print(f"  {key}: {saved.environment.get(key)} then, {now} now")
        raise typer.Exit(EXIT_INCONCLUSIVE)


def _planned(asked: dict[str, Any], where: "torch.device") -> "Subject":
    from purify_audit.subject import prepare

    if "checkpoint" not in asked:
        asked["checkpoint"] = shipped_purifier()
    return prepare(plan_settings(asked), where)


def from_report(
    path: Path, asked: dict[str, Any], where: "torch.device", cells: int
) -> "tuple[Subject, Outcome]":
    """The subject of a report with an attack in its plan, and what the report found.

    So many of its cells are computed again first.
    """
    from purify_audit.attack_plan import AttackPlan
    from purify_audit.replay import check_trust, stored_subject
    from purify_audit.report.schema import read_report
    from purify_audit.subject import attack_plan

    saved = read_report(path)
    check_trust(saved.plan, bool(asked.get("allow_pickle")))
    wanted = plan_settings(asked)
    plan = attack_plan(saved.plan, wanted, saved.data.image_shape, where)
    assert isinstance(plan.attack, AttackPlan)
    subject = stored_subject(saved, path.parent, where, plan)
    most = int(asked.get("images", wanted["preset_images"]))
    few = subject.images.select(list(range(min(most, len(subject.images)))))
    return replace(subject, images=few), checked(saved, path, where, cells)


def checked(saved: "Report", path: Path, where: "torch.device", cells: int) -> "Outcome":
    """What a report found, with a finding if any of so many of its cells do not come again."""
    from purify_audit.audit import Outcome
    from purify_audit.findings import finding
    from purify_audit.replay import replay_report
    from purify_audit.report.rows import stored_samples

    different = [c for c in replay_report(saved, path.parent, cells, where) if not c.same]
    if different:
        gap = max(cell.largest_difference for cell in different)
        told = f"{len(different)} of {cells} cells differ, by up to {gap:.3g}."
        found = (*saved.findings, finding("PA313", told, {"largest_difference": gap}))
        saved = saved.model_copy(update={"findings": found})
    return Outcome(saved, stored_samples(saved, path.parent))


def _attack(subject: "Subject", run: Asked, how: How) -> None:
    from purify_audit.attack_cost import seconds_per_evaluation
    from purify_audit.progress import Reporter

    started = datetime.now().astimezone().isoformat(timespec="seconds")
    console = Console(stderr=True)
    left = Open(compresses=run.basis is None, run_dir=run.keep.folder)
    subject, settled = settle(subject, left, console)
    run = replace(run, settled=settled)
    total = planned(subject, None if run.basis is None else run.basis[1])
    if how.dry_run or not how.quiet:
        seconds = total * seconds_per_evaluation(subject)
        told = f"{total:,} network evaluations, about {duration(seconds)}"
        (print if how.dry_run else partial(console.print, highlight=False))(told)
    if how.dry_run:
        return
    reporter = Reporter(console, total, how.quiet, how.max_seconds)
    finish(carry_out(subject, reporter, run), reporter, run, started, how.as_json)
