"""The command line: the only place that prints, exits, or writes files. It imports torch late."""

import os
import shlex
import signal
import sys
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from purify_audit import __version__
from purify_audit.errors import InputError, PlanError, PurifyAuditError

if TYPE_CHECKING:
    from purify_audit.audit import Outcome
    from purify_audit.plan import Probe
    from purify_audit.progress import Reporter

EXIT_INCONCLUSIVE, EXIT_BROKEN = 3, 4

app = typer.Typer(
    name="purify-audit",
    help="Does an adversarial purifier make a classifier robust, or does its randomness hide the"
    " gradient?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; every failure ends in one sentence and an exit code of its own."""
    if hasattr(signal, "SIGPIPE"):  # `… | head` ends quietly
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        app()
    except PurifyAuditError as error:
        _fail(str(error), error.exit_code)
    except Exception as error:  # never exit code 1: that means "the purifier failed the gate"
        if "--debug" in sys.argv:
            raise
        kind = type(error).__name__
        _fail(
            f"unexpected {kind}: {error} (`purify-audit --debug …` shows the traceback)",
            EXIT_BROKEN,
        )


def _fail(message: str, code: int) -> NoReturn:
    Console(stderr=True).print(
        f"purify-audit: {message}", style="red", highlight=False, markup=False
    )
    sys.exit(code)


def _version(asked: bool) -> None:
    if asked:
        print(f"purify-audit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options before the command."""


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A native checkpoint (.safetensors).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a checkpoint's card, parameter count and digest, without running anything."""
    from purify_audit.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(file)
    if as_json:
        print(
            f'{{"sha256": "{checkpoint.sha256}", "parameters": {checkpoint.parameters},'
            f' "card": {checkpoint.card.model_dump_json()}}}'
        )
        return
    print(checkpoint.card.model_dump_json(indent=2))
    print(f"parameters  {checkpoint.parameters:,} in {len(checkpoint.tensors)} tensors")
    print(f"sha256      {checkpoint.sha256}")


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
def compress(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A native checkpoint, or an input transformation such as jpeg:quality=75."
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Images: digits, or a file or folder. Default: bundled.")
    ] = None,
    ids: Annotated[
        str | None, typer.Option(help="Only images with ids FIRST:LAST (LAST not included).")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="How many. Default: 64.")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="A classifier's checkpoint, for accuracies.")
    ] = None,
    norm: Annotated[str, typer.Option(help="Ball of the probes: linf or l2.")] = "linf",
    eps: Annotated[
        str | None,
        typer.Option(help="Radii, pixel units in [0, 1]. Default: 8/255 (linf) or 0.5 (l2)."),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="sign, uniform, sphere, lowfreq[:band=N], power[:block=N,iterations=N],"
            " file:PATH; repeatable. Default: sign (linf) or sphere (l2), lowfreq and power."
        ),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Draws per image. Default: 4; 1 if deterministic.")
    ] = None,
    directions: Annotated[
        int | None, typer.Option(min=1, help="Directions per random probe. Default: 8.")
    ] = None,
    t_star: Annotated[
        int | None, typer.Option("--t-star", min=1, help="Override the card's t*.")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="Override the card's sampler: NAME[:key=value,…], e.g. ddim:steps=10."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="Default: 0.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    microbatch: Annotated[
        int | None,
        typer.Option(min=1, help="Purifications at a time. Default: 128 on CPU, 256 on CUDA."),
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Stop at the first look where the rate is known this well."),
    ] = None,
    measure_anyway: Annotated[
        bool, typer.Option("--measure-anyway", help="Go on after errors in preflight.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The report; rows go beside it.")] = Path("report.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report, no table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Estimate how a purifier compresses the neighbourhood of images, without gradients."""
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    asked: dict[str, object] = {"norm": norm, "level": level, "tolerance": tolerance}
    asked |= {"checkpoint": checkpoint, "data": data, "images": images, "classifier": classifier}
    asked |= {"draws": draws, "directions": directions, "t_star": t_star, "seed": seed}
    asked |= {"microbatch": microbatch, "eps": _radii(eps), "probes": _probes(probe)}
    asked |= _id_range(ids) | _sampler(sampler)
    _must_be_writable(out)

    from purify_audit.audit import Watch, audit
    from purify_audit.compression import rows_per_image
    from purify_audit.loading import choose_device
    from purify_audit.progress import Reporter
    from purify_audit.subject import prepare

    subject = prepare(asked, choose_device(device))
    total = len(subject.images) * rows_per_image(subject.plan)
    reporter = Reporter(Console(stderr=True), total, subject.purifier.evaluations, quiet)
    with reporter.running():
        outcome = audit(subject, Watch(reporter.tick, reporter.interim), measure_anyway)
    outcome = _write(out, outcome, reporter, started)
    if as_json:
        print(out.read_text(encoding="utf-8"))
    else:
        from purify_audit.report.console import show

        show(Console(), outcome.report)
        print(f"\n{out}  ({reporter.seconds:.0f} s, {reporter.done:,} purifications)")
    if reporter.stop_signal and outcome.report.status == "partial":
        raise typer.Exit(128 + reporter.stop_signal)
    if any(f.severity == "error" for f in outcome.report.findings):
        raise typer.Exit(EXIT_INCONCLUSIVE)


@app.command()
def replay(
    report: Annotated[Path, typer.Argument(help="A report that `compress` wrote.")],
    image: Annotated[int, typer.Option(help="Image id.")],
    draw: Annotated[int, typer.Option(min=0, help="Draw id.")] = 0,
    direction: Annotated[int, typer.Option(min=0, help="Direction (power: rank from 0).")] = 0,
    probe: Annotated[str | None, typer.Option(help="Probe. Default: the plan's first.")] = None,
    eps: Annotated[str | None, typer.Option(help="Radius. Default: the plan's first.")] = None,
    device: Annotated[str | None, typer.Option(help="Default: the report's kind.")] = None,
) -> None:
    """Compute one cell of a report again and say whether it is the same number."""
    from purify_audit.loading import choose_device
    from purify_audit.replay import find_address, replay_report
    from purify_audit.report.schema import read_report
    from purify_audit.runtime import environment

    saved, radii = read_report(report), _radii(eps)
    address = find_address(saved.plan, (image, draw, direction), probe, radii[0] if radii else None)
    where = choose_device(device or str(saved.environment["device"]))
    cell = replay_report(saved, report.parent, address, where)
    for name, value in cell.stored.items():
        print(f"{name:12} stored {value:.17g}  now {cell.computed[name]:.17g}")
    if cell.stored["delta_l2"] and cell.computed["delta_l2"]:
        rates = [c["change_l2"] / c["delta_l2"] for c in (cell.stored, cell.computed)]
        print(f"{'rate l2':12} stored {rates[0]:.17g}  now {rates[1]:.17g}")
    if not cell.same:
        print(f"DIFFERENT, by at most {cell.largest_difference:.3g}")
        for key, now in environment(where).items():
            if saved.environment.get(key) != now:
                print(f"  {key}: {saved.environment.get(key)} then, {now} now")
        raise typer.Exit(EXIT_INCONCLUSIVE)
    print("the same number, bit for bit")


def _must_be_writable(out: Path) -> None:
    """Refuse, before spending anything, a report that could not be written."""
    if not out.parent.is_dir():
        raise PlanError(f"{out}: the folder {out.parent} does not exist")
    if out.is_dir():
        raise PlanError(f"{out}: is a folder, not a file to write")
    if not os.access(out.parent, os.W_OK):
        raise PlanError(f"{out}: the folder {out.parent} is not writable")


def _write(out: Path, outcome: "Outcome", reporter: "Reporter", started: str) -> "Outcome":
    """Write rows and report, each whole or not at all; the report names the rows' digest."""
    from purify_audit.audit import Outcome
    from purify_audit.checkpoint import file_sha256
    from purify_audit.report.schema import RunInfo
    from purify_audit.samples import save_samples

    report, rows = outcome.report, out.with_name(f"{out.stem}.rows.safetensors")
    scratch = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in (out, rows)}
    try:
        if outcome.samples is not None:
            save_samples(scratch[rows], outcome.samples)
            report = report.model_copy(update={"rows_sha256": file_sha256(scratch[rows])})
        run = RunInfo(
            command=shlex.join(["purify-audit", *sys.argv[1:]]),
            started=started,
            seconds=round(reporter.seconds, 3),
            purifications=reporter.done,
            rows_file=None if outcome.samples is None else rows.name,
            body_sha256=report.body_sha256(),
        )
        report = report.model_copy(update={"run": run})
        scratch[out].write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if outcome.samples is not None:
            os.replace(scratch[rows], rows)
        os.replace(scratch[out], out)
    except OSError as error:
        raise PurifyAuditError(f"{out}: cannot be written: {error.strerror}") from None
    finally:
        for path in scratch.values():
            path.unlink(missing_ok=True)
    return Outcome(report, outcome.samples)


def _radii(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(Fraction(part.strip())) for part in text.split(","))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise PlanError(f"--eps '{text}' is not a list of numbers such as 2/255,0.03") from None


def _probes(texts: list[str] | None) -> tuple["Probe", ...] | None:
    from purify_audit.plan import parse_probe
    from purify_audit.settings import parse_settings

    if not texts:
        return None
    probes = []
    for text in texts:
        if text.startswith("file:"):
            probes.append(parse_probe("file", {"path": text.removeprefix("file:")}))
        else:
            probes.append(parse_probe(*parse_settings(text)))
    return tuple(probes)


def _sampler(text: str | None) -> dict[str, object]:
    from purify_audit.plan import parse_sampler
    from purify_audit.settings import parse_settings

    return {} if text is None else {"sampler": parse_sampler(*parse_settings(text))}


def _id_range(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    first, colon, last = text.partition(":")
    if not colon or not (first + last).isdecimal():
        raise InputError(f"--ids '{text}' is not FIRST:LAST, such as 0:1000")
    return {name: int(value) for name, value in (("first_id", first), ("last_id", last)) if value}


if __name__ == "__main__":
    main()
