"""Files of images as others write them: arrays, idx, CIFAR, Parquet tables, folders of pictures.

Readers return `RawImages` in the file's own layout and number type, which `pixels` checks and
converts, a part at a time; pixels stay in the file where they can. Nothing in a file is executed,
and the size it claims is checked before memory is taken.
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
from purify_audit.images.limits import check_memory, reading
from purify_audit.images.options import Options, split_source
from purify_audit.images.parquet import is_parquet_folder, read_parquet
from purify_audit.images.pictures import holds_pictures, read_folder
from purify_audit.images.pixels import Pixels, from_array, from_stored
from purify_audit.images.stored import RawImages

__all__ = [
    "Options",
    "Pixels",
    "RawImages",
    "check_memory",
    "from_array",
    "from_stored",
    "is_cifar",
    "read_arrays",
    "read_cifar",
    "read_cifar_bin",
    "read_folder",
    "read_source",
    "reading",
    "split_source",
]


class _Format(NamedTuple):
    """How to know a kind of file or folder, how to read it, and the options it has."""

    fits: Callable[[Path], bool]
    read: Callable[[Path, Options], RawImages]
    options: tuple[str, ...] = ()


def _without_pictures(fits: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """Pictures come first: a folder of them may hold other files, which are ignored."""
    return lambda path: path.is_dir() and fits(path) and not holds_pictures(path)


def _ends_in(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes


_TABLE = ("label", "image")
_FORMATS = (  # in this order
    _Format(is_cifar, lambda path, asked: read_cifar(path, asked.part == "train"), ("train",)),
    _Format(
        _without_pictures(is_cifar100),
        lambda path, asked: read_cifar100(path, asked.part == "train", asked.coarse),
        ("train", "coarse"),
    ),
    _Format(
        _without_pictures(is_idx_folder),
        lambda path, asked: read_idx_folder(path, asked.part == "train"),
        ("train",),
    ),
    _Format(_without_pictures(is_parquet_folder), read_parquet, ("train", "validation", *_TABLE)),
    _Format(Path.is_dir, lambda path, _: read_folder(path)),
    _Format(is_idx, lambda path, _: read_idx(path)),
    _Format(_ends_in(".bin"), lambda path, asked: read_cifar_bin(path, asked.coarse), ("coarse",)),
    _Format(_ends_in(".parquet"), read_parquet, _TABLE),
    _Format(_ends_in(*ARRAY_SUFFIXES), lambda path, _: read_arrays(path)),
)
_HAVE = {
    "train": "digits and CIFAR-10 folders have a part ':train', as have folders of CIFAR-100,"
    " idx and Parquet files",
    "validation": "folders of Parquet files have a part ':validation'",
    "coarse": "CIFAR-100 has labels ':coarse'",
    "label": "Parquet files take ':label=NAME'",
    "image": "Parquet files take ':image=NAME'",
}


def read_source(path: Path, asked: Options) -> RawImages:
    """Images of a file or a folder of any kind that there is a reader for.

    Raises:
        ImageError: there is no such file, its kind is not known or has no such options, or the
            reader refuses it.
    """
    if not path.exists():
        raise ImageError(f"{path}: no such file or folder; bundled images are called 'digits'")
    for kind in _FORMATS:
        if kind.fits(path):
            for word in asked.words:
                if word not in kind.options:
                    raise ImageError(f"{path}: only {_HAVE[word]}")
            return kind.read(path, asked)
    raise ImageError(
        f"{path}: is none of {', '.join(ARRAY_SUFFIXES)} and .bin, .parquet, or an idx file such as"
        " t10k-images-idx3-ubyte.gz; give one of these, or a folder"
    )
