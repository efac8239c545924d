"""Parse the text of command-line options and project files into plan settings."""

from typing import TYPE_CHECKING, Any

from purify_audit.core.errors import InputError, PlanError
from purify_audit.spec.notation import parse_radius

if TYPE_CHECKING:
    from purify_audit.spec.load_options import LoadOptions
    from purify_audit.spec.probes import Probe


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
    """Probes, each in one-line notation.

    Raises:
        PlanError: no such probe, or a setting it does not have.
    """
    from purify_audit.spec.notation import parse_settings
    from purify_audit.spec.probes import parse_probe

    if not texts:
        return None
    parsed = []
    for text in texts:
        if text.startswith("file:"):
            parsed.append(parse_probe("file", {"path": text.removeprefix("file:")}))
        else:
            parsed.append(parse_probe(*parse_settings(text)))
    return tuple(parsed)


def sampler_setting(text: str | None) -> dict[str, object]:
    """The plan's sampler, if one is given.

    Raises:
        PlanError: no such sampler, or a setting it does not have.
    """
    from purify_audit.spec.notation import parse_settings
    from purify_audit.spec.samplers import parse_sampler

    return {} if text is None else {"sampler": parse_sampler(*parse_settings(text))}


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


def load_options(**answers: Any) -> "LoadOptions | None":
    """`LoadOptions` from text: `preset`, `weights`, `allow_pickle`, `assume`, `arguments`.

    Returns:
        None without any answer.

    Raises:
        PlanError: an answer is not of the form KEY=VALUE, is repeated, or is not known.
    """
    from pydantic import ValidationError

    from purify_audit.core.records import first_fault
    from purify_audit.spec.load_options import LoadOptions

    for name, option in (("assume", "--assume"), ("arguments", "--arg")):
        answers[name] = _pairs(option, answers.get(name) or [])
    answers = {name: value for name, value in answers.items() if value}
    try:
        return LoadOptions.model_validate(answers) if answers else None
    except ValidationError as error:
        raise PlanError(first_fault(error)) from None


def microbatch(text: str | None) -> int | None:
    """The plan's micro-batch size if it is a number; none for `measured`.

    Raises:
        PlanError: neither.
    """
    if text is None or text == "measured":
        return None
    if not text.isdecimal():
        raise PlanError(f"--microbatch '{text}' is neither a number nor `measured`")
    return int(text)
