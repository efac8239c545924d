"""`purify-audit compress`: the compression rate, without gradients."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from purify_audit.cli import options as o
from purify_audit.cli.app import command
from purify_audit.cli.execute import Request, execute
from purify_audit.cli.output import must_be_writable
from purify_audit.cli.run_folder import run_folder
from purify_audit.core.errors import PlanError
from purify_audit.spec import from_text


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling."""

    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="sign, uniform, sphere, lowfreq[:band=N], power[:block=N,iterations=N],"
            " file:PATH; repeatable. Default: sign (linf) or sphere (l2, l1), lowfreq and power"
            " (not in a precision below float32)."
        ),
    ] = None
    draws: Annotated[
        int | None,
        typer.Option(
            min=1, help="Draws of the purifier's randomness per image. Default: 4; 1 if none."
        ),
    ] = None
    directions: Annotated[
        int | None, typer.Option(min=1, help="Directions per random probe. Default: 8.")
    ] = None
    level: o.Level = 0.95
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Stop at the first interim look where the rate's interval is at most ± this."
        ),
    ] = None
    allocate: Annotated[
        bool,
        typer.Option(
            "--allocate",
            help="Choose draws and directions by a pilot, so that --tolerance costs least.",
        ),
    ] = False
    microbatch: Annotated[
        str | None,
        typer.Option(
            help="Purifications at a time: a number, or `measured` for the fastest here. Default:"
            " by the size of the images.",
        ),
    ] = None


@command()
def compress(
    purifier: o.PurifierOptions,
    classifier: o.ClassifierOptions,
    images: o.ImageOptions,
    threat: o.ThreatOptions,
    sampling: Sampling,
    engine: o.EngineOptions,
    run: o.RunOptions,
    output: o.OutputOptions,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint of any known format, diffusers folder, exported graph, or input"
            " transformation such as jpeg:quality=75."
        ),
    ] = None,
    out: o.Out = Path("report.json"),
) -> None:
    """Estimate the compression rate of a purifier, without gradients."""
    options = _options(checkpoint, purifier, images, threat, sampling)
    options |= {"seed": engine.seed, "classifier": classifier.classifier} | engine.given()
    options["load_options"] = purifier.load_options()
    options["classifier_load_options"] = classifier.load_options(allow_pickle=purifier.allow_pickle)
    must_be_writable(out)

    from purify_audit.audit.defaults import plan_fields
    from purify_audit.audit.subject import prepare
    from purify_audit.audit.tuning.tune import OpenSettings, must_be_one_process
    from purify_audit.models.runner import choose_device

    folder = run_folder(run.run_dir, run.shard, out)
    measured = sampling.microbatch == "measured"
    if measured:
        must_be_one_process(folder.shard.count)
    left_open = OpenSettings(
        measured, sampling.allocate, sampling.microbatch is None, run_dir=folder.path
    )
    subject = prepare(plan_fields(options), choose_device(engine.device))
    execute(subject, Request(out, folder, run, output), left_open)


def _options(
    checkpoint: str | None,
    purifier: o.PurifierOptions,
    images: o.ImageOptions,
    threat: o.ThreatOptions,
    sampling: Sampling,
) -> dict[str, Any]:
    """The settings of the audit, by their option names."""
    options: dict[str, Any] = {
        "checkpoint": purifier.named(checkpoint),
        "t_star": purifier.t_star,
        "sampler": purifier.sampler,
        **dataclasses.asdict(images),
        **dataclasses.asdict(threat),
        "probes": sampling.probe,
        "draws": sampling.draws,
        "directions": sampling.directions,
        "level": sampling.level,
        "tolerance": sampling.tolerance,
        "microbatch": from_text.microbatch(sampling.microbatch),
    }
    if sampling.allocate:
        if sampling.draws is not None or sampling.directions is not None:
            raise PlanError(
                "--allocate chooses draws and directions: leave out --draws, --directions"
            )
        options["preset_images"] = math.inf  # all that there are
    return options
