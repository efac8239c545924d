"""Choice of the reader of an image source: arrays, idx, CIFAR, Parquet tables, folders of pictures.

Readers return `RawImages` in the layout and number type of the file, which `pixels` checks and
converts in parts; pixels stay on disk where possible. Nothing in a file is executed, and its
declared size is checked before memory is allocated.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from purify_audit.core.errors import ImageError
from purify_audit.images.arrays import ARRAY_SUFFIXES, read_arrays
from purify_audit.images.cifar import (
    is_cifar,
    is_cifar100,
    read_cifar,
    read_cifar100,
    read_cifar_bin,
)
from purify_audit.images.idx import is_idx, is_idx_folder, read_idx, read_idx_folder
from purify_audit.images.options import Options
from purify_audit.images.parquet import is_parquet_folder, read_parquet
from purify_audit.images.pictures import holds_pictures, read_folder
from purify_audit.images.stored import RawImages


class _Format(NamedTuple):
    """Recognition, reader and options of one kind of file or folder."""

    matches: Callable[[Path], bool]
    read: Callable[[Path, Options], RawImages]
    options: tuple[str, ...] = ()


def _without_pictures(matches: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """A folder of pictures may contain other files, which are ignored."""
    return lambda path: path.is_dir() and matches(path) and not holds_pictures(path)


def _ends_in(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes


_TABLE = ("label", "image")
_FORMATS = (  # the first match is used
    _Format(is_cifar, lambda path, options: read_cifar(path, options.part == "train"), ("train",)),
    _Format(
        _without_pictures(is_cifar100),
        lambda path, options: read_cifar100(path, options.part == "train", options.coarse),
        ("train", "coarse"),
    ),
    _Format(
        _without_pictures(is_idx_folder),
        lambda path, options: read_idx_folder(path, options.part == "train"),
        ("train",),
    ),
    _Format(_without_pictures(is_parquet_folder), read_parquet, ("train", "validation", *_TABLE)),
    _Format(Path.is_dir, lambda path, _: read_folder(path)),
    _Format(is_idx, lambda path, _: read_idx(path)),
    _Format(
        _ends_in(".bin"), lambda path, options: read_cifar_bin(path, options.coarse), ("coarse",)
    ),
    _Format(_ends_in(".parquet"), read_parquet, _TABLE),
    _Format(_ends_in(*ARRAY_SUFFIXES), lambda path, _: read_arrays(path)),
)
_SUPPORT = {
    "train": "digits and folders of CIFAR-10, CIFAR-100, idx and Parquet files support ':train'",
    "validation": "folders of Parquet files support ':validation'",
    "coarse": "CIFAR-100 supports ':coarse'",
    "label": "Parquet files support ':label=NAME'",
    "image": "Parquet files support ':image=NAME'",
}


def read_source(path: Path, options: Options) -> RawImages:
    """Images of a file or folder of any supported kind.

    Raises:
        ImageError: there is no such file, its kind is unknown or lacks an option, or its reader
            raises it.
    """
    if not path.exists():
        raise ImageError(f"{path}: no such file or folder; the bundled images are named 'digits'")
    for kind in _FORMATS:
        if kind.matches(path):
            for word in options.words:
                if word not in kind.options:
                    raise ImageError(f"{path}: only {_SUPPORT[word]}")
            return kind.read(path, options)
    raise ImageError(
        f"{path}: unknown kind of file; supported are {', '.join(ARRAY_SUFFIXES)}, .bin, .parquet,"
        " idx files such as t10k-images-idx3-ubyte.gz, and folders"
    )
