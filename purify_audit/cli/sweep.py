"""`purify-audit sweep`: the curve of compression, anchors and robustness over settings."""

import json
import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from purify_audit.cli import options as o
from purify_audit.cli.allocator import hold_freed_memory
from purify_audit.cli.app import EXIT_INCONCLUSIVE, app
from purify_audit.cli.measuring import duration
from purify_audit.cli.output import Made, must_be_writable, write
from purify_audit.cli.verify import plan_settings
from purify_audit.errors import PlanError

if TYPE_CHECKING:
    from purify_audit.report.schema import Report


@app.command()
def sweep(
    checkpoint: Annotated[str, typer.Argument(help="A native checkpoint of a diffusion model.")],
    t_star: Annotated[
        str | None, typer.Option("--t-star", help="Values of t*, such as 20,40,60.")
    ] = None,
    sampler: Annotated[
        list[str] | None, typer.Option(help="A sampler, NAME[:key=value,…]; repeatable.")
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Radii, each a run of its own.")] = None,
    attack: Annotated[
        bool, typer.Option("--attack/--no-attack", help="Attack too, or compress only.")
    ] = True,
    preset: Annotated[str, typer.Option(help="smoke, standard or paper; see `verify`.")] = "smoke",
    classifier: Annotated[
        str | None, typer.Option(help="A classifier. Default: the shipped one if it fits.")
    ] = None,
    data: o.Data = None,
    ids: o.Ids = None,
    images: Annotated[int | None, typer.Option(min=1, help="How many; see --preset.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Gradients of the attack.")] = None,
    norm: o.Norm = None,
    precision: o.Precision = None,
    compile: o.Compile = None,
    channels_last: o.ChannelsLast = None,
    seed: o.Seed = None,
    device: o.Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell the cost and the time, and stop.")
    ] = False,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="End after this long with what there is.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the reports and of sweep.json.")] = Path(
        "sweep"
    ),
    quiet: o.Quiet = False,
) -> None:
    """Run compress and the attack at every combination of settings; one report each."""
    values: dict[str, object] = {
        **{"checkpoint": checkpoint, "preset": preset, "data": data, "ids": ids, "images": images},
        **{"classifier": classifier, "steps": steps},
    }
    how = {"precision": precision, "compile": compile, "channels_last": channels_last}
    values |= {"norm": norm, "seed": seed, **how}
    asked = plan_settings({name: v for name, v in values.items() if v is not None})
    if not attack:
        del asked["attack"]

    from purify_audit import sweep as run
    from purify_audit.attack_cost import seconds_per_evaluation
    from purify_audit.loading import choose_device
    from purify_audit.progress import Reporter
    from purify_audit.report.curve import curve_point, show_curve

    points = run.settings(_whole(t_star), tuple(sampler or ()), o.radii(eps) or ())
    loaded = run.subjects(asked, points, choose_device(device))
    total, console = sum(run.cost(subject) for _, subject in loaded), Console(stderr=True)
    told = f"{len(points)} settings, {total:,} network evaluations"
    if attack and (dry_run or not quiet):
        told += f", about {duration(total * seconds_per_evaluation(loaded[0][1]))}"
    if dry_run:
        return print(told)
    if out.exists() and not out.is_dir():
        raise PlanError(f"{out}: is a file; the reports need a folder")
    out.mkdir(parents=True, exist_ok=True)
    must_be_writable(out / "sweep.json")
    if not quiet:
        console.print(told, highlight=False)
    hold_freed_memory()
    limit = math.inf if max_seconds is None else max_seconds
    reporter, curve, unsure = Reporter(console, total, quiet, limit), [], False
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    with reporter.running():
        for point, found in run.sweep(loaded, reporter.tick):
            path = out / f"{point.title}.json"
            made = Made(found.report, found.samples, found.attacks)
            report = write(path, made, reporter, started).report
            unsure = unsure or report.status == "partial" or _has_errors(report)
            curve.append(curve_point(point, path.name, report))
    (out / "sweep.json").write_text(
        json.dumps([p.model_dump() for p in curve], indent=1) + "\n", encoding="utf-8"
    )
    show_curve(Console(), curve)
    print(f"\n{out}/sweep.json  ({reporter.seconds:.0f} s, {reporter.done:,} network evaluations)")
    if len(curve) < len(points) or unsure:
        raise typer.Exit(128 + reporter.stop_signal if reporter.stop_signal else EXIT_INCONCLUSIVE)


def _has_errors(report: "Report") -> bool:
    return any(f.severity == "error" for f in report.findings)


def _whole(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise PlanError(f"--t-star '{text}' is not a list of whole numbers such as 20,40") from None
