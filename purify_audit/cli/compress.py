"""`purify-audit compress`."""

import math
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from purify_audit.cli import keeping as k
from purify_audit.cli import options as o
from purify_audit.cli.app import app
from purify_audit.cli.measuring import Asked, carry_out, duration, finish, planned
from purify_audit.cli.output import must_be_writable
from purify_audit.cli.settling import Open, must_be_one_process, settle
from purify_audit.errors import PlanError


@app.command()
def compress(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint of any known format, a diffusers folder, an exported graph, or an"
            " input transformation such as jpeg:quality=75."
        ),
    ] = None,
    purifier: o.Code = None,
    arguments: o.Argument = None,
    preset: o.Preset = None,
    weights: o.Weights = None,
    assume: o.Assume = None,
    allow_pickle: o.AllowPickle = False,
    data: o.Data = None,
    ids: o.Ids = None,
    images: Annotated[int | None, typer.Option(min=1, help="How many. Default: 64.")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="A classifier, for accuracies: a checkpoint or code.")
    ] = None,
    classifier_preset: o.ClassifierPreset = None,
    classifier_arguments: o.ClassifierArgument = None,
    norm: o.Norm = None,
    eps: o.Eps = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="sign, uniform, sphere, lowfreq[:band=N], power[:block=N,iterations=N],"
            " file:PATH; repeatable. Default: sign (linf) or sphere (l2), lowfreq and power"
            " (not in a precision below float32)."
        ),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Draws per image. Default: 4; 1 if deterministic.")
    ] = None,
    directions: Annotated[
        int | None, typer.Option(min=1, help="Directions per random probe. Default: 8.")
    ] = None,
    t_star: o.TStar = None,
    sampler: o.Sampler = None,
    precision: o.Precision = None,
    compile: o.Compile = None,
    channels_last: o.ChannelsLast = None,
    seed: o.Seed = None,
    device: o.Device = "auto",
    microbatch: Annotated[
        str | None,
        typer.Option(
            help="Purifications at a time: a number, or `measured`: the quickest here. Default: by"
            " the size of the images.",
        ),
    ] = None,
    allocate: Annotated[
        bool,
        typer.Option(
            "--allocate",
            help="Choose draws and directions by a pilot, so that --tolerance costs least.",
        ),
    ] = False,
    level: o.Level = 0.95,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Stop at the first look where the rate is known this well."),
    ] = None,
    dry_run: o.DryRun = False,
    measure_anyway: o.MeasureAnyway = False,
    run_dir: k.RunDir = None,
    shard: k.ShardOption = None,
    out: o.Out = Path("report.json"),
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Estimate how a purifier compresses the neighbourhood of images, without gradients."""
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    asked: dict[str, object] = {"norm": norm, "level": level, "tolerance": tolerance}
    asked |= {
        "checkpoint": o.one_purifier(checkpoint, purifier),
        "data": data,
        "images": images,
        "classifier": classifier,
    }
    asked |= {"draws": draws, "directions": directions, "t_star": t_star, "seed": seed}
    asked |= {"eps": o.radii(eps), "probes": o.probes(probe)}
    asked |= {"microbatch": o.microbatch(microbatch)}
    if allocate:
        if draws is not None or directions is not None:
            raise PlanError(
                "--allocate chooses draws and directions: leave out --draws, --directions"
            )
        asked["preset_images"] = math.inf  # all that there are
    asked["reading"] = o.reading(
        preset=preset,
        weights=weights,
        assume=assume,
        arguments=arguments,
        allow_pickle=allow_pickle,
    )
    asked["classifier_reading"] = o.reading(
        preset=classifier_preset, arguments=classifier_arguments, allow_pickle=allow_pickle
    )
    asked |= o.id_range(ids) | o.sampler_setting(sampler)
    how = {"precision": precision, "compile": compile, "channels_last": channels_last}
    asked |= o.engine_setting(how)
    must_be_writable(out)
    keep = k.keeping(run_dir, shard, out)
    if microbatch == "measured":
        must_be_one_process(keep.shard.count)

    from purify_audit.loading import choose_device
    from purify_audit.progress import Reporter
    from purify_audit.settling.packing import seconds
    from purify_audit.subject import prepare

    console = Console(stderr=True, quiet=quiet)
    left = Open(microbatch == "measured", allocate, microbatch is None, run_dir=keep.folder)
    subject, settled = settle(prepare(asked, choose_device(device)), left, console)
    if dry_run:
        return print(
            f"{planned(subject):,} network evaluations, about {duration(seconds(subject))}"
        )
    reporter = Reporter(Console(stderr=True), planned(subject), quiet)
    run = Asked(keep, out, None, measure_anyway, settled)
    finish(carry_out(subject, reporter, run), reporter, run, started, as_json)
