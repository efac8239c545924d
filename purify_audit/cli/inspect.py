"""Commands on one file: `inspect`, `attach`, `replay`."""

from pathlib import Path
from typing import Annotated

import typer

from purify_audit.cli import options as o
from purify_audit.cli.app import EXIT_INCONCLUSIVE, command
from purify_audit.cli.convert import print_recognised
from purify_audit.spec import from_text


@command()
def inspect(
    file: Annotated[str, typer.Argument(help="A checkpoint of any known format, or a folder.")],
    preset: o.Preset = None,
    weights: o.Weights = None,
    assume: o.Assume = None,
    allow_pickle: o.AllowPickle = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a checkpoint's card, parameter count and digest, without running anything."""
    from purify_audit.models.checkpoint import holds_card, read_checkpoint

    answers = from_text.load_options(
        preset=preset, weights=weights, assume=assume, allow_pickle=allow_pickle
    )
    if answers is None and holds_card(Path(file)):  # then PyTorch need not be imported
        checkpoint = read_checkpoint(file)
    else:
        from purify_audit.models.open import open_checkpoint

        checkpoint = open_checkpoint(file, None, answers)
    recognised = checkpoint.recognised
    if as_json:
        print(
            f'{{"sha256": "{checkpoint.sha256}", "parameters": {checkpoint.parameters},'
            f' "recognised": {recognised.model_dump_json() if recognised else "null"},'
            f' "card": {checkpoint.card.model_dump_json()}}}'
        )
        return
    print(checkpoint.card.model_dump_json(indent=2))
    print(f"parameters  {checkpoint.parameters:,} in {len(checkpoint.tensors)} tensors")
    print(f"sha256      {checkpoint.sha256}")
    if recognised is not None:
        print_recognised(recognised)


@command()
def attach(
    weights: Annotated[Path, typer.Argument(help="A safetensors file without a card.")],
    card: Annotated[Path, typer.Argument(help="The card, a JSON file.")],
    out: Annotated[Path, typer.Argument(help="The native checkpoint to write.")],
) -> None:
    """Make a native checkpoint of plain weights and a card; refuse if they do not fit."""
    import torch

    from purify_audit.models.convert import attach_card

    checkpoint = attach_card(weights, card, out, torch.device("cpu"))
    print(f"{out}: {checkpoint.card.name}, {checkpoint.parameters:,} parameters")


@command()
def replay(
    report: Annotated[Path, typer.Argument(help="A report that `compress` wrote.")],
    image: Annotated[int, typer.Option(help="Image id.")],
    draw: Annotated[int, typer.Option(min=0, help="Draw id.")] = 0,
    direction: Annotated[int, typer.Option(min=0, help="Direction (power: rank from 0).")] = 0,
    probe: Annotated[str | None, typer.Option(help="Probe. Default: the plan's first.")] = None,
    eps: Annotated[str | None, typer.Option(help="Radius. Default: the plan's first.")] = None,
    device: Annotated[str | None, typer.Option(help="Default: the report's kind.")] = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Recompute one cell of a report, and report whether it differs in any bit."""
    from purify_audit.audit.replay import find_address, reproduce
    from purify_audit.cli.verify import print_environment
    from purify_audit.models.runner import choose_device
    from purify_audit.report.schema import read_report

    wanted = from_text.radii(eps)
    address = find_address(
        read_report(report).plan, (image, draw, direction), probe, wanted[0] if wanted else None
    )
    where = None if device is None else choose_device(device)
    reproduction = reproduce(report, [address], where, allow_pickle=allow_pickle)
    (cell,) = reproduction.cells
    for name, value in cell.stored.items():
        print(f"{name:12} stored {value:.17g}  now {cell.computed[name]:.17g}")
    if cell.stored["delta_l2"] and cell.computed["delta_l2"]:
        rates = [c["change_l2"] / c["delta_l2"] for c in (cell.stored, cell.computed)]
        print(f"{'rate l2':12} stored {rates[0]:.17g}  now {rates[1]:.17g}")
    if not cell.same:
        print(f"DIFFERENT, by at most {cell.largest_difference:.3g}")
        print_environment(reproduction.environment)
        raise typer.Exit(EXIT_INCONCLUSIVE)
    print("the same number, bit for bit")
