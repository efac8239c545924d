"""Images from every kind of source, what is refused, and choices that nest."""

import hashlib
import io
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from purify_audit.core.errors import ImageError
from purify_audit.images.image_set import ImageSet, choose, load_images, restrict

ROOT = Path(__file__).parents[2]
CIFAR_SUBSET = ROOT.parent / "shared" / "data" / "cifar10_test_lossless_1178.npz"

RNG = np.random.default_rng(7)
COLOUR = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)  # n, h, w, c
EXPECTED = COLOUR.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
LABELS = np.array([2, 0, 1, 1, 0, 2])


def image_set(labels, ids=None):
    n = len(ids if labels is None else labels)
    pixels = np.linspace(0, 1, n * 4, dtype=np.float32).reshape(n, 1, 2, 2)
    return ImageSet(pixels, labels, np.arange(n) if ids is None else ids, "made up")


# --- the set ------------------------------------------------------------------------------------


def test_neither_torch_nor_pillow_is_imported():
    check = (
        "import sys, purify_audit.images.image_set as images; images.load_images('digits');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'PIL', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_arrays_are_copied_and_read_only():
    pixels, labels, ids = np.zeros((2, 1, 3, 3), np.float32), np.array([0, 1]), np.array([4, 9])
    images = ImageSet(pixels, labels, ids, "made up")
    pixels[:], labels[:], ids[:] = 1, 5, 5
    assert images.pixels.max() == 0
    assert images.labels.tolist() == [0, 1]
    assert images.ids.tolist() == [4, 9]
    for array in (images.pixels, images.labels, images.ids, images.select([1]).pixels):
        assert array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert len(images) == 2
    assert images.image_shape == (1, 3, 3)
    assert "array" not in repr(images)


def test_select_keeps_ids_with_their_pixels_and_labels():
    images = image_set(np.array([5, 6, 7]), np.array([30, 10, 20]))
    picked = images.select([2, 0])
    assert picked.ids.tolist() == [20, 30]
    assert picked.labels.tolist() == [7, 5]
    assert np.array_equal(picked.pixels, images.pixels[[2, 0]])
    assert picked.source == "made up"
    with pytest.raises(ImageError, match=re.escape("made up: rows 0 and 1 have the same id 20")):
        images.select([2, 2])
    with pytest.raises(ImageError, match="contains no images"):
        images.select([])
    with pytest.raises(IndexError):
        images.select([3])


def test_restrict_takes_a_half_open_range_of_ids():
    images = image_set(None, np.array([30, 10, 20]))
    assert restrict(images, 10, 30).ids.tolist() == [10, 20]
    with pytest.raises(ImageError, match=r"no id is in \[11, 20\); ids range from 10 to 30"):
        restrict(images, 11, 20)


def test_digest_depends_on_everything_but_the_name():
    base = image_set(np.array([0, 1]))
    again = ImageSet(base.pixels, base.labels, base.ids, "another name")
    assert base.digest == again.digest
    assert re.fullmatch("[0-9a-f]{64}", base.digest)
    pixels = base.pixels.copy()
    pixels[0, 0, 0, 0] = 0.25
    others = [
        ImageSet(pixels, base.labels, base.ids, ""),
        ImageSet(base.pixels, None, base.ids, ""),
        ImageSet(base.pixels, np.array([0, 2]), base.ids, ""),
        ImageSet(base.pixels, base.labels, np.array([0, 2]), ""),
        ImageSet(base.pixels.reshape(2, 1, 4, 1), base.labels, base.ids, ""),
        base.select([1, 0]),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 7


def test_digest_is_what_its_docstring_says():
    images = image_set(np.array([1, 0]), np.array([7, 3]))
    text = b"purify-audit images 1 [2, 1, 2, 2] labelled"
    ids, labels = struct.pack("<2q", 7, 3), struct.pack("<2q", 1, 0)
    pixels = struct.pack("<8f", *images.pixels.ravel())
    assert images.digest == hashlib.sha256(text + ids + labels + pixels).hexdigest()


# --- choosing -----------------------------------------------------------------------------------


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    seed=st.integers(0, 2**64 - 1),
    data=st.data(),
)
def test_prefixes_of_a_choice_are_choices_and_stratified(labels, seed, data):
    images = image_set(np.array(labels))
    whole = choose(images, len(labels), seed)
    m = data.draw(st.integers(1, len(labels)))
    part = choose(images, m, seed)
    assert part.ids.tolist() == whole.ids[:m].tolist()
    assert part.labels.tolist() == [labels[i] for i in part.ids]
    available, taken = Counter(labels), Counter(part.labels.tolist())
    most = max(taken.values())
    for label, count in available.items():  # short of the others only where there are no more
        assert taken[label] >= min(count, most - 1)


def test_choice_within_a_class_depends_on_seed_and_id_alone():
    images = image_set(np.repeat(np.arange(3), 20))
    chosen = choose(images, 9, seed=1)
    backwards = choose(images.select(range(59, -1, -1)), 9, seed=1)
    assert chosen.ids.tolist() == backwards.ids.tolist()
    alone = choose(restrict(images, 20, 40), 3, seed=1)
    assert alone.ids.tolist() == [i for i in chosen.ids.tolist() if 20 <= i < 40]
    assert chosen.ids.tolist() != choose(images, 9, seed=2).ids.tolist()


def test_choice_is_pinned():
    """Which images a seed means: a change would choose other images for every published audit."""
    assert choose(image_set(None, np.arange(100)), 6, 0).ids.tolist() == [59, 24, 13, 55, 44, 36]
    digits = choose(load_images("digits"), 12, seed=0)
    assert digits.labels.tolist() == [4, 7, 1, 8, 6, 9, 5, 2, 3, 0, 4, 1]
    assert digits.ids[:8].tolist() == [280, 884, 596, 592, 968, 1540, 692, 1528]

    def rank(number):
        return hashlib.blake2b(f"purify-audit choice 5 {number}".encode(), digest_size=8).digest()

    everything = choose(image_set(None, np.arange(50)), 50, seed=5)
    assert everything.ids.tolist() == sorted(range(50), key=rank)


def test_choice_without_labels_is_uniform_over_seeds():
    images = image_set(None, np.arange(10))
    counts = Counter(choose(images, 1, seed).ids[0] for seed in range(2000))
    chi2 = sum((counts[i] - 200) ** 2 / 200 for i in range(10))
    assert chi2 < 27.9  # 99.9% quantile, 9 degrees of freedom


@pytest.mark.parametrize("n", [0, -1, 4])
def test_choosing_more_than_there_are_or_none(n):
    with pytest.raises(ImageError, match=f"{n} images were requested; choose between 1 and 3"):
        choose(image_set(None, np.arange(3)), n, seed=0)


# --- the bundled digits -------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    theirs = datasets.load_digits()
    ours = load_images("digits:all")
    assert np.array_equal(ours.pixels[:, 0], (theirs.images / 16).astype(np.float32))
    assert np.array_equal(ours.labels, theirs.target)
    assert ours.ids.tolist() == list(range(1797))


def test_digits_are_split_by_id():
    held_out, train = load_images("digits"), load_images("digits:train")
    assert (len(held_out), len(train)) == (450, 1347)
    assert held_out.ids.tolist() == list(range(0, 1797, 4))
    assert sorted([*held_out.ids.tolist(), *train.ids.tolist()]) == list(range(1797))
    assert held_out.image_shape == (1, 8, 8)
    assert held_out.source == "digits"
    with pytest.raises(
        ImageError, match="digits:test: there is no such part; choose one of digits, digits"
    ):
        load_images("digits:test")


# --- arrays -------------------------------------------------------------------------------------


@pytest.mark.skipif(not CIFAR_SUBSET.is_file(), reason=f"{CIFAR_SUBSET.name} is not here")
def test_real_cifar_images():
    images = load_images(str(CIFAR_SUBSET))
    assert len(images) == 1178
    first = restrict(images, 0, 1000)
    assert first.pixels.shape == (1000, 3, 32, 32)
    assert first.ids.tolist() == list(range(1000))
    assert first.labels[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]  # cat, two ships, aeroplane, ...
    with np.load(CIFAR_SUBSET) as arrays:
        assert first.pixels[17, 2, 5, 9] == np.float32(arrays["x"][17, 5, 9, 2]) / np.float32(255)


def write_npz(path, **arrays):
    with path.open("wb") as file:  # given a path, numpy would add ".npz"
        np.savez(file, **arrays)
    return str(path)


LAYOUTS = {
    "nhwc-uint8": COLOUR,
    "nchw-uint8": COLOUR.transpose(0, 3, 1, 2),
    "nhwc-float32": COLOUR.astype(np.float32) / np.float32(255),
    "nchw-float64": COLOUR.transpose(0, 3, 1, 2) / 255,
    "nhwc-big-endian": (COLOUR / 255).astype(">f4"),
    "nhwc-fortran": np.asfortranarray(COLOUR),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_array_files_agree_whatever_the_layout(tmp_path, layout):
    array = LAYOUTS[layout]
    np.save(tmp_path / "a.npy", array)
    sources = [
        str(tmp_path / "a.npy"),
        write_npz(tmp_path / "a.npz", x=array, y=LABELS, idx=np.arange(6) + 40),
        write_npz(tmp_path / "b.NPZ", images=array, labels=LABELS.astype(np.uint8)),
    ]
    if layout != "nhwc-big-endian":
        save_file(
            {"data": np.ascontiguousarray(array), "labels": LABELS, "ids": np.arange(6) + 40},
            tmp_path / "a.safetensors",
        )
        sources.append(str(tmp_path / "a.safetensors"))
    for source in sources:
        images = load_images(source)
        assert np.array_equal(images.pixels, EXPECTED)
        assert images.pixels.flags.c_contiguous
        assert images.source == source
        with_ids = source.endswith(("a.npz", "a.safetensors"))
        assert images.ids.tolist() == [i + 40 * with_ids for i in range(6)]
        labels = None if source.endswith("npy") else LABELS.tolist()
        assert (images.labels if labels is None else images.labels.tolist()) == labels


def test_grey_arrays_have_one_channel(tmp_path):
    grey = COLOUR[..., 0]
    wanted = EXPECTED[:, :1]
    for array in (grey, grey[:, None], grey[..., None], (grey / 255).astype(np.float32)):
        assert np.array_equal(load_images(write_npz(tmp_path / "g.npz", x=array)).pixels, wanted)
    halves = np.array([0, 0.5, 1, 0.25], np.float16).reshape(1, 2, 2)
    images = load_images(write_npz(tmp_path / "h.npz", x=halves))
    assert images.pixels.tolist() == [[[[0, 0.5], [1, 0.25]]]]


REFUSED_ARRAYS = {
    "int64": (COLOUR.astype(np.int64), "pixels are of type int64; save them as uint8"),
    "complex": (COLOUR.astype(np.complex64), "pixels are of type complex64"),
    "bool": (COLOUR > 9, "pixels are of type bool"),
    "255": (COLOUR / 1.0, r"pixels are in \[\d+, 255\]; divide by 255"),
    "just above 1": (EXPECTED * 0 + np.float32(1.0000001), r"\[1.00000012, 1.00000012\]"),
    "16 bits": (COLOUR * 257.0, r"65535\]; rescale them to \[0, 1\]"),
    "signed": (EXPECTED * 2 - 1, r"pixels are in \[-.*; map from \[-1, 1\] to \[0, 1\]"),
    "normalised": (EXPECTED * 5 - 2, "undo their normalisation"),
    "nan": (np.where(np.arange(6)[:, None, None, None] == 4, np.nan, EXPECTED), "row 4 are NaN"),
    "infinite": (EXPECTED.astype(np.float64) * 1e300, "row 0 are NaN or infinite"),
    "empty": (COLOUR[:0], r"shape \[0, 3, 5, 4\] contains no images"),
    "two axes": (COLOUR[:, 0, :, 0], r"pixels have shape \[6, 4\]; expected \[n, h, w\]"),
    "four channels": (COLOUR[:, :, :, [0, 1, 2, 0]], "neither 1 nor 3 channels"),
    "both": (np.zeros((2, 3, 8, 3)), "both axis 1 and axis 3 could be the channels"),
    "one image": (COLOUR[0], r"\[5, 4, 3\] is ambiguous: one image, or several grey ones"),
    "one image first": (COLOUR[0].transpose(2, 0, 1), r"\[3, 5, 4\] is ambiguous: one image"),
}


@pytest.mark.parametrize("case", REFUSED_ARRAYS)
def test_refused_pixels(tmp_path, case):
    array, message = REFUSED_ARRAYS[case]
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ImageError, match=message) as caught:
        load_images(str(tmp_path / "a.npy"))
    assert str(caught.value).startswith(str(tmp_path / "a.npy"))
    assert caught.value.exit_code == 2


REFUSED_KEYS = {
    "no images": ({"x_train": COLOUR, "b": LABELS}, "there are: 'b', 'x_train'"),
    "empty file": ({}, "there are: none"),
    "two images": ({"x": COLOUR, "data": COLOUR}, "arrays 'x' and 'data' conflict; keep one"),
    "two labels": ({"x": COLOUR, "y": LABELS, "labels": LABELS}, "'y' and 'labels' conflict"),
    "few labels": ({"x": COLOUR, "y": LABELS[:5]}, r"labels have shape \[5\] .* are 6 images"),
    "one-hot": ({"x": COLOUR, "y": np.eye(3, dtype=int)[LABELS]}, r"labels have shape \[6, 3\]"),
    "fractions": ({"x": COLOUR, "y": LABELS / 2}, "labels are of type float64, not integers"),
    "unlabelled": ({"x": COLOUR, "y": LABELS - 1}, r"label -1 of row 1 is not in \[0, 2\*\*32\)"),
    "negative id": ({"x": COLOUR, "idx": np.arange(6) - 2}, "id -2 of row 0 is not in"),
    "large id": ({"x": COLOUR, "ids": np.arange(6) + 2**32 - 5}, "id 4294967296 of row 5 is not"),
    "huge id": ({"x": COLOUR, "ids": np.full(6, 2**64 - 1, np.uint64)}, "row 0 is not in"),
    "same id": ({"x": COLOUR, "idx": [0, 1, 2, 3, 1, 5]}, "rows 1 and 4 have the same id 1"),
}


@pytest.mark.parametrize("case", REFUSED_KEYS)
def test_refused_keys_labels_and_ids(tmp_path, case):
    arrays, message = REFUSED_KEYS[case]
    source = write_npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(ImageError, match=message) as caught:
        load_images(source)
    assert str(caught.value).startswith(source)
    assert "\n" not in str(caught.value)


def test_largest_id_is_accepted(tmp_path):
    source = write_npz(tmp_path / "a.npz", x=COLOUR[:1], ids=np.array([2**32 - 1], np.uint32))
    assert load_images(source).ids.tolist() == [2**32 - 1]


def test_pickled_objects_are_never_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}, []], object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"a\.npy: contains Python objects; save plain numbers"):
        load_images(str(tmp_path / "a.npy"))
    np.savez(tmp_path / "a.npz", x=np.array([{}, []], object))
    with pytest.raises(ImageError, match="array 'x': contains Python objects"):
        load_images(str(tmp_path / "a.npz"))


