"""Immutable records that are read from and written to disk; text of validation errors."""

from pydantic import BaseModel, ConfigDict, ValidationError

_LONGEST = 300  # characters of text from a file in a message


class Record(BaseModel):
    """Immutable, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def first_fault(error: ValidationError) -> str:
    """The first validation error as one sentence, with the dotted path of its field."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    more = error.error_count() - 1
    rest = f" (and {more} more fault{'s' if more > 1 else ''})" if more else ""
    message = first["msg"].removeprefix("Value error, ")
    return printable(f"field '{field}': {message}{rest}" if field else f"{message}{rest}")


def printable(text: str, most: int = _LONGEST) -> str:
    """Text from a file for a one-line message: control characters escaped, truncated if long."""
    text = text if len(text) <= most else text[:most] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
