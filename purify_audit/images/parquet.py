"""Image data sets of the Hugging Face Hub: Parquet files with embedded PNG or JPEG pictures.

Source: https://huggingface.co/docs/hub/datasets-image; a picture is a struct of its encoded `bytes`
and a `path`, which is never opened.
"""

import re
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from purify_audit.core.errors import ImageError
from purify_audit.core.records import printable
from purify_audit.images.limits import check_inside, check_memory, reading
from purify_audit.images.options import Options
from purify_audit.images.pictures import decode, must_match, visible_files
from purify_audit.images.stored import InMemory, RawImages

# A table can repeat one value a million times in a few bytes, so only one small batch is unpacked
# at a time; a value is smaller than a page, and so than 2 GiB.
_ROWS_AT_ONCE = 8
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?\.parquet")
_PICTURES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")


class _Table(NamedTuple):
    """One file: its declared number of rows, and the columns to read."""

    path: Path
    rows: int
    picture: str
    label: str | None


def is_parquet_folder(folder: Path) -> bool:
    """Whether a folder holds Parquet files."""
    return folder.is_dir() and any(_parquet_files(folder))


def read_parquet(path: Path, options: Options) -> RawImages:
    """Images of one Parquet file, or of one split of a folder of them: uint8 [n, h, w, c].

    Shards named `SPLIT-00000-of-00002.parquet` are read in order; the split is `test` unless
    `options.part` names another. If files are named otherwise, all are read, sorted as text.
    Pictures are the column `image` or `img`, or the only column of pictures; labels are the
    integer column `label`, `labels` or `fine_label`, if any.

    Raises:
        ImageError: pyarrow is not installed; the split or a shard is missing; columns are missing
            or ambiguous; a row has no picture or no label; or see `decode` and `must_match`.
    """
    parquet = _pyarrow(path)
    files = _shards(path, options.part) if path.is_dir() else [path]
    tables = [_inspect(parquet, file, options) for file in files]
    for table in tables:
        if table[2:] != tables[0][2:]:
            raise ImageError(
                f"{table.path}: has other columns of pictures and labels than {files[0].name};"
                " name one file"
            )
    labels: list[int] = []
    pictures = _pictures(parquet, tables, labels)
    n = sum(table.rows for table in tables)
    pixels = _stack(path, n, pictures, f"row 0 of {files[0].name}")
    return RawImages(InMemory(pixels), None if tables[0].label is None else np.array(labels))