def npy_header(shape, descr="|u1"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_what_an_array_claims_is_checked_before_memory_is_taken(tmp_path):
    claims = {
        (10**6, 224, 224, 3): "would take 561 GiB of memory, more than the 16 GiB allowed",
        (100, 5, 4, 3): "needs 6000 bytes but 60 are present: truncated or damaged",
        (-1, 5, 4, 3): "truncated or damaged",
    }
    for shape, message in claims.items():
        (tmp_path / "a.npy").write_bytes(npy_header(shape) + bytes(60))
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", npy_header(shape) + bytes(60))
        with pytest.raises(ImageError, match=message):
            load_images(str(tmp_path / "a.npy"))
        with pytest.raises(ImageError, match=f"array 'x': shape .*{message}"):
            load_images(str(tmp_path / "a.npz"))


def test_bfloat16_is_refused(tmp_path):
    header = b'{"x":{"dtype":"BF16","shape":[1,2,2],"data_offsets":[0,8]}}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    # Where ml_dtypes is imported, as onnx does, numpy has the type and it is refused a step later.
    with pytest.raises(ImageError, match=r"a\.safetensors: .*bfloat16"):
        load_images(str(path))


def test_damaged_files_end_in_one_sentence(tmp_path):
    """Every kind of file, cut at many places and with single bytes changed."""
    write_npz(tmp_path / "a.npz", x=COLOUR, y=LABELS)
    np.savez_compressed(tmp_path / "c.npz", x=COLOUR, y=LABELS)
    np.save(tmp_path / "a.npy", COLOUR)
    save_file({"x": COLOUR, "y": LABELS}, tmp_path / "a.safetensors")
    (tmp_path / "cifar").mkdir()
    write_pickle(tmp_path / "cifar" / "test_batch", cifar_batch(3))
    for kind in ("png", "jpg"):
        (tmp_path / kind).mkdir()
        Image.fromarray(COLOUR[0]).save(tmp_path / kind / f"a.{kind}")
    rng = np.random.default_rng(3)
    targets = ["a.npz", "c.npz", "a.npy", "a.safetensors", "cifar/test_batch"]
    for name in [*targets, "png/a.png", "jpg/a.jpg"]:
        path = tmp_path / name
        source = str(path if path.parent == tmp_path else path.parent)
        whole = path.read_bytes()
        load_images(source)
        cuts = [whole[:n] for n in (*range(0, 40, 7), len(whole) // 2, len(whole) - 1)]
        for damaged in cuts + [flipped(whole, rng) for _ in range(40)]:
            path.write_bytes(damaged)
            told = complaint(source)
            if told is None:  # a changed pixel or label cannot be noticed, a missing half can
                assert len(damaged) > len(whole) // 2, name
            else:
                assert "\n" not in told
                assert told.startswith(source)
        path.write_bytes(whole)


def complaint(source):
    try:
        load_images(source).check()
    except ImageError as error:
        return str(error)
    return None


def flipped(data, rng):
    place = int(rng.integers(min(len(data), 400)))
    return data[:place] + bytes([data[place] ^ int(rng.integers(1, 256))]) + data[place + 1 :]


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.safetensors"])
def test_files_of_another_kind(tmp_path, name):
    for content in (b"", b"hello, this is not an array of anything"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{name}: cannot be read: "):
            load_images(str(tmp_path / name))


def test_unknown_sources(tmp_path):
    with pytest.raises(ImageError, match="nowhere: no such file or folder; the bundled images are"):
        load_images(str(tmp_path / "nowhere"))
    with pytest.raises(ImageError, match="nowhere: no such file or folder"):
        load_images(str(tmp_path / "nowhere:train"))
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(
        ImageError,
        match=r"a\.gif: unknown kind of file; supported are \.npy, \.npz, \.safetensors, ",
    ):
        load_images(str(tmp_path / "a.gif"))
    np.save(tmp_path / "a.npy", COLOUR)
    with pytest.raises(ImageError, match="only digits and folders of CIFAR-10, CIFAR-100, idx"):
        load_images(f"{tmp_path / 'a.npy'}:train")
    with pytest.raises(ImageError, match="cannot be read: File name too long"):
        load_images("x" * 5000)


# --- CIFAR-10 -----------------------------------------------------------------------------------


def cifar_batch(n, first=0):
    """As published: rows of 1024 red, 1024 green and 1024 blue values."""
    pixels = (np.arange(n * 3072) * 7 + first).astype(np.uint8).reshape(n, 3072)
    return {
        b"batch_label": b"testing batch 1 of 1",
        b"labels": [(first + i) % 10 for i in range(n)],
        b"data": pixels,
        b"filenames": [b"picture_%d.png" % i for i in range(n)],
    }


def write_pickle(path, value, protocol=2):
    path.write_bytes(pickle.dumps(value, protocol))


def write_bin(path, batch):
    labels = np.array(batch[b"labels"], np.uint8)[:, None]
    path.write_bytes(np.hstack([labels, batch[b"data"]]).tobytes())


def write_folder(folder, write, ending=""):
    folder.mkdir()
    write(folder / f"test_batch{ending}", cifar_batch(4))
    for k in range(1, 6):
        write(folder / f"data_batch_{k}{ending}", cifar_batch(2, first=k))
    return str(folder)


@pytest.mark.parametrize("write", [write_pickle, write_bin])
def test_cifar_folders(tmp_path, write):
    source = write_folder(tmp_path / "c", write, ".bin" if write is write_bin else "")
    test, train = load_images(source), load_images(f"{source}:train")
    assert test.pixels.shape == (4, 3, 32, 32)
    assert test.labels.tolist() == [0, 1, 2, 3]
    rows = cifar_batch(4)[b"data"]
    assert test.pixels[2, 1, 3, 5] == np.float32(rows[2, 1024 + 3 * 32 + 5]) / np.float32(255)
    assert train.labels.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert train.ids.tolist() == list(range(10))
    assert train.source == f"{source}:train"


def test_both_cifar_versions_are_the_same_images(tmp_path):
    python = write_folder(tmp_path / "py", write_pickle)
    binary = write_folder(tmp_path / "bin", write_bin, ".bin")
    assert load_images(python).digest == load_images(binary).digest
    assert load_images(f"{binary}/test_batch.bin").digest == load_images(binary).digest


def python2_pickle(rows):
    """The opcodes that Python 2 wrote: byte strings, and numpy under its old name."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    data = rows.tobytes()
    dtype = b"cnumpy\ndtype\n(" + short(b"u1") + b"K\x00K\x01tR(K\x03" + short(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + short(b"b") + b"tR"
    array += b"(K\x01(K" + bytes([len(rows)]) + b"M\x00\x0ct" + dtype + b"\x89"
    array += b"T" + struct.pack("<i", len(data)) + data + b"tb"
    labels = b"](" + b"K\x03" * len(rows) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(b"labels") + labels + b"u."


def test_pickles_from_python_2_and_later_protocols(tmp_path):
    rows = cifar_batch(2)[b"data"]
    path = tmp_path / "test_batch"
    path.write_bytes(python2_pickle(rows))
    assert pickle.loads(path.read_bytes(), encoding="bytes")[b"data"].tolist() == rows.tolist()
    wanted = load_images(str(tmp_path))
    assert wanted.labels.tolist() == [3, 3]
    text_keys = {"data": rows, "labels": [3, 3], "empty": b""}
    for protocol in (2, 3, 4):
        for data in (rows, np.asfortranarray(rows)):
            write_pickle(path, {**text_keys, "data": data}, protocol)
            assert load_images(str(tmp_path)).digest == wanted.digest


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran code')",))


def test_a_pickle_that_names_a_function_is_not_run(tmp_path):
    write_pickle(tmp_path / "test_batch", {**cifar_batch(2), b"labels": Harmful()})
    with pytest.raises(ImageError, match=r"test_batch: .* names '__builtin__\.exec', which could"):
        load_images(str(tmp_path))


def test_a_pickle_cannot_alter_the_stand_ins(tmp_path):
    change_class = b"\x80\x02cnumpy\ndtype\n(N}U\x04argsK\x01stb."
    (tmp_path / "test_batch").write_bytes(change_class)
    with pytest.raises(ImageError, match="cannot be read"):
        load_images(str(tmp_path))
    write_pickle(tmp_path / "test_batch", cifar_batch(2))
    assert len(load_images(str(tmp_path))) == 2


def test_a_pickle_cannot_claim_memory_it_does_not_fill(tmp_path):
    (tmp_path / "test_batch").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(ImageError, match="declares more objects than it has bytes"):
        load_images(str(tmp_path))


REFUSED_BATCHES = {
    "cifar-100": ({b"fine_labels": [1, 2]}, {b"labels"}, "'labels' is not one integer per"),
    "no data": ({}, {b"data"}, r"'data' is not an array of uint8 \[n, 3072\]"),
    "list": ({b"data": [1, 2]}, (), "'data' is not an array of uint8"),
    "floats": ({b"data": np.zeros((2, 3072))}, (), "'data' is not an array of uint8"),
    "gray": ({b"data": np.zeros((2, 1024), np.uint8)}, (), "'data' is not an array of uint8"),
    "few": ({b"labels": [1]}, (), "'labels' is not one integer per image"),
    "text": ({b"labels": [b"cat", b"dog"]}, (), "'labels' is not one integer"),
    "ten": ({b"labels": [9, 10]}, (), "label 10 of row 1 is not one of CIFAR-10's 0..9"),
    "none": ({b"labels": [], b"data": np.zeros((0, 3072), np.uint8)}, (), "'labels' is not one"),
}


@pytest.mark.parametrize("case", REFUSED_BATCHES)
def test_refused_batches(tmp_path, case):
    changes, without, message = REFUSED_BATCHES[case]
    batch = {k: v for k, v in {**cifar_batch(2), **changes}.items() if k not in without}
    write_pickle(tmp_path / "test_batch", batch)
    with pytest.raises(ImageError, match=f"test_batch: {message}"):
        load_images(str(tmp_path))


def test_a_missing_batch_is_named(tmp_path):
    source = write_folder(tmp_path / "c", write_pickle)
    (tmp_path / "c" / "data_batch_4").unlink()
    with pytest.raises(ImageError, match="data_batch_4: is missing; unpack CIFAR-10 again"):
        load_images(f"{source}:train")
    (tmp_path / "c" / "test_batch").unlink()
    with pytest.raises(ImageError, match="test_batch: is missing"):
        load_images(source)


def test_refused_bin_files(tmp_path):
    path = tmp_path / "a.bin"
    for size in (0, 3072, 2 * 3073 + 1):
        path.write_bytes(bytes(size))
        with pytest.raises(ImageError, match=f"{size} bytes are not whole CIFAR-10 records of"):
            load_images(str(path))
    path.write_bytes(bytes(3073) + b"\x0b" + bytes(3072))
    with pytest.raises(ImageError, match="label 11 of row 1 is not one of CIFAR-10's"):
        load_images(str(path))


# --- folders of pictures ------------------------------------------------------------------------


def save_picture(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def test_a_folder_without_classes(tmp_path):
    for row, name in enumerate(["b.png", "a.PNG", "c.png"]):
        save_picture(tmp_path / name, COLOUR[row], format="PNG")
    (tmp_path / "notes.txt").write_text("ignored")
    (tmp_path / "._a.png").write_text("written by macOS, ignored")
    images = load_images(str(tmp_path))
    assert images.labels is None
    assert images.ids.tolist() == [0, 1, 2]
    assert np.array_equal(images.pixels, EXPECTED[[1, 0, 2]])


def test_a_folder_with_classes(tmp_path):
    for row, name in enumerate(["dog/1.png", "cat/9.png", "cat/10.png", "ape/x.png"]):
        save_picture(tmp_path / name, COLOUR[row, :, :, 0])
    (tmp_path / ".cache").mkdir()
    images = load_images(str(tmp_path))
    assert images.labels.tolist() == [0, 1, 1, 2]
    assert np.array_equal(images.pixels, EXPECTED[[3, 2, 1, 0], :1])


def test_jpeg_is_decoded(tmp_path):
    save_picture(tmp_path / "a.jpeg", np.full((8, 8, 3), 128, np.uint8), quality=95)
    assert load_images(str(tmp_path)).pixels == pytest.approx(128 / 255, abs=2 / 255)


def test_mixed_sizes_and_modes(tmp_path):
    save_picture(tmp_path / "a.png", COLOUR[0])
    save_picture(tmp_path / "b.png", COLOUR[1, :4])
    message = r"b\.png: is \[4, 4, 3\] \(height, width, channels\) but a\.png is \[5, 4, 3\]; all"
    with pytest.raises(ImageError, match=message):
        load_images(str(tmp_path))
    save_picture(tmp_path / "b.png", COLOUR[1, :, :, 0])
    with pytest.raises(ImageError, match=r"b\.png: is \[5, 4, 1\] .* the same size and mode"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA", "I;16"])
def test_refused_modes(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    message = f"a.png: has mode {mode}; save it as 8-bit grey (L) or RGB"
    with pytest.raises(ImageError, match=re.escape(message)):
        load_images(str(tmp_path))


def test_folders_without_a_clear_layout(tmp_path):
    with pytest.raises(
        ImageError, match="contains 0 PNG or JPEG images and 0 subfolders; put images"
    ):
        load_images(str(tmp_path))
    save_picture(tmp_path / "one" / "a.png", COLOUR[0])
    (tmp_path / "two").mkdir()
    with pytest.raises(ImageError, match="two: contains no PNG or JPEG images; remove or fill it"):
        load_images(str(tmp_path))
    save_picture(tmp_path / "a.png", COLOUR[0])
    with pytest.raises(ImageError, match="contains 1 PNG or JPEG images and 2 subfolders"):
        load_images(str(tmp_path))


def test_unreadable_pictures_are_named(tmp_path):
    save_picture(tmp_path / "a.png", COLOUR[0])
    whole = (tmp_path / "a.png").read_bytes()
    for content in (b"", b"GIF89a", whole[:-30], whole[:20]):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(ImageError, match=r"b\.png: cannot be read: "):
            load_images(str(tmp_path)).check()
    Image.fromarray(COLOUR[0]).save(tmp_path / "b.png", format="GIF")
    with pytest.raises(ImageError, match=r"b\.png: cannot be read: cannot identify image file"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_decompression_bombs(tmp_path, side):
    """A hundred bytes that claim 0.1 or 0.9 billion pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    content = io.BytesIO()
    content.write(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0))
    )
    content.write(chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b""))
    (tmp_path / "a.png").write_bytes(content.getvalue())
    with pytest.raises(ImageError, match=r"a\.png: cannot be read: .*decompression bomb"):
        load_images(str(tmp_path))
