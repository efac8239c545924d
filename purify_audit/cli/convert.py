"""`purify-audit convert` and `purify-audit export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from purify_audit.cli import options as o
from purify_audit.cli.app import command
from purify_audit.cli.output import must_be_writable
from purify_audit.spec import from_text

if TYPE_CHECKING:
    from purify_audit.spec.load_options import Recognised
    from purify_audit.spec.samplers import Sampler


@command()
def convert(
    source: Annotated[str, typer.Argument(help="A file, a diffusers folder, or hub:OWNER/NAME.")],
    out: Annotated[Path, typer.Argument(help="The native checkpoint to write (.safetensors).")],
    preset: Annotated[
        str | None,
        typer.Option("--preset", "--as", help="Published way of running it (docs/formats.md)."),
    ] = None,
    weights: o.Weights = None,
    assume: o.Assume = None,
    t_star: Annotated[int | None, typer.Option("--t-star", min=1, help="Purify from t*.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="The sampler: NAME[:key=value,…], e.g. ddim:steps=10.")
    ] = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Convert a published checkpoint to a native one; refuse what the file leaves ambiguous."""
    assumed = list(assume or [])
    assumed += [] if t_star is None else [f"t_star={t_star}"]
    assumed += [] if sampler is None else [f"sampler={sampler}"]
    answers = from_text.load_options(
        preset=preset, weights=weights, assume=assumed, allow_pickle=allow_pickle
    )
    must_be_writable(out)

    from purify_audit.models.convert import convert as run
    from purify_audit.spec.load_options import LoadOptions

    source_checkpoint, written = run(source, out, answers or LoadOptions())
    if source_checkpoint.recognised is not None:
        print_recognised(source_checkpoint.recognised)
    print(f"{out}: {written.card.name}, {written.parameters:,} parameters")


@command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A purifier that `compress` can load.")],
    out: Annotated[Path, typer.Argument(help="The graph to write (.pt2).")],
    t_star: o.TStar = None,
    sampler: o.Sampler = None,
    preset: o.Preset = None,
    weights: o.Weights = None,
    assume: o.Assume = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Write a purifier as a `torch.export` graph whose noise is an input."""
    answers = from_text.load_options(
        preset=preset, weights=weights, assume=assume, allow_pickle=allow_pickle
    )
    must_be_writable(out)

    from purify_audit.audit.subject import overridden
    from purify_audit.models.export import export_purifier
    from purify_audit.models.load import purifier_card
    from purify_audit.models.open import open_checkpoint

    opened = open_checkpoint(checkpoint, None, answers)
    chosen = from_text.sampler_setting(sampler).get("sampler")
    card = overridden(checkpoint, purifier_card(opened), t_star, cast("Sampler | None", chosen))
    export_purifier(opened, out, card)
    print(f"{out}: written")


def print_recognised(recognised: "Recognised") -> None:
    """Print the recognised format, and each assumption with its source."""
    print(f"recognised  {recognised.format}, {recognised.container}")
    if recognised.unpickled:
        print("unpickled   yes: code in the file may have run")
    for each in recognised.assumptions:
        print(f"assumed     {each.what} = {each.value}  ({each.source})")
