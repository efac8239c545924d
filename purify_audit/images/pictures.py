"""PNG and JPEG pictures, and folders of them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from purify_audit.core.errors import ImageError
from purify_audit.images.limits import reading
from purify_audit.images.stored import RawImages, Rows, changed, stamp

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures in one file each, decoded on demand.

    Attributes:
        paths: the files.
        stamps: int64 [n, 2], the `Stamp` of each file when its header was read.
        shape: [n, h, w, c].
    """

    paths: tuple[str, ...]
    stamps: NDArray[np.int64]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """The number type."""
        return np.dtype(np.uint8)

    def read(self, rows: Rows) -> NDArray[np.uint8]:
        """Decode these pictures.

        Raises:
            ImageError: a file cannot be read, or changed since its header was read.
        """
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for n, row in enumerate(rows.tolist()):
            path = self.paths[row]
            with reading(path):
                if stamp(path) != tuple(self.stamps[row]):
                    raise changed(path)
                out[n] = decode(path, Path(path))
        return out


def read_folder(folder: Path) -> RawImages:
    """Images in a folder, sorted by subfolder (the label), then by name: uint8 [n, h, w, c].

    Subfolders are sorted as text ("10" before "2"), as in torchvision's `ImageFolder`. Images
    directly in the folder have no labels. Hidden files and files of other kinds are ignored; EXIF
    orientation is not applied. Only headers are read here: damage after the header raises an error
    on decoding.

    Raises:
        ImageError: no images, images at several depths, an empty class, an unreadable image, an
            image that is neither 8-bit grey nor RGB, or images of several sizes or modes.
    """
    paths, labels = _list_pictures(folder)
    stamps = np.empty((len(paths), 2), np.int64)
    shape: tuple[int, ...] = ()
    for row, path in enumerate(paths):
        with reading(path):
            stamps[row] = stamp(str(path))
        with _picture(path, path) as picture:
            own = _shape(picture)
        shape = shape or own
        must_match(path, own, paths[0].name, shape)
    return RawImages(Pictures(tuple(map(str, paths)), stamps, (len(paths), *shape)), labels)


def holds_pictures(folder: Path) -> bool:
    """Whether PNG or JPEG files are directly in a folder or in its subfolders."""
    return any(_pictures(folder)) or any(any(_pictures(inner)) for inner in _subfolders(folder))


def must_match(
    where: str | Path, shape: tuple[int, ...], first_name: str, first: tuple[int, ...]
) -> None:
    """Reject a picture [h, w, c] whose shape differs from that of the first, with an ImageError."""
    if shape != first:
        raise ImageError(
            f"{where}: is {list(shape)} (height, width, channels) but {first_name} is"
            f" {list(first)}; all images must have the same size and mode"
        )


def decode(where: str | Path, file: Path | IO[bytes]) -> NDArray[np.uint8]:
    """One PNG or JPEG picture, uint8 [h, w, c].

    Raises:
        ImageError: unreadable, of another kind, of more than 89 million pixels, or neither 8-bit
            grey nor RGB. The message begins with `where`.
    """
    with _picture(where, file) as picture:
        return np.asarray(picture).reshape(_shape(picture))


def _shape(picture: "Picture") -> tuple[int, int, int]:
    """[h, w, c]."""
    return picture.height, picture.width, len(picture.getbands())


@contextmanager
def _picture(where: str | Path, file: Path | IO[bytes]) -> Iterator["Picture"]:
    """A picture whose header has been read and checked; see `decode`."""
    from PIL import Image

    with reading(where), warnings.catch_warnings():
        # Pillow only warns above 89 million pixels; it raises an error above twice as many.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _opened(where, file) as image:
            if image.mode not in ("L", "RGB"):
                raise ImageError(
                    f"{where}: has mode {image.mode}; save it as 8-bit grey (L) or RGB"
                )
            yield image


def _opened(where: str | Path, file: Path | IO[bytes]) -> "Picture":
    """A picture whose header has been read; closes itself as a context."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=("PNG", "JPEG"))
    except UnidentifiedImageError:
        if isinstance(file, Path):
            raise
        # Pillow's message would contain the address of a Python object, different in each run.
        raise ImageError(f"{where}: cannot be read: neither PNG nor JPEG") from None


def _list_pictures(folder: Path) -> tuple[list[Path], NDArray[np.int64] | None]:
    """Paths in the order of their ids, and labels if there are subfolders."""
    direct = sorted(_pictures(folder), key=str)
    classes = sorted(_subfolders(folder), key=str)
    if bool(direct) == bool(classes):
        raise ImageError(
            f"{folder}: contains {len(direct)} PNG or JPEG images and {len(classes)} subfolders;"
            " put images either directly into it or into one subfolder per class"
        )
    if direct:
        return direct, None
    paths, labels = [], []
    for label, subfolder in enumerate(classes):
        inside = sorted(_pictures(subfolder), key=str)
        if not inside:
            raise ImageError(f"{subfolder}: contains no PNG or JPEG images; remove or fill it")
        paths += inside
        labels += [label] * len(inside)
    return paths, np.array(labels)


def _subfolders(folder: Path) -> Iterator[Path]:
    return (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path) -> Iterator[Path]:
    return visible_files(folder, ".png", ".jpg", ".jpeg")


def visible_files(folder: Path, *suffixes: str) -> Iterator[Path]:
    """Files of these suffixes directly in a folder, hidden ones excepted."""
    visible = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return (p for p in visible if p.suffix.lower() in suffixes)
