"""`purify-audit sweep`: one purifier over several settings."""

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from purify_audit.cli import options as o
from purify_audit.cli.app import EXIT_INCONCLUSIVE, command
from purify_audit.cli.execute import duration, now, run_record
from purify_audit.cli.output import must_be_writable
from purify_audit.core.errors import PlanError
from purify_audit.spec import from_text

if TYPE_CHECKING:
    from purify_audit.audit.subject import Subject
    from purify_audit.cli.progress import Reporter
    from purify_audit.report.curve import Curve, Setting


@command()
def sweep(
    images: o.ImageOptions,
    engine: o.EngineOptions,
    checkpoint: Annotated[str, typer.Argument(help="Native checkpoint of a diffusion model.")],
    t_star: Annotated[
        str | None, typer.Option("--t-star", help="Values of t*, e.g. 20,40,60.")
    ] = None,
    sampler: Annotated[
        list[str] | None, typer.Option(help="Sampler, NAME[:key=value,…]; repeatable.")
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Radii, each a run of its own.")] = None,
    norm: Annotated[str | None, typer.Option(help="linf (default), l2 or l1.")] = None,
    attack: Annotated[
        bool, typer.Option("--attack/--no-attack", help="Attack too, or measure compression only.")
    ] = True,
    preset: Annotated[str, typer.Option(help="smoke, standard or paper; see `attack`.")] = "smoke",
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps of the attack.")] = None,
    classifier: Annotated[
        str | None,
        typer.Option(help="Classifier. Default: with an attack, the shipped one if it fits."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print estimated cost and time, then exit.")
    ] = False,
    max_seconds: o.MaxSeconds = None,
    out: Annotated[Path, typer.Option(help="Folder of the reports and of sweep.json.")] = Path(
        "sweep"
    ),
    quiet: o.Quiet = False,
) -> None:
    """Measure compression, and attack, at every combination of settings; one report each."""
    values: dict[str, Any] = {
        "checkpoint": checkpoint,
        "preset": preset,
        **dataclasses.asdict(images),
        "classifier": classifier,
        "steps": steps,
        "norm": norm,
        "seed": engine.seed,
    }
    given = {name: value for name, value in values.items() if value is not None}

    from purify_audit.audit import sweep as run
    from purify_audit.audit.cost import planned_evaluations
    from purify_audit.audit.defaults import plan_settings
    from purify_audit.cli.progress import Reporter
    from purify_audit.models.runner import choose_device
    from purify_audit.render.terminal.curve import show_curve

    fields = plan_settings(given | engine.given())
    if not attack:
        del fields["attack"]
    points = run.settings(_whole(t_star), tuple(sampler or ()), from_text.radii(eps) or ())
    loaded = run.subjects(fields, points, choose_device(engine.device))
    total, console = sum(planned_evaluations(s) for _, s in loaded), Console(stderr=True)
    plan = f"{len(points)} settings, {total:,} network evaluations"
    if attack and (dry_run or not quiet):
        plan += _time(loaded[0][1], total)
    if dry_run:
        return print(plan)
    _make_folder(out)
    if not quiet:
        console.print(plan, highlight=False)
    limit = math.inf if max_seconds is None else max_seconds
    reporter = Reporter(console, total, quiet, limit)
    curve, unsure = _run(loaded, reporter, out)
    (out / "sweep.json").write_text(
        json.dumps([p.model_dump() for p in curve], indent=1) + "\n", encoding="utf-8"
    )
    show_curve(Console(), curve)
    print(f"\n{out}/sweep.json  ({reporter.seconds:.0f} s, {reporter.done:,} network evaluations)")
    if len(curve) < len(points) or unsure:
        raise typer.Exit(128 + reporter.stop_signal if reporter.stop_signal else EXIT_INCONCLUSIVE)


def _run(
    loaded: "list[tuple[Setting, Subject]]", reporter: "Reporter", out: Path
) -> "tuple[list[Curve], bool]":
    """Audit every point; whether any of them is partial or has errors."""
    from purify_audit.audit.allocator import hold_freed_memory
    from purify_audit.audit.save import save_result
    from purify_audit.audit.sweep import run_sweep
    from purify_audit.report.curve import curve_point

    hold_freed_memory()
    curve, unsure, started = list["Curve"](), False, now()
    with reporter.running():
        for point, result in run_sweep(loaded, reporter.progress):
            path = out / f"{point.title}.json"
            saved = save_result(path, result, run_record(reporter, started))
            unsure = unsure or saved.report.status == "partial" or saved.has_errors
            curve.append(curve_point(point, path.name, saved.report))
    return curve, unsure


def _time(subject: "Subject", evaluations: int) -> str:
    from purify_audit.audit.cost import seconds_per_evaluation

    return f", about {duration(evaluations * seconds_per_evaluation(subject))}"


def _make_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise PlanError(f"{out}: is a file; the reports need a folder")
    out.mkdir(parents=True, exist_ok=True)
    must_be_writable(out / "sweep.json")


def _whole(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise PlanError(f"--t-star '{text}' is not a list of whole numbers such as 20,40") from None
