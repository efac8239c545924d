"""Tables of arrays as named columns, in memory and in safetensors files. No torch.

A table is a dataclass; its columns are the fields annotated as numpy arrays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from purify_audit.core.errors import ReportError

Columns = dict[str, np.ndarray]
_Table = TypeVar("_Table")
_Result = TypeVar("_Result")


def _names(kind: Any) -> list[str]:
    return [f.name for f in fields(kind) if f.type is np.ndarray]


def columns_of(table: object, prefix: str = "", suffix: str = "") -> Columns:
    """The columns of a table, each named `prefix + field + suffix`."""
    return {f"{prefix}{name}{suffix}": getattr(table, name) for name in _names(type(table))}


def table_of(
    kind: type[_Table], columns: Columns, prefix: str = "", suffix: str = "", **others: object
) -> _Table:
    """A table from the columns that `columns_of` named; `others` are its other fields.

    Raises:
        KeyError: a column is missing.
    """
    return kind(**{name: columns[f"{prefix}{name}{suffix}"] for name in _names(kind)}, **others)


def concatenated(parts: Sequence[_Table], **others: object) -> _Table:
    """The rows of several tables of one kind, in order; `others` are the result's other fields."""
    kind = type(parts[0])
    whole = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _names(kind)}
    return kind(**whole, **others)


def write_columns(path: Path, columns: Columns, metadata: dict[str, str] | None = None) -> None:
    """Write columns to one safetensors file."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    path.write_bytes(save(arrays, metadata))


def read_columns(
    path: Path, build: Callable[[Columns, Mapping[str, str]], _Result], complaint: str
) -> _Result:
    """What `build` makes of the columns and metadata of a safetensors file.

    Raises:
        ReportError: the file is missing or damaged, or `build` refuses it (`KeyError`,
            `ValueError`, `TypeError`); `complaint` says what the file is not.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return build(columns, file.metadata() or {})
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ReportError(f"{path}: {complaint}: {error}") from None
