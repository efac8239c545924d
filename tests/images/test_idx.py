"""MNIST's idx files: the real ones, the pairing of images with labels, and damaged ones."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from purify_audit.core.errors import ImageError
from purify_audit.images.image_set import load_images, restrict

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_mnist = pytest.mark.skipif(
    not (SHARED / "mnist_t10k-images-idx3-ubyte.gz").is_file(), reason="MNIST is not here"
)

PIXELS = np.random.default_rng(11).integers(0, 256, (6, 5, 4), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9], np.uint8)
EXPECTED = PIXELS[:, None].astype(np.float32) / np.float32(255)


def idx(array, kind=0x08, shape=None):
    """The bytes of an idx file, as the page about MNIST describes them."""
    shape = array.shape if shape is None else shape
    head = bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return head + array.tobytes()


def store(path, content):
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return str(path)


def pair(folder, images="t10k-images-idx3-ubyte", labels="t10k-labels-idx1-ubyte", first=0):
    store(folder / labels, idx(np.roll(LABELS, -first)))
    return store(folder / images, idx(np.roll(PIXELS, -first, 0)))


# --- the published files ------------------------------------------------------------------------


@needs_mnist
def test_mnist_test_set():
    images = load_images(str(SHARED / "mnist_t10k-images-idx3-ubyte.gz"))
    assert images.pixels.shape == (10_000, 1, 28, 28)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # published: of each digit
    assert np.bincount(images.labels).tolist() == counts
    assert images.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert images.pixels.mean(dtype=np.float64) == pytest.approx(0.1325, abs=5e-5)  # published
    assert load_images(str(SHARED)).digest == images.digest  # its name begins with "mnist_"


@needs_mnist
def test_mnist_training_labels_and_pixels_written_as_idx(tmp_path):
    """Two sources agree: an array file of the training set, and the original file of labels."""
    with np.load(SHARED / "mnist_train_60000.npz") as arrays:
        pixels, labels = arrays["x"], arrays["y"]
    store(tmp_path / "train-images-idx3-ubyte", idx(pixels))
    original = (SHARED / "mnist_train-labels-idx1-ubyte.gz").read_bytes()
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(original)
    images = load_images(f"{tmp_path}:train")
    assert len(images) == 60_000
    assert np.array_equal(images.labels, labels)
    assert restrict(images, 7, 8).pixels[0, 0, 14].tolist() == pytest.approx(pixels[7, 14] / 255)


# --- files and their labels ---------------------------------------------------------------------

NAMES = {
    "plain": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    "gzipped": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "one gzipped": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"),
    "other gzipped": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"),
    "dots": ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"),
    "dot and dash": ("t10k-images.idx3-ubyte", "t10k-labels-idx1-ubyte"),
    "prefix": ("mnist_t10k-images-idx3-ubyte.gz", "mnist_t10k-labels-idx1-ubyte.gz"),
    "emnist": ("emnist-letters-test-images-idx3-ubyte", "emnist-letters-test-labels-idx1-ubyte"),
}


@pytest.mark.parametrize("case", NAMES)
def test_labels_are_found_by_the_name_of_the_images(tmp_path, case):
    store(tmp_path / "other-labels-idx1-ubyte", idx(LABELS[:2]))
    source = pair(tmp_path, *NAMES[case])
    images = load_images(source)
    assert np.array_equal(images.pixels, EXPECTED)
    assert images.labels.tolist() == LABELS.tolist()
    assert images.ids.tolist() == list(range(6))
    assert images.source == source


def test_labels_of_the_very_same_name_win(tmp_path):
    store(tmp_path / "t10k-labels-idx1-ubyte.gz", idx(LABELS[::-1]))
    assert load_images(pair(tmp_path)).labels.tolist() == LABELS.tolist()


def test_images_without_labels(tmp_path):
    assert load_images(store(tmp_path / "t10k-images-idx3-ubyte", idx(PIXELS))).labels is None
    store(tmp_path / "labels-idx1-ubyte", idx(LABELS))  # not by its name
    assert load_images(store(tmp_path / "mine-idx3-ubyte.gz", idx(PIXELS))).labels is None


def test_three_images_are_not_taken_for_one(tmp_path):
    """[3, h, w] means one image in an array file, but an idx header says what its axes are."""
    source = store(tmp_path / "t10k-images-idx3-ubyte", idx(PIXELS[:3]))
    assert load_images(source).pixels.shape == (3, 1, 5, 4)


def test_a_name_does_not_decide_whether_a_file_is_gzipped(tmp_path):
    """Some downloads arrive unpacked under the name of the packed file, or the other way."""
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(idx(PIXELS))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(gzip.compress(idx(LABELS)))
    images = load_images(str(tmp_path / "t10k-images-idx3-ubyte.gz"))
    assert np.array_equal(images.pixels, EXPECTED)
    assert images.labels.tolist() == LABELS.tolist()


# --- folders ------------------------------------------------------------------------------------


def test_a_folder_holds_a_test_and_a_training_set(tmp_path):
    pair(tmp_path)
    pair(tmp_path, "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", first=2)
    assert load_images(str(tmp_path)).labels.tolist() == LABELS.tolist()
    train = load_images(f"{tmp_path}:train")
    assert train.labels.tolist() == [4, 1, 5, 9, 3, 1]
    assert np.array_equal(train.pixels, np.roll(EXPECTED, -2, 0))
    assert train.source == f"{tmp_path}:train"


def test_of_a_file_and_its_gz_the_file_is_read(tmp_path):
    """torchvision keeps both."""
    pair(tmp_path)
    pair(tmp_path, "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", first=1)
    assert load_images(str(tmp_path)).labels.tolist() == LABELS.tolist()


def test_a_set_that_is_missing_from_a_folder(tmp_path):
    pair(tmp_path, "train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    message = "has no t10k-images-idx3-ubyte; download it, or append ':train' to the folder"
    with pytest.raises(ImageError, match=f"^{re.escape(f'{tmp_path}: {message}')}$"):
        load_images(str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "t10k-images-idx3-ubyte")
    with pytest.raises(ImageError, match=r"has no train-images-idx3-ubyte; download it$"):
        load_images(f"{tmp_path}:train")


def test_two_data_sets_in_one_folder(tmp_path):
    pair(tmp_path, "mnist_t10k-images-idx3-ubyte", "mnist_t10k-labels-idx1-ubyte")
    pair(tmp_path, "fashion_t10k-images-idx3-ubyte", "fashion_t10k-labels-idx1-ubyte")
    message = (
        "'fashion_t10k-images-idx3-ubyte' and 'mnist_t10k-images-idx3-ubyte' are ambiguous; name"
    )
    with pytest.raises(ImageError, match=message):
        load_images(str(tmp_path))


def test_pictures_beside_idx_files_come_first(tmp_path):
    """A folder of pictures is read as before, whatever else is in it."""
    image = pytest.importorskip("PIL.Image")
    pair(tmp_path)
    (tmp_path / "cat").mkdir()
    image.fromarray(PIXELS[0]).save(tmp_path / "cat" / "a.png")
    assert load_images(str(tmp_path)).pixels.shape == (1, 1, 5, 4)


def test_links_that_leave_the_folder_are_refused(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    images = inside / "t10k-images-idx3-ubyte"
    labels = inside / "t10k-labels-idx1-ubyte"
    pair(outside)
    labels.symlink_to(outside / labels.name)
    store(images, idx(PIXELS))
    for source in (inside, images):
        with pytest.raises(ImageError, match="labels-idx1-ubyte: is a link that leaves its folder"):
            load_images(str(source))
    labels.unlink()
    images.unlink()
    images.symlink_to(outside / images.name)
    with pytest.raises(ImageError, match="images-idx3-ubyte: is a link that leaves its folder;"):
        load_images(str(inside))
    assert load_images(str(images)).labels is None  # this file was asked for by name
    images.unlink()
    images.symlink_to(store(inside / "kept", idx(PIXELS)))
    assert len(load_images(str(inside))) == 6


# --- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "empty": (b"", "does not begin like an idx file; download it again"),
    "page": (b"<html>not found</html>", "does not begin like an idx file"),
    "little-endian": (b"\x03\x08\0\0" + bytes(140), "does not begin like an idx file"),
    "unknown type": (idx(PIXELS, 0x07), "does not begin like an idx file"),
    "labels": (idx(LABELS), "contains uint8 on 1 axis; images are uint8 on 3 axes"),
    "colour": (idx(PIXELS[:, None]), "contains uint8 on 4 axes; images are uint8 on 3 axes"),
    "int32": (idx(PIXELS.astype(">i4"), 0x0C), "contains int32 on 3 axes; images are uint8"),
    "float64": (idx(PIXELS.astype(">f8"), 0x0E), "contains float64 on 3 axes; images are uint8"),
    "header": (idx(PIXELS)[:9], "ends within its header: truncated or damaged"),
    "truncated": (
        idx(PIXELS)[:-1],
        r"shape \[6, 5, 4\] needs 120 bytes but fewer are present: trun",
    ),
    "trailing": (idx(PIXELS) + b"\0", "needs 120 bytes but more are present: truncated or damaged"),
    "absurd": (idx(PIXELS, shape=(2**32 - 1,) * 3), "GiB of memory, more than the 16 GiB allowed"),
    "claims": (idx(PIXELS, shape=(10**6, 50, 50)), "needs 2500000000 bytes but fewer are present"),
    "no images": (idx(PIXELS[:0]), r"shape \[0, 1, 5, 4\] contains no images"),
    "no pixels": (idx(PIXELS[:, :0]), r"shape \[6, 1, 0, 4\] contains no images"),
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("case", REFUSED)
def test_refused_files(tmp_path, case, ending):
    content, message = REFUSED[case]
    source = store(tmp_path / f"t10k-images-idx3-ubyte{ending}", content)
    with pytest.raises(ImageError, match=message) as caught:
        load_images(source)
    assert str(caught.value).startswith(f"{source}: ")
    assert "\n" not in str(caught.value)


def test_a_truncated_gzip_file(tmp_path):
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    store(path, idx(PIXELS))
    whole = path.read_bytes()
    for kept in (3, 15, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ImageError, match=r"\.gz: cannot be read: Compressed file ended before"):
            load_images(str(path))
    path.write_bytes(whole[:-8] + bytes(4) + whole[-4:])
    with pytest.raises(ImageError, match=r"\.gz: cannot be read: CRC check failed"):
        load_images(str(path))


@pytest.fixture
def sizes_read(monkeypatch):
    """How many bytes were asked of gzip streams, read after read."""
    asked = []
    read = gzip.GzipFile.read

    def counted(self, size=-1):
        asked.append(size)
        return read(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    return asked


def test_a_gzip_bomb_is_not_unpacked(tmp_path, sizes_read):
    """40 MB of zeros behind a header that claims 120 bytes: one byte more than that is read."""
    source = store(tmp_path / "t10k-images-idx3-ubyte.gz", idx(PIXELS) + bytes(40_000_000))
    with pytest.raises(ImageError, match="needs 120 bytes but more are present"):
        load_images(source)
    assert sizes_read == [16, 121]


def test_memory_is_not_taken_for_what_a_gzip_file_cannot_hold(tmp_path, sizes_read):
    """Deflate packs at most 1032 bytes into one."""
    source = store(tmp_path / "a-idx3-ubyte.gz", idx(PIXELS, shape=(1000, 1000, 1000)))
    with pytest.raises(ImageError, match="needs 1000000000 bytes but fewer are present"):
        load_images(source)
    assert sizes_read == [16]
    zeros = np.zeros((10_000, 30, 30), np.uint8)  # packed about as tightly as can be
    store(tmp_path / "a-idx3-ubyte.gz", idx(zeros))
    assert (tmp_path / "a-idx3-ubyte.gz").stat().st_size < zeros.size / 1000
    assert len(load_images(source)) == 10_000


def test_labels_that_do_not_fit_their_images(tmp_path):
    source = pair(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    store(labels, idx(LABELS[:5]))
    message = (
        f"{labels}: contains 5 labels, but t10k-images-idx3-ubyte contains 6 images; download both"
    )
    with pytest.raises(ImageError, match=re.escape(message)):
        load_images(source)
    store(labels, idx(PIXELS))
    with pytest.raises(ImageError, match="labels-idx1-ubyte: contains uint8 on 3 axes; labels are"):
        load_images(source)


def test_options_that_an_idx_file_does_not_have(tmp_path):
    source = pair(tmp_path)
    for word, message in {
        "train": "only digits and folders of CIFAR-10, CIFAR-100, idx and Parquet files support",
        "coarse": "only CIFAR-100 supports ':coarse'",
        "label=y": "only Parquet files support ':label=NAME'",
        "image=x": "only Parquet files support ':image=NAME'",
        "validation": "only folders of Parquet files support ':validation'",
    }.items():
        with pytest.raises(ImageError, match=f"ubyte: {re.escape(message)}"):
            load_images(f"{source}:{word}")
    with pytest.raises(ImageError, match="'train' repeats or contradicts an option before it"):
        load_images(f"{tmp_path}:validation,train")


def test_a_path_that_ends_like_an_option(tmp_path):
    folder = tmp_path / "mnist:train"
    folder.mkdir()
    pair(folder)
    assert load_images(str(folder)).labels.tolist() == LABELS.tolist()
    pair(folder, "train-images-idx3-ubyte", "train-labels-idx1-ubyte", first=1)
    assert load_images(f"{folder}:train").labels.tolist() == np.roll(LABELS, -1).tolist()
