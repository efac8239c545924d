"""Serialisation of one unit of work, and its digest."""

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
    """Result of one unit of work.

    Attributes:
        arrays: by name.
        facts: other values, as JSON.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, JSON]


def serialised(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The file of a unit: the same arrays give the same bytes.

    Raises:
        ValueError: an array that cannot be stored.
    """
    from safetensors.numpy import save

    whole = {}
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.name not in _DTYPES or name == "__metadata__":
            raise ValueError(f"array '{name}' of {array.dtype} cannot be kept")
        # safetensors writes an array's memory without regard to byte order and strides.
        whole[name] = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    return save(whole)


def unit_digest(phase: str, place: int, facts: str, data: bytes) -> str:
    """SHA-256 of a unit's address, facts and arrays.

    It covers the facts too, since SQLite has no checksums.
    """
    digest = hashlib.sha256(f"{phase}\n{place}\n{facts}\n".encode())
    digest.update(data)
    return digest.hexdigest()


def checked(row: Row, data: bytes) -> Unit | None:
    """A unit; none if its content differs from what was stored."""
    if unit_digest(row.phase, row.place, row.facts, data) != row.sha256:
        return None
    from safetensors.numpy import load

    return Unit(load(data), json.loads(row.facts))
