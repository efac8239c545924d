"""Frozen data that touches disk, and how its faults are told."""

from pydantic import BaseModel, ConfigDict, ValidationError

_LONGEST = 300  # characters of foreign text in a message


class Record(BaseModel):
    """Immutable, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def first_fault(error: ValidationError) -> str:
    """One sentence about the first thing wrong, with the dotted path of the field it is in."""
    fault = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    more = error.error_count() - 1
    rest = f" (and {more} more fault{'s' if more > 1 else ''})" if more else ""
    message = fault["msg"].removeprefix("Value error, ")
    return printable(f"field '{where}': {message}{rest}" if where else f"{message}{rest}")


def printable(text: str, most: int = _LONGEST) -> str:
    """Text from a file, fit for a one-line message: escaped where it must be, cut where long."""
    text = text if len(text) <= most else text[:most] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
