"""Files of images as others write them: arrays, CIFAR-10 in both its versions, folders of pictures.

Readers return `RawImages` in the file's own layout and number type, for `purify_audit.images` to
check. Nothing in a file is executed, and the size it claims is checked before memory is taken.
"""

import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from math import prod
from pathlib import Path
from pickle import Unpickler, UnpicklingError  # noqa: TID251 - CIFAR-10 comes as pickles
from pickletools import genops
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from purify_audit.errors import ImageError

_MAX_BYTES = 16 * 2**30  # of memory for one array, after conversion to float32
_KEYS = (("x", "images", "data"), ("y", "labels"), ("idx", "ids"))
_RECORD = 3073  # CIFAR-10's binary version: one byte of label, then 3 x 32 x 32 bytes of pixels
_CIFAR_TEST, _CIFAR_TRAIN = ("test_batch",), tuple(f"data_batch_{k}" for k in range(1, 6))


class RawImages(NamedTuple):
    """What a file holds: images in any layout and number type, perhaps labels, perhaps ids."""

    pixels: NDArray[Any]
    labels: NDArray[Any] | None = None
    ids: NDArray[Any] | None = None


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Turn whatever a parser raises over a damaged or hostile file into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and PIL promise no list of what they raise
        text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise ImageError(f"{where}: cannot be read: {text.splitlines()[0][:200]}") from error


def _check_memory(where: str | Path, shape: tuple[int, ...], item_bytes: int) -> None:
    needed = prod(shape) * max(item_bytes, 4)
    if needed > _MAX_BYTES:
        raise ImageError(
            f"{where}: shape {list(shape)} would take {needed / 2**30:.0f} GiB of memory, more than"
            f" the {_MAX_BYTES / 2**30:.0f} GiB allowed; give fewer images"
        )


# --- arrays -------------------------------------------------------------------------------------


def read_arrays(path: Path) -> RawImages:
    """Images from a `.npy`, `.npz` or `.safetensors` file; pickled objects are never loaded.

    In the latter two, images are the array `x`, `images` or `data`; labels `y` or `labels`; ids
    `idx` or `ids`; other arrays are ignored.

    Raises:
        ImageError: no array of images or several, or one that is damaged or too big. Anything
            else that a damaged file may cause is for `reading` to catch.
    """
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as archive:
            return _read_npz(path, archive)
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        return RawImages(_read_npy(file, path.stat().st_size, str(path)))


def _named(path: Path, keys: Collection[str], read: Callable[[str], NDArray[Any]]) -> RawImages:
    """The arrays of images, labels and ids among `keys`."""
    chosen = [[name for name in names if name in keys] for names in _KEYS]
    for found in chosen:
        if len(found) > 1:
            raise ImageError(f"{path}: arrays '{found[0]}' and '{found[1]}' compete; keep one")
    if not chosen[0]:
        held = ", ".join(map(repr, sorted(keys)[:10])) or "nothing"
        raise ImageError(f"{path}: no array is named 'x', 'images' or 'data'; it holds {held}")
    labels, ids = (read(found[0]) if found else None for found in chosen[1:])
    return RawImages(read(chosen[0][0]), labels, ids)


def _read_npz(path: Path, archive: zipfile.ZipFile) -> RawImages:
    members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}

    def read(name: str) -> NDArray[Any]:
        where = f"{path}: array '{name}'"
        with reading(where), archive.open(members[name]) as file:
            return _read_npy(file, members[name].file_size, where)

    return _named(path, members, read)


def _read_npy(file: IO[bytes], size: int, where: str) -> NDArray[Any]:
    """One array in numpy's format, its header checked against the `size` in bytes it comes in."""
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ImageError(f"{where}: holds Python objects; save plain numbers instead")
    _check_memory(where, shape, dtype.itemsize)
    declared, present = prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or declared > present:
        what = f"shape {list(shape)} of {dtype} needs {declared} bytes but {present} are there"
        raise ImageError(f"{where}: {what}: truncated or damaged")
    file.seek(0)
    return np.asarray(np.load(file, allow_pickle=False))


def _read_safetensors(path: Path) -> RawImages:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:

        def read(name: str) -> NDArray[Any]:
            where = f"{path}: array '{name}'"
            with reading(where):
                _check_memory(where, tuple(file.get_slice(name).get_shape()), 4)
                return np.asarray(file.get_tensor(name))

        return _named(path, list(file.keys()), read)


# --- CIFAR-10 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html) --------------------


def is_cifar(folder: Path, endings: tuple[str, ...] = ("", ".bin")) -> bool:
    """Whether a folder holds CIFAR-10 batches: the Python version, or the binary one (".bin")."""
    return any((folder / f"{n}{e}").is_file() for n in _CIFAR_TEST + _CIFAR_TRAIN for e in endings)


def read_cifar(folder: Path, train: bool) -> RawImages:
    """The test batch, or all five training batches in their order: uint8 [n, 3, 32, 32].

    Raises:
        ImageError: a batch is missing, damaged, not CIFAR-10, or a pickle that names a function.
    """
    read, end = (_read_cifar_pickle, "") if is_cifar(folder, ("",)) else (read_cifar_bin, ".bin")
    batches = []
    for name in _CIFAR_TRAIN if train else _CIFAR_TEST:
        path = folder / f"{name}{end}"
        if not path.is_file():
            raise ImageError(f"{path}: is missing; unpack CIFAR-10 again")
        batches.append(read(path))
    pixels, labels, _ = zip(*batches, strict=True)
    return RawImages(np.concatenate(pixels), np.concatenate(labels))


