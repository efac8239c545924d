"""PNG and JPEG pictures: one at a time, and folders of them."""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from purify_audit.errors import ImageError
from purify_audit.image_formats.raw import RawImages, check_memory, reading

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


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
    named = ((str(path), decode(path, path)) for path in paths)
    return RawImages(stack(folder, len(paths), named, paths[0].name), labels)


def holds_pictures(folder: Path) -> bool:
    """Whether PNG or JPEG files are directly in a folder or in its subfolders."""
    return any(_pictures(folder)) or any(any(_pictures(inner)) for inner in _subfolders(folder))


def stack(
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
        if picture.shape != pixels.shape[1:]:
            raise ImageError(
                f"{where}: is {list(picture.shape)} (height, width, channels) but {first_name} is"
                f" {list(pixels.shape[1:])}; all images must have one size and one mode"
            )
        if row < n:
            pixels[row] = picture
    if pixels is None or row + 1 != n:
        raise ImageError(f"{source}: holds {row + 1} pictures, not the {n} it claims: damaged")
    return pixels


def decode(where: str | Path, file: Path | IO[bytes]) -> NDArray[np.uint8]:
    """One PNG or JPEG picture, uint8 [h, w, c].

    Raises:
        ImageError: unreadable, of another kind, of more than 89 million pixels, or neither 8-bit
            grey nor RGB. It begins with `where`.
    """
    from PIL import Image

    with reading(where), warnings.catch_warnings():
        # Pillow only warns about images of more than 89 million pixels, and refuses twice as many.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _opened(where, file) as image:
            if image.mode not in ("L", "RGB"):
                raise ImageError(
                    f"{where}: has mode {image.mode}; save it as 8-bit grey (L) or RGB"
                )
            return np.asarray(image).reshape(image.height, image.width, -1)


def _opened(where: str | Path, file: Path | IO[bytes]) -> "Picture":
    """A picture whose header has been read."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=("PNG", "JPEG"))
    except UnidentifiedImageError:
        if isinstance(file, Path):
            raise
        # Pillow's message would name the Python object, at an address that no two runs share.
        raise ImageError(f"{where}: cannot be read: neither PNG nor JPEG") from None


def _list_pictures(folder: Path) -> tuple[list[Path], NDArray[np.int64] | None]:
    """Paths in the order of their ids, and their labels where there are subfolders."""
    direct = sorted(_pictures(folder), key=str)
    classes = sorted(_subfolders(folder), key=str)
    if bool(direct) == bool(classes):
        raise ImageError(
            f"{folder}: holds {len(direct)} PNG or JPEG images and {len(classes)} subfolders; put"
            " images either directly into it or into one subfolder for each class"
        )
    if direct:
        return direct, None
    paths, labels = [], []
    for label, subfolder in enumerate(classes):
        inside = sorted(_pictures(subfolder), key=str)
        if not inside:
            raise ImageError(f"{subfolder}: holds no PNG or JPEG images; remove it or fill it")
        paths += inside
        labels += [label] * len(inside)
    return paths, np.array(labels)


def _subfolders(folder: Path) -> Iterator[Path]:
    return (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path) -> Iterator[Path]:
    shown = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return (p for p in shown if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
