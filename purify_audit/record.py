"""Frozen data that touches disk, and how its faults are told."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """Immutable, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def first_fault(error: ValidationError) -> str:
    """One sentence about the first thing wrong, with the dotted path of the field it is in."""
    fault = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in fault["loc"]) or "(the whole)"
    more = error.error_count() - 1
    rest = f" (and {more} more fault{'s' if more > 1 else ''})" if more else ""
    return f"field '{where}': {fault['msg']}{rest}"
