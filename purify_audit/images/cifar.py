"""CIFAR-10 and CIFAR-100, in the Python and the binary version.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009); the layouts
are those of https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from io import BytesIO
from pathlib import Path
from pickle import Unpickler, UnpicklingError  # noqa: TID251 - CIFAR comes as pickles
from pickletools import genops
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from purify_audit.core.errors import ImageError
from purify_audit.images.limits import check_inside, reading
from purify_audit.images.stored import InFile, InMemory, Joined, RawImages, Stored, stamp

_SHAPE = (3, 32, 32)
_PARTS = ("test", "train")  # files of CIFAR-100
_TEST, _TRAIN = ("test_batch",), tuple(f"data_batch_{k}" for k in range(1, 6))


class _Labels(NamedTuple):
    """Location of the labels: key of the pickle, byte of a binary record."""

    data_set: str
    key: str
    byte: int
    label_bytes: int  # of a record, before 3 x 32 x 32 bytes of pixels
    kind: str
    classes: int

    @property
    def record(self) -> int:
        return self.label_bytes + 3072


_TEN = _Labels("CIFAR-10", "labels", 0, 1, "CIFAR-10's", 10)
_FINE = _Labels("CIFAR-100", "fine_labels", 1, 2, "CIFAR-100's", 100)
_COARSE = _Labels("CIFAR-100", "coarse_labels", 0, 2, "CIFAR-100's coarse", 20)


def is_cifar(folder: Path) -> bool:
    """Whether a folder contains CIFAR-10 batches, in the Python or the binary version."""
    return _holds(folder, _TEST + _TRAIN, ("", ".bin"))


def is_cifar100(folder: Path) -> bool:
    """Whether a folder contains `test` and `train` files, in the Python or the binary version."""
    return _holds(folder, _PARTS, ("", ".bin"))


def _holds(folder: Path, names: tuple[str, ...], suffixes: tuple[str, ...]) -> bool:
    return any((folder / f"{name}{suffix}").is_file() for name in names for suffix in suffixes)


def read_cifar(folder: Path, train: bool) -> RawImages:
    """The test batch, or all five training batches in order: uint8 [n, 3, 32, 32].

    Raises:
        ImageError: a batch is missing, damaged, not CIFAR-10, or a pickle that names a function.
    """
    names = _TRAIN if train else _TEST
    batches = [_read(_file(folder, name, _TEST + _TRAIN, _TEN), _TEN) for name in names]
    pixels, labels, _ = zip(*batches, strict=True)
    return RawImages(Joined(pixels), np.concatenate(labels))


def read_cifar100(folder: Path, train: bool, coarse: bool) -> RawImages:
    """The test or training set, with 100 fine or 20 coarse classes: uint8 [n, 3, 32, 32].

    Raises:
        ImageError: the file is missing, a link out of the folder, damaged, not CIFAR-100, or a
            pickle that names a function.
    """
    labels = _COARSE if coarse else _FINE
    path = _file(folder, "train" if train else "test", _PARTS, labels)
    check_inside(folder, path)
    return _read(path, labels)


def _file(folder: Path, name: str, names: tuple[str, ...], labels: _Labels) -> Path:
    """A file of a data set in the Python version, or in the binary one if there is no other."""
    path = folder / (name if _holds(folder, names, ("",)) else f"{name}.bin")
    if not path.is_file():
        raise ImageError(f"{path}: is missing; unpack {labels.data_set} again")
    return path


def _read(path: Path, labels: _Labels) -> RawImages:
    return _read_binary(path, labels) if path.suffix == ".bin" else _read_pickle(path, labels)


def read_cifar_bin(path: Path, coarse: bool = False) -> RawImages:
    """One file of the binary version of CIFAR-10 or CIFAR-100: uint8 [n, 3, 32, 32].

    The name and the length of the file determine which; `coarse` is for CIFAR-100 only.

    Raises:
        ImageError: unreadable, not whole records, ambiguous between the two data sets, or a label
            out of range.
    """
    with reading(path):
        labels = _kind(path, path.stat().st_size)
    if coarse and labels is _TEN:
        raise ImageError(f"{path}: CIFAR-10 has no coarse labels; remove ':coarse'")
    return _read_binary(path, _COARSE if coarse else labels)


def _kind(path: Path, size: int) -> _Labels:
    """The data set of a single binary file."""
    if path.stem in _TEST + _TRAIN:
        return _TEN
    ten, hundred = (size > 0 and size % labels.record == 0 for labels in (_TEN, _FINE))
    if path.stem in _PARTS:
        return _TEN if ten and not hundred else _FINE
    if ten and hundred:
        raise ImageError(
            f"{path}: {size} bytes are whole records of CIFAR-10 and of CIFAR-100; name it"
            " 'test_batch.bin' if it is CIFAR-10, 'test.bin' if it is CIFAR-100"
        )
    return _FINE if hundred else _TEN


def _read_binary(path: Path, labels: _Labels) -> RawImages:
    """Records of one label (CIFAR-10), or a coarse and a fine one (CIFAR-100), and pixels."""
    with reading(path):
        opened = stamp(str(path))
    n, rest = divmod(opened.size, labels.record)
    if not n or rest:
        records = f"{labels.data_set} records of {labels.record}"
        raise ImageError(f"{path}: {opened.size} bytes are not whole {records}")
    byte, record, before = np.dtype(np.uint8), labels.record, labels.label_bytes
    values = InFile(path, opened, labels.byte, (n,), byte, record - 1).read(np.arange(n))
    return _batch(path, InFile(path, opened, before, (n, *_SHAPE), byte, before), values, labels)


def _batch(path: Path, pixels: Stored, values: NDArray[Any], labels: _Labels) -> RawImages:
    wrong = np.flatnonzero((values < 0) | (values >= labels.classes))
    if len(wrong):
        where = f"{path}: label {values[wrong[0]]} of row {wrong[0]}"
        raise ImageError(f"{where} is not one of {labels.kind} 0..{labels.classes - 1}")
    return RawImages(pixels, values)


class _Inert:
    """A stand-in for a callable in a pickle: keeps the arguments and runs nothing."""

    def __init__(self, *args: Any) -> None:
        self.args, self.state = args, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Bytes(_Inert):
    """A stand-in for `_codecs.encode`, with which Python 3 writes bytes in pickle protocol 2."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> Any:
        return text.encode("latin1")


