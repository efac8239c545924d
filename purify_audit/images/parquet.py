"""Image data sets of the Hugging Face Hub: Parquet files whose pictures are PNG or JPEG inside.

Source: https://huggingface.co/docs/hub/datasets-image; a picture is a struct of its encoded `bytes`
and a `path`, which is never opened here.
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
from purify_audit.images.pictures import decode, must_match
from purify_audit.images.stored import InMemory, RawImages

# A table may repeat one value a million times in a few bytes: pyarrow unpacks one batch at a time,
# and a value, being inside a page, is smaller than 2 GiB.
_ROWS_AT_ONCE = 8
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?\.parquet")
_PICTURES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")


class _Table(NamedTuple):
    """One file: how many rows it claims, and which of its columns count."""

    path: Path
    rows: int
    picture: str
    label: str | None


def is_parquet_folder(folder: Path) -> bool:
    """Whether a folder holds Parquet files."""
    return folder.is_dir() and any(_parquet_files(folder))


def read_parquet(path: Path, options: Options) -> RawImages:
    """Images of one Parquet file or of one split of a folder of them: uint8 [n, h, w, c].

    Shards named `SPLIT-00000-of-00002.parquet` are read in their order, those of the split `test`
    unless `options.part` names another; of a folder with other names every file is read, in the
    order of names as text. Pictures are the column `image` or `img`, or else the only one with
    pictures; labels the integers `label`, `labels` or `fine_label`, if any.

    Raises:
        ImageError: pyarrow is not installed, the split or a shard is missing, columns are missing
            or compete, a row holds no picture or no label, or a picture is refused as in a folder
            of pictures.
    """
    parquet = _pyarrow(path)
    files = _shards(path, options.part) if path.is_dir() else [path]
    tables = [_inspect(parquet, file, options) for file in files]
    for table in tables:
        if table[2:] != tables[0][2:]:
            raise ImageError(
                f"{table.path}: has other columns of pictures and labels than {files[0].name};"
                " give one file"
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
        what = "reading Parquet needs pyarrow"
        raise ImageError(f"{path}: {what}; install purify-audit[parquet]") from error
    return parquet


# --- which files --------------------------------------------------------------------------------


def _parquet_files(folder: Path) -> Iterator[Path]:
    shown = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return (p for p in shown if p.suffix.lower() == ".parquet")


def _shards(folder: Path, part: str | None) -> list[Path]:
    """The files of a split in the order of their numbers, all of them there."""
    files = sorted(_parquet_files(folder), key=str)
    for file in files:
        check_inside(folder, file)
    named = {file: match for file in files if (match := _SHARD.fullmatch(file.name))}
    if not named and part is None:
        return files
    for file in files:
        if file not in named:
            what = "is not named as a shard of a split, such as test-00000-of-00001.parquet"
            raise ImageError(f"{file}: {what}; give one file")
    wanted = part or "test"
    shards = {file: match for file, match in named.items() if match[1] == wanted}
    if not shards:
        splits = ", ".join(sorted({match[1] for match in named.values()}))
        raise ImageError(
            f"{folder}: holds no split '{wanted}' but {printable(splits)}; write ':train' or"
            " ':validation' after the folder, or give one file"
        )
    numbers = [(int(match[2]), int(match[3])) for match in shards.values()]
    if numbers != [(k, len(shards)) for k in range(len(shards))]:
        what = f"the shards of split '{wanted}' are not each there once"
        raise ImageError(f"{folder}: {what}; fetch it again, or give one file")
    return list(shards)


# --- which columns ------------------------------------------------------------------------------


def _inspect(parquet: Any, path: Path, options: Options) -> _Table:
    """What the footer of a file says."""
    from pyarrow import types

    with reading(path), parquet.ParquetFile(path) as file:
        rows, schema = file.metadata.num_rows, file.schema_arrow
        struct = {field.name: field.type for field in schema if types.is_struct(field.type)}
    pictures = [n for n, t in struct.items() if min(map(t.get_field_index, ("bytes", "path"))) >= 0]
    integers = [field.name for field in schema if types.is_integer(field.type)]
    usual = [name for name in _PICTURES if name in pictures] or pictures
    picture = _chosen(path, "image", options.image, usual, pictures)
    if picture is None:
        names = ", ".join(map(repr, schema.names[:10])) or "none"
        raise ImageError(
            f"{path}: no column holds pictures (a struct of bytes and path); its columns are"
            f" {printable(names)}"
        )
    usual = [name for name in _LABELS if name in schema.names]
    return _Table(path, rows, picture, _chosen(path, "label", options.label, usual, integers))


def _chosen(
    path: Path, what: str, asked: str | None, usual: list[str], fit: list[str]
) -> str | None:
    """The column asked for, or the only one of the usual ones; none where there is none."""
    if asked is None and len(usual) > 1:
        names = printable(f"'{usual[0]}' and '{usual[1]}'")
        raise ImageError(f"{path}: columns {names} compete; write ':{what}=NAME' after the path")
    name = asked or (usual[0] if usual else None)
    if name is not None and name not in fit:
        kind = "pictures (a struct of bytes and path)" if what == "image" else "whole numbers"
        instead = printable(", ".join(map(repr, fit[:10]))) or "none"
        raise ImageError(
            f"{path}: no column '{printable(name)}' holds {kind}; those that do: {instead};"
            f" write ':{what}=NAME' after the path"
        )
    return name


# --- rows ---------------------------------------------------------------------------------------


def _pictures(
    parquet: Any, tables: Iterable[_Table], labels: list[int]
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Every picture with the place it comes from; appends its label, where there are labels."""
    for table in tables:
        for row, (picture, label) in enumerate(_rows(parquet, table)):
            where = f"{table.path}: row {row}"
            encoded = (picture or {}).get("bytes")
            if not isinstance(encoded, bytes):
                named = printable(str((picture or {}).get("path")))
                raise ImageError(
                    f"{where}: holds no picture but the name '{named}'; such files are not"
                    " opened: save the data set with its pictures embedded"
                )
            if table.label is not None:
                if label is None:
                    raise ImageError(f"{where}: has no label; leave such rows out")
                labels.append(label)
            yield where, decode(where, BytesIO(encoded))


def _rows(parquet: Any, table: _Table) -> Iterator[tuple[Any, Any]]:
    """(struct of bytes and path, label) of every row, a few in memory at once."""
    columns = [name for name in (table.picture, table.label) if name is not None]
    with reading(table.path), parquet.ParquetFile(table.path, pre_buffer=False) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
            for row in range(batch.num_rows):
                cells = [batch.column(name)[row].as_py() for name in columns]
                yield cells[0], cells[1] if len(cells) > 1 else None


def _stack(
    source: Path, n: int, pictures: Iterable[tuple[str, NDArray[np.uint8]]], first_name: str
) -> NDArray[np.uint8]:
    """Pictures [h, w, c], each with the name that messages use, as one array uint8 [n, h, w, c].

    Raises:
        ImageError: there are not n of them, they differ in shape, or together they are too big.
    """
    if not n:
        raise ImageError(f"{source}: holds no pictures")
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
        raise ImageError(f"{source}: holds {row + 1} pictures, not the {n} it claims: damaged")
    return pixels
