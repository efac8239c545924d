"""Commands that look at one file: `inspect`, `attach`, `replay`."""

from pathlib import Path
from typing import Annotated

import typer

from purify_audit.cli import options as o
from purify_audit.cli.app import EXIT_INCONCLUSIVE, app
from purify_audit.cli.convert import tell_recognised


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="A checkpoint of any known format, or a folder.")],
    preset: o.Preset = None,
    weights: o.Weights = None,
    assume: o.Assume = None,
    allow_pickle: o.AllowPickle = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a checkpoint's card, parameter count and digest, without running anything."""
    from purify_audit.checkpoint import holds_card, read_checkpoint

    answers = o.reading(preset=preset, weights=weights, assume=assume, allow_pickle=allow_pickle)
    if answers is None and holds_card(Path(file)):  # then PyTorch need not be imported
        checkpoint = read_checkpoint(file)
    else:
        from purify_audit.opening import open_checkpoint

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
        tell_recognised(recognised)


@app.command()
def attach(
    weights: Annotated[Path, typer.Argument(help="A safetensors file without a card.")],
    card: Annotated[Path, typer.Argument(help="The card, a JSON file.")],
    out: Annotated[Path, typer.Argument(help="The native checkpoint to write.")],
) -> None:
    """Make a native checkpoint of plain weights and a card; refuse if they do not fit."""
    import torch

    from purify_audit.attach import attach_card

    checkpoint = attach_card(weights, card, out, torch.device("cpu"))
    print(f"{out}: {checkpoint.card.name}, {checkpoint.parameters:,} parameters")


@app.command()
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
    """Compute one cell of a report again and say whether it is the same number."""
    from purify_audit.loading import choose_device
    from purify_audit.replay import check_trust, find_address, replay_report
    from purify_audit.report.schema import read_report
    from purify_audit.runtime import environment

    saved, wanted = read_report(report), o.radii(eps)
    check_trust(saved.plan, allow_pickle)
    address = find_address(
        saved.plan, (image, draw, direction), probe, wanted[0] if wanted else None
    )
    where = choose_device(device or str(saved.environment["device"]))
    (cell,) = replay_report(saved, report.parent, [address], where)
    for name, value in cell.stored.items():
        print(f"{name:12} stored {value:.17g}  now {cell.computed[name]:.17g}")
    if cell.stored["delta_l2"] and cell.computed["delta_l2"]:
        rates = [c["change_l2"] / c["delta_l2"] for c in (cell.stored, cell.computed)]
        print(f"{'rate l2':12} stored {rates[0]:.17g}  now {rates[1]:.17g}")
    if not cell.same:
        print(f"DIFFERENT, by at most {cell.largest_difference:.3g}")
        for key, now in environment(where, saved.plan.engine).items():
            if saved.environment.get(key) != now:
                print(f"  {key}: {saved.environment.get(key)} then, {now} now")
        raise typer.Exit(EXIT_INCONCLUSIVE)
    print("the same number, bit for bit")