def _pyarrow(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        message = f"{path}: reading Parquet needs pyarrow; install purify-audit[parquet]"
        raise ImageError(message) from error
    return parquet


# --- which files --------------------------------------------------------------------------------


def _parquet_files(folder: Path) -> Iterator[Path]:
    return visible_files(folder, ".parquet")


def _shards(folder: Path, part: str | None) -> list[Path]:
    """The files of a split in the order of their numbers; none may be missing."""
    files = sorted(_parquet_files(folder), key=str)
    for file in files:
        check_inside(folder, file)
    named = {file: match for file in files if (match := _SHARD.fullmatch(file.name))}
    if not named and part is None:
        return files
    for file in files:
        if file not in named:
            expected = "is not named like a shard of a split, such as test-00000-of-00001.parquet"
            raise ImageError(f"{file}: {expected}; name one file")
    wanted = part or "test"
    shards = {file: match for file, match in named.items() if match[1] == wanted}
    if not shards:
        splits = ", ".join(sorted({match[1] for match in named.values()}))
        raise ImageError(
            f"{folder}: has no split '{wanted}', only {printable(splits)}; append ':train' or"
            " ':validation' to the folder, or name one file"
        )
    numbers = [(int(match[2]), int(match[3])) for match in shards.values()]
    if numbers != [(k, len(shards)) for k in range(len(shards))]:
        fault = f"shards of split '{wanted}' are missing or repeated"
        raise ImageError(f"{folder}: {fault}; download it again, or name one file")
    return list(shards)


# --- which columns ------------------------------------------------------------------------------


def _inspect(parquet: Any, path: Path, options: Options) -> _Table:
    """Read the footer of a file."""
    from pyarrow import types

    with reading(path), parquet.ParquetFile(path) as file:
        rows, schema = file.metadata.num_rows, file.schema_arrow
        struct = {field.name: field.type for field in schema if types.is_struct(field.type)}
    pictures = [n for n, t in struct.items() if min(map(t.get_field_index, ("bytes", "path"))) >= 0]
    integers = [field.name for field in schema if types.is_integer(field.type)]
    candidates = [name for name in _PICTURES if name in pictures] or pictures
    picture = _column(path, "image", options.image, candidates, pictures)
    if picture is None:
        names = ", ".join(map(repr, schema.names[:10])) or "none"
        raise ImageError(
            f"{path}: no column contains pictures (a struct of bytes and path); its columns are"
            f" {printable(names)}"
        )
    candidates = [name for name in _LABELS if name in schema.names]
    return _Table(path, rows, picture, _column(path, "label", options.label, candidates, integers))


def _column(
    path: Path, option: str, requested: str | None, candidates: list[str], fitting: list[str]
) -> str | None:
    """The requested column, or the only candidate, or none."""
    if requested is None and len(candidates) > 1:
        names = printable(f"'{candidates[0]}' and '{candidates[1]}'")
        raise ImageError(f"{path}: columns {names} are ambiguous; append ':{option}=NAME'")
    name = requested or (candidates[0] if candidates else None)
    if name is not None and name not in fitting:
        kind = "pictures (a struct of bytes and path)" if option == "image" else "integers"
        others = printable(", ".join(map(repr, fitting[:10]))) or "none"
        raise ImageError(
            f"{path}: no column '{printable(name)}' of {kind}; there are: {others};"
            f" append ':{option}=NAME'"
        )
    return name


# --- rows ---------------------------------------------------------------------------------------


def _pictures(
    parquet: Any, tables: Iterable[_Table], labels: list[int]
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Every picture with its location for messages; appends its label to `labels`, if any."""
    for table in tables:
        for row, (picture, label) in enumerate(_rows(parquet, table)):
            where = f"{table.path}: row {row}"
            encoded = (picture or {}).get("bytes")
            if not isinstance(encoded, bytes):
                name = printable(str((picture or {}).get("path")))
                raise ImageError(
                    f"{where}: contains no picture but the file name '{name}', which is not"
                    " opened; save the data set with embedded pictures"
                )
            if table.label is not None:
                if label is None:
                    raise ImageError(f"{where}: has no label; remove such rows")
                labels.append(label)
            yield where, decode(where, BytesIO(encoded))


def _rows(parquet: Any, table: _Table) -> Iterator[tuple[Any, Any]]:
    """(struct of bytes and path, label) of every row, a few rows in memory at a time."""
    columns = [name for name in (table.picture, table.label) if name is not None]
    with reading(table.path), parquet.ParquetFile(table.path, pre_buffer=False) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
            for row in range(batch.num_rows):
                cells = [batch.column(name)[row].as_py() for name in columns]
                yield cells[0], cells[1] if len(cells) > 1 else None


def _stack(
    source: Path, n: int, pictures: Iterable[tuple[str, NDArray[np.uint8]]], first_name: str
) -> NDArray[np.uint8]:
    """Stack n pictures [h, w, c], each with its name for messages: uint8 [n, h, w, c]."""
    if not n:
        raise ImageError(f"{source}: contains no pictures")
    pixels: NDArray[np.uint8] | None = None
    row = -1
    for row, (where, picture) in enumerate(pictures):
        if pixels is None:
            check_memory(source, (n, *picture.shape), 1)
            pixels = np.empty((n, *picture.shape), np.uint8)
        must_match(where, picture.shape, first_name, pixels.shape[1:])
        if row < n:
            pixels[row] = picture
    if pixels is None or row + 1 != n:
        raise ImageError(f"{source}: contains {row + 1} pictures, not the declared {n}: damaged")
    return pixels
