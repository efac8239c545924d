"""One unit of work: its arrays as bytes, and how to know them again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from purify_audit.audit.store.manifest import JSON
from purify_audit.audit.store.rows import Row

_WIDTHS = {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64), "complex": (64,)}
# What safetensors reads back into numpy.
_DTYPES = {"bool"} | {f"{kind}{width}" for kind, widths in _WIDTHS.items() for width in widths}


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """What one piece of work gave.

    Attributes:
        arrays: by name.
        facts: whatever else, as JSON.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, JSON]


def serialised(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The file of a unit: the same arrays give the same bytes.

    Raises:
        ValueError: an array that cannot be kept.
    """
    from safetensors.numpy import save

    whole = {}
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.name not in _DTYPES or name == "__metadata__":
            raise ValueError(f"array '{name}' of {array.dtype} cannot be kept")
        # safetensors takes an array's memory as it lies.
        whole[name] = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    return save(whole)


def unit_digest(phase: str, place: int, facts: str, data: bytes) -> str:
    """SHA-256 of all that `get` gives, and of what it is asked for.

    Rows are under it too, since SQLite has no checksums of what it holds.
    """
    digest = hashlib.sha256(f"{phase}\n{place}\n{facts}\n".encode())
    digest.update(data)
    return digest.hexdigest()


def checked(row: Row, data: bytes) -> Unit | None:
    """A unit, or none if this is not what was put."""
    if unit_digest(row.phase, row.place, row.facts, data) != row.sha256:
        return None
    from safetensors.numpy import load

    return Unit(load(data), json.loads(row.facts))
