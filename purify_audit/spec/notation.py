"""One-line notation of settings: `NAME:key=value,…`, radii such as `8/255`."""

import difflib
from collections.abc import Iterable
from fractions import Fraction

from purify_audit.core.errors import PlanError


def parse_settings(text: str) -> tuple[str, dict[str, str]]:
    """Read `NAME` or `NAME:key=value,key=value`.

    Args:
        text: the notation; spaces around its parts are ignored. A value ends at a comma and may
            itself contain `=` and `:`.

    Returns:
        The name, and the settings in the order written. Values stay strings, for the record that
        validates them.

    Raises:
        PlanError: the name is empty, nothing follows the colon, a setting is not `key=value`,
            a key is repeated, or a key is `kind` (which in a record is the name).
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not name:
        raise PlanError(f"'{text}' names nothing: write NAME or NAME:key=value,key=value")
    settings: dict[str, str] = {}
    for setting in rest.split(",") if colon else ():
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not (key and equals and value):
            raise PlanError(
                f"'{text}': '{setting.strip()}' is not key=value; write NAME:key=value,key=value"
            )
        if key == "kind":
            raise PlanError(f"'{text}': 'kind' is no setting; the name before the colon gives it")
        if key in settings:
            raise PlanError(f"'{text}' gives '{key}' twice")
        settings[key] = value
    return name, settings


def parse_radius(text: str) -> float:
    """A radius, also one written as a fraction such as `8/255`.

    Raises:
        PlanError: not a number.
    """
    try:
        return float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise PlanError(f"'{text}' is not a radius such as 0.03 or 8/255") from None


def radius_text(eps: float) -> str:
    """A radius in 255ths where that is exact and shorter, else as a decimal."""
    parts, plain = eps * 255, f"{eps:g}"
    fraction = f"{parts:.0f}/255"
    return fraction if abs(parts - round(parts)) < 1e-6 and len(fraction) < len(plain) else plain


def meant_instead(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest known name, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1)
    return f"; '{close[0]}' may be meant" if close else f"; there are {', '.join(names)}"