_REBUILD = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_STAND_INS = dict.fromkeys((*_REBUILD, "numpy.ndarray", "numpy.dtype"), _Inert)
_STAND_INS |= dict.fromkeys(("_codecs.encode", "__builtin__.bytes"), _Bytes)


class _Restricted(Unpickler):
    """Builds numbers, text, lists and dicts; callables are replaced by stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _STAND_INS:
            raise UnpicklingError(f"the pickle names '{full}', which could run code")
        return _STAND_INS[full]


def _read_pickle(path: Path, kind: _Labels) -> RawImages:
    with reading(path):
        data = path.read_bytes()
        puts = (argument or 0 for opcode, argument, _ in genops(data) if "PUT" in opcode.name)
        if max(puts, default=0) > len(data):  # the memo is an array as long as its largest index
            raise UnpicklingError("the pickle declares more objects than it has bytes")
        batch = _Restricted(BytesIO(data), encoding="bytes").load()
        fields = {k.decode() if isinstance(k, bytes) else k: v for k, v in dict(batch).items()}
        labels = np.array(fields.get(kind.key))
        match fields.get("data"):  # ndarray.__reduce__: version, shape, dtype, is Fortran, bytes
            case _Inert(state=(_, (_, 3072) as shape, _Inert(args=("u1" | b"u1", *_)), order, raw)):
                pixels = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if order else "C")
            case _:
                raise ImageError(f"{path}: 'data' is not an array of uint8 [n, 3072]")
        if labels.shape != pixels.shape[:1] or labels.dtype.kind != "i":
            raise ImageError(f"{path}: '{kind.key}' is not one integer per image")
    return _batch(path, InMemory(pixels.reshape(-1, *_SHAPE)), labels, kind)
