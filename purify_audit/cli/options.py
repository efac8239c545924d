"""What several commands take, and how its text is read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from purify_audit.errors import InputError, PlanError
from purify_audit.settings import parse_radius

if TYPE_CHECKING:
    from purify_audit.plan import Probe
    from purify_audit.reading import Reading

Data = Annotated[
    str | None, typer.Option(help="Images: digits, or a file or folder. Default: bundled.")
]
Ids = Annotated[
    str | None, typer.Option(help="Only images with ids FIRST:LAST (LAST not included).")
]
Norm = Annotated[str | None, typer.Option(help="Ball: linf (default) or l2.")]
Eps = Annotated[
    str | None,
    typer.Option(
        help="Radii, pixel units in [0, 1]. Default: 8/255 (linf) or 0.5 (l2); for the bundled"
        " digits 0.15 or 1."
    ),
]
TStar = Annotated[int | None, typer.Option("--t-star", min=1, help="Override the card's t*.")]
Sampler = Annotated[
    str | None,
    typer.Option(help="Override the card's sampler: NAME[:key=value,…], e.g. ddim:steps=10."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Of the network: float32 (default), tf32 (CUDA), bfloat16 or float16. A finding tells"
        " where what it rounds is near a rate.",
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the network (torch.compile), anew for each size of batch.",
    ),
]
ChannelsLast = Annotated[
    bool | None,
    typer.Option(
        "--channels-last/--channels-first",
        help="Order of the network's numbers in memory.",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="Default: 0.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Level = Annotated[float, typer.Option(help="Confidence level of the intervals.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell the cost and the time, and stop.")]
MeasureAnyway = Annotated[
    bool, typer.Option("--measure-anyway", help="Go on after errors in preflight.")
]
Out = Annotated[Path, typer.Option(help="The report; raw rows go beside it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report, no table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


Preset = Annotated[
    str | None,
    typer.Option(
        "--as", help="A published way of running weights, e.g. diffpure-cifar10 (docs/formats.md)."
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="ema or raw, where a file holds both sets of weights.")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Unpickle what may run code. Recorded.")
]
Assume = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=VALUE", help="What a file does not say, e.g. t_star=100; repeatable."
    ),
]
Argument = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="KEY=VALUE", help="For the factory; repeatable."),
]
Code = Annotated[
    str | None,
    typer.Option(
        "--purifier", help="Code: package.module:factory, or an installed purifier's name."
    ),
]
ClassifierPreset = Annotated[
    str | None, typer.Option("--classifier-as", help="The same as --as, for the classifier.")
]
ClassifierArgument = Annotated[
    list[str] | None,
    typer.Option("--classifier-arg", metavar="KEY=VALUE", help="For the classifier's factory."),
]


def reading(**answers: Any) -> "Reading | None":
    """How to read what is not ours: `preset`, `weights`, `allow_pickle`, `assume`, `arguments`.

    Returns:
        None where nothing was answered.

    Raises:
        PlanError: an answer is not of the form KEY=VALUE, is given twice, or is none that there is.
    """
    from pydantic import ValidationError

    from purify_audit.reading import Reading
    from purify_audit.record import first_fault

    for name, option in (("assume", "--assume"), ("arguments", "--arg")):
        answers[name] = _pairs(option, answers.get(name) or [])
    answers = {name: value for name, value in answers.items() if value}
    try:
        return Reading.model_validate(answers) if answers else None
    except ValidationError as error:
        raise PlanError(first_fault(error)) from None


def one_purifier(named: str | None, code: str | None) -> str:
    """The checkpoint or the code to audit.

    Raises:
        PlanError: neither is given, or both are.
    """
    if (named is None) == (code is None):
        raise PlanError("name one purifier: a checkpoint, or code with --purifier module:factory")
    return str(code if named is None else named)


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.strip()):
            raise PlanError(f"{option} '{text}' is not KEY=VALUE")
        if name.strip() in pairs:
            raise PlanError(f"{option} gives '{name.strip()}' twice")
        pairs[name.strip()] = value.strip()
    return pairs


def radii(text: str | None) -> tuple[float, ...] | None:
    """Radii such as `2/255,0.03`.

    Raises:
        PlanError: not a list of numbers.
    """
    if text is None:
        return None
    try:
        return tuple(parse_radius(part) for part in text.split(","))
    except PlanError:
        raise PlanError(f"--eps '{text}' is not a list of numbers such as 2/255,0.03") from None


def probes(texts: list[str] | None) -> tuple["Probe", ...] | None:
    """Probes as written one by one.

    Raises:
        PlanError: no such probe, or a setting it does not have.
    """
    from purify_audit.plan import parse_probe
    from purify_audit.settings import parse_settings

    if not texts:
        return None
    found = []
    for text in texts:
        if text.startswith("file:"):
            found.append(parse_probe("file", {"path": text.removeprefix("file:")}))
        else:
            found.append(parse_probe(*parse_settings(text)))
    return tuple(found)


def sampler_setting(text: str | None) -> dict[str, object]:
    """The plan's sampler, if one is given.

    Raises:
        PlanError: no such sampler, or a setting it does not have.
    """
    from purify_audit.plan import parse_sampler
    from purify_audit.settings import parse_settings

    return {} if text is None else {"sampler": parse_sampler(*parse_settings(text))}


def engine_setting(asked: dict[str, Any]) -> dict[str, object]:
    """The plan's engine, if any of its settings is given."""
    given = {name: value for name, value in asked.items() if value is not None}
    return {"engine": given} if given else {}


def microbatch(text: str | None) -> int | None:
    """The plan's, where it is a number; `measured` is none yet.

    Raises:
        PlanError: neither.
    """
    if text is None or text == "measured":
        return None
    if not text.isdecimal():
        raise PlanError(f"--microbatch '{text}' is neither a number nor `measured`")
    return int(text)


def id_range(text: str | None) -> dict[str, int]:
    """The plan's first and last id, if given.

    Raises:
        InputError: not FIRST:LAST.
    """
    if text is None:
        return {}
    first, colon, last = text.partition(":")
    if not colon or not (first + last).isdecimal():
        raise InputError(f"--ids '{text}' is not FIRST:LAST, such as 0:1000")
    return {name: int(value) for name, value in (("first_id", first), ("last_id", last)) if value}