def read_cifar_bin(path: Path) -> RawImages:
    """One file of CIFAR-10's binary version: uint8 [n, 3, 32, 32].

    Raises:
        ImageError: unreadable, not whole records, or a label above 9.
    """
    with reading(path):
        size = path.stat().st_size
        if not size or size % _RECORD:
            raise ImageError(f"{path}: {size} bytes are not whole CIFAR-10 records of {_RECORD}")
        records = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, _RECORD)
    return _cifar_batch(path, records[:, 1:], records[:, 0])


def _cifar_batch(path: Path, pixels: NDArray[np.uint8], labels: NDArray[Any]) -> RawImages:
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if len(wrong):
        where = f"{path}: label {labels[wrong[0]]} of row {wrong[0]}"
        raise ImageError(f"{where} is not one of CIFAR-10's 0..9")
    return RawImages(pixels.reshape(-1, 3, 32, 32), labels)


class _Inert:
    """Stands in for what a pickle calls: keeps the arguments and runs nothing."""

    def __init__(self, *args: Any) -> None:
        self.args, self.state = args, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Bytes(_Inert):
    """Stands in for `_codecs.encode`, by which Python 3 writes bytes in pickle protocol 2."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> Any:
        return text.encode("latin1")


_REBUILD = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_STAND_INS = dict.fromkeys((*_REBUILD, "numpy.ndarray", "numpy.dtype"), _Inert)
_STAND_INS |= dict.fromkeys(("_codecs.encode", "__builtin__.bytes"), _Bytes)


class _Restricted(Unpickler):
    """Builds numbers, text, lists and dicts; a pickle gets stand-ins and never a real function."""

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in _STAND_INS:
            raise UnpicklingError(f"the pickle asks for '{wanted}', which could run code")
        return _STAND_INS[wanted]


def _read_cifar_pickle(path: Path) -> RawImages:
    with reading(path):
        data = path.read_bytes()
        kept = (argument or 0 for opcode, argument, _ in genops(data) if "PUT" in opcode.name)
        if max(kept, default=0) > len(data):  # the memo is an array as long as its largest index
            raise UnpicklingError("the pickle claims to hold more objects than it has bytes")
        batch = _Restricted(BytesIO(data), encoding="bytes").load()
        fields = {k.decode() if isinstance(k, bytes) else k: v for k, v in dict(batch).items()}
        labels = np.array(fields.get("labels"))
        match fields.get("data"):  # ndarray.__reduce__: version, shape, dtype, is Fortran, bytes
            case _Inert(state=(_, (_, 3072) as shape, _Inert(args=("u1" | b"u1", *_)), order, raw)):
                pixels = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if order else "C")
            case _:
                raise ImageError(f"{path}: 'data' is not an array of uint8 [n, 3072]")
        if labels.shape != pixels.shape[:1] or labels.dtype.kind != "i":
            raise ImageError(f"{path}: 'labels' is not one whole number for each image")
    return _cifar_batch(path, pixels, labels)


# --- folders of PNG or JPEG images --------------------------------------------------------------


def read_folder(folder: Path) -> RawImages:
    """Images in a folder, sorted by subfolder (the label), then by name: uint8 [n, h, w, c].

    Class 0 is the first subfolder in the order of names as text ("10" comes before "2"), as in
    torchvision's `ImageFolder`. Images directly in the folder have no labels. Hidden files and
    files of other kinds are ignored; an orientation noted in the file is not applied.

    Raises:
        ImageError: no images, images at several depths, an empty class, an unreadable image, one
            that is neither 8-bit grey nor RGB, or images of several sizes or modes.
    """
    paths, labels = _list_pictures(folder)
    first = _decode(paths[0])
    _check_memory(folder, (len(paths), *first.shape), 1)
    pixels = np.empty((len(paths), *first.shape), np.uint8)
    for row, path in enumerate(paths):
        picture = _decode(path)
        if picture.shape != first.shape:
            raise ImageError(
                f"{path}: is {list(picture.shape)} (height, width, channels) but {paths[0].name} is"
                f" {list(first.shape)}; all images must have one size and one mode"
            )
        pixels[row] = picture
    return RawImages(pixels, labels)


def _list_pictures(folder: Path) -> tuple[list[Path], NDArray[np.int64] | None]:
    """Paths in the order of their ids, and their labels where there are subfolders."""
    direct = _pictures(folder)
    shown = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    classes = sorted(shown, key=str)
    if bool(direct) == bool(classes):
        raise ImageError(
            f"{folder}: holds {len(direct)} PNG or JPEG images and {len(classes)} subfolders; put"
            " images either directly into it or into one subfolder for each class"
        )
    if direct:
        return direct, None
    paths, labels = [], []
    for label, subfolder in enumerate(classes):
        inside = _pictures(subfolder)
        if not inside:
            raise ImageError(f"{subfolder}: holds no PNG or JPEG images; remove it or fill it")
        paths += inside
        labels += [label] * len(inside)
    return paths, np.array(labels)


def _pictures(folder: Path) -> list[Path]:
    shown = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return sorted((p for p in shown if p.suffix.lower() in (".png", ".jpg", ".jpeg")), key=str)


def _decode(path: Path) -> NDArray[np.uint8]:
    """One image, uint8 [h, w, c]."""
    from PIL import Image

    with reading(path), warnings.catch_warnings():
        # Pillow only warns about images of more than 89 million pixels, and refuses twice as many.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.mode not in ("L", "RGB"):
                raise ImageError(f"{path}: has mode {image.mode}; save it as 8-bit grey (L) or RGB")
            return np.asarray(image).reshape(image.height, image.width, -1)
