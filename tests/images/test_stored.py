"""Images that stay in their files: what memory they take, and files that change meanwhile."""

import hashlib
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file
from subjects import CPU

from purify_audit.audit.subject import prepare
from purify_audit.core.errors import ImageError
from purify_audit.images import pixels as pixels_module
from purify_audit.images.image_set import ImageSet, choose, load_images
from purify_audit.images.stored import InFile, InMemory, Joined, stamp

N = 7
BYTES = np.random.default_rng(5).integers(0, 256, (N, 3, 32, 32), dtype=np.uint8)
EXPECTED = BYTES.astype(np.float32) / np.float32(255)
LABELS = np.array([3, 1, 4, 1, 5, 9, 2], np.uint8)
ROWS = [5, 0, 6, 3]


def write_npy(folder):
    np.save(folder / "a.npy", BYTES.transpose(0, 2, 3, 1))
    return folder / "a.npy"


def write_npz(folder):
    np.savez(folder / "a.npz", y=LABELS, x=BYTES)
    return folder / "a.npz"


def write_packed_npz(folder):
    np.savez_compressed(folder / "a.npz", y=LABELS, x=BYTES)
    return folder / "a.npz"


def write_zip_behind_text(folder):
    """What precedes an archive moves every member; fields in a local header move its bytes."""
    np.savez(folder / "b.npz", y=LABELS, x=BYTES)
    text = b"#!/bin/sh\n" + bytes(91)
    (folder / "a.npz").write_bytes(text + (folder / "b.npz").read_bytes())
    return folder / "a.npz"


def write_safetensors(folder):
    save_file(
        {"y": LABELS.astype(np.int64), "a": np.arange(5.0), "x": BYTES}, folder / "a.safetensors"
    )
    return folder / "a.safetensors"


def records(first, last):
    return np.hstack([LABELS[first:last, None], BYTES[first:last].reshape(-1, 3072)]).tobytes()


def write_bin(folder):
    (folder / "a.bin").write_bytes(records(0, N))
    return folder / "a.bin"


def write_cifar(folder):
    """Batches of 1, 1, 1, 1 and 3 images."""
    for k in range(1, 6):
        content = records(k - 1, N if k == 5 else k)
        (folder / f"data_batch_{k}.bin").write_bytes(content)
    return folder / "data_batch_5.bin"


def write_pictures(folder):
    for row, picture in enumerate(BYTES.transpose(0, 2, 3, 1)):
        Image.fromarray(picture).save(folder / f"{row}.png")
    return folder / "5.png"


FORMATS = {
    "npy": write_npy,
    "npz": write_npz,
    "zip behind text": write_zip_behind_text,
    "safetensors": write_safetensors,
    "bin": write_bin,
    "cifar": write_cifar,
    "pictures": write_pictures,
}


def written(folder, kind):
    """A source of the images, and the file in which row 5 lies."""
    path = FORMATS[kind](folder)
    source = {"cifar": f"{folder}:train", "pictures": str(folder)}.get(kind, str(path))
    return source, path


def write_idx(folder):
    content = struct.pack(">4B3I", 0, 0, 8, 3, N, 96, 32) + BYTES.tobytes()
    (folder / "t10k-images-idx3-ubyte").write_bytes(content)
    return folder / "t10k-images-idx3-ubyte"


# --- rows of a file -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_those_of_the_whole(tmp_path, kind):
    images = load_images(written(tmp_path, kind)[0])
    whole = ImageSet(EXPECTED, images.labels, np.arange(N), "memory")
    assert images.digest == whole.digest
    assert images.image_digests == whole.image_digests
    picked, again = images.select(ROWS), whole.select(ROWS)
    assert np.array_equal(picked.pixels, EXPECTED[ROWS])
    assert picked.digest == again.digest
    assert np.array_equal(picked.select([2, 1]).pixels, EXPECTED[[6, 0]])
    assert np.array_equal(images.pixels, EXPECTED)
    for made in (images.pixels, picked.pixels):
        assert made.dtype == np.float32
        assert made.flags.c_contiguous
        assert not made.flags.writeable


def test_rows_of_an_idx_file(tmp_path):
    images = load_images(str(write_idx(tmp_path)))
    assert np.array_equal(images.select(ROWS).pixels, EXPECTED.reshape(N, 1, 96, 32)[ROWS])


def test_pixels_are_made_once_and_choosing_everything_makes_nothing(tmp_path):
    images = load_images(str(write_npy(tmp_path)))
    assert images.select(range(N)) is images
    assert images.select(np.arange(N)[::-1]) is not images
    picked = images.select(ROWS)
    assert picked.pixels is picked.pixels
    assert images.image_bytes == picked.pixels[0].nbytes == EXPECTED[0].nbytes


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_joined_rows_are_those_of_one_array(rows):
    array = np.arange(10 * 6, dtype=np.float16).reshape(10, 2, 3)
    parts = tuple(InMemory(array[first:last]) for first, last in ((0, 3), (3, 4), (4, 10)))
    joined = Joined(parts)
    assert (joined.shape, joined.dtype) == (array.shape, array.dtype)
    assert np.array_equal(joined.read(np.array(rows)), array[rows])


def test_floats_in_any_byte_order_with_gaps(tmp_path):
    for order in "<>":
        array = np.linspace(0, 1, 24).astype(f"{order}f8").reshape(4, 6)
        (tmp_path / "a").write_bytes(b"abc" + b"".join(row.tobytes() + b"--" for row in array))
        seen = stamp(str(tmp_path / "a"))
        stored = InFile(tmp_path / "a", seen, 3, (4, 6), array.dtype, gap=2)
        assert np.array_equal(stored.read(np.array([3, 1, 1])), array[[3, 1, 1]])


def test_nothing_is_made_of_bytes_beyond_the_end(tmp_path):
    (tmp_path / "a").write_bytes(bytes(20))
    stored = InFile(tmp_path / "a", stamp(str(tmp_path / "a")), 0, (3, 8), np.dtype(np.uint8))
    assert stored.read(np.array([1, 0])).tolist() == [[0] * 8] * 2
    with pytest.raises(ImageError, match="changed while it was being read; start again"):
        stored.read(np.array([0, 2, 1]))


def test_a_checksum_is_compared_before_anything_is_used(tmp_path):
    path = write_npz(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(BYTES[3].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ImageError, match="array 'x': cannot be read: Bad CRC-32 for file"):
        load_images(str(path))


def test_a_member_that_claims_more_than_its_archive_holds(tmp_path):
    """The directory at the end claims the whole array, which begins in the middle of the file."""
    path, header = tmp_path / "a.npz", tmp_path / "a.npy"
    np.save(header, BYTES)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.read_bytes()[: 128 + 3072])
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    struct.pack_into("<2I", content, directory + 20, *[128 + BYTES.size] * 2)
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.npz: .*cannot be read: "):
        load_images(str(path)).check()


# --- whole sets, a part at a time ---------------------------------------------------------------


@pytest.fixture
def small_chunks(monkeypatch):
    """Two images of 3 KiB at a time."""
    monkeypatch.setattr(pixels_module, "_CHUNK_BYTES", 2 * EXPECTED[0].nbytes)


@pytest.mark.usefixtures("small_chunks")
def test_parts_give_the_same_digest(tmp_path):
    assert (
        load_images(str(write_npy(tmp_path))).digest
        == ImageSet(np.array(EXPECTED), None, np.arange(N), "").digest
    )


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_faults_are_told_of_the_whole_and_not_of_a_part(tmp_path, dtype):
    low_and_high = EXPECTED.astype(dtype)
    low_and_high[1, 0, 0, 0], low_and_high[6, 0, 0, 0] = -0.5, 1.5
    np.save(tmp_path / "a.npy", low_and_high)
    with pytest.raises(ImageError, match=r"are in \[-0\.5, 1\.5\]; undo their normalisation"):
        load_images(str(tmp_path / "a.npy"))
    low_and_high[5, 1, 2, 3] = np.nan  # worse than what was seen before it
    np.save(tmp_path / "a.npy", low_and_high)
    with pytest.raises(ImageError, match="pixels of row 5 are NaN or infinite"):
        load_images(str(tmp_path / "a.npy"))


# --- memory -------------------------------------------------------------------------------------

PEAK = """
import resource, sys
import numpy as np
from purify_audit.images.image_set import choose, load_images
load_images('digits').check()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images = load_images(sys.argv[1])
chosen = choose(images, len(images) // 2, 0)
chosen.check()
assert chosen.select([3, 1]).pixels.shape == (2, 3, 32, 32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "bin"])
def test_memory_does_not_follow_the_pixels(tmp_path, kind):
    """30,000 images: 88 MiB of bytes, 352 MiB of float32."""
    pixels, path = np.zeros((30_000, 3, 32, 32), np.uint8), tmp_path / f"a.{kind}"
    if kind == "npy":
        np.save(path, pixels)
    elif kind == "npz":
        np.savez(path, x=pixels)
    elif kind == "safetensors":
        save_file({"x": pixels}, path)
    else:
        path.write_bytes(bytes(30_000 * 3073))
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 20 * 1024  # KiB


def test_a_set_that_fits_nowhere_is_chosen_from(tmp_path):
    """50,000 photographs, 28 GiB as float32: the file has holes, so it takes no room either."""
    path, shape = tmp_path / "a.npy", (50_000, 3, 224, 224)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.seek(start + 40_000 * 150528)
        file.write(b"\xff")
        file.truncate(start + 50_000 * 150528)
    images = load_images(str(path))
    assert images.image_shape == (3, 224, 224)
    assert choose(images, 3, 0).digest
    assert images.select([39_999, 40_000]).pixels.max(axis=(1, 2, 3)).tolist() == [0, 1]
    message = f"{path}: shape [50000, 3, 224, 224] would take 28 GiB of memory, more than the 16"
    with pytest.raises(ImageError, match=re.escape(message)):
        _ = images.pixels


def test_more_images_than_there_is_memory_for_their_ids(tmp_path):
    """6 GiB of holes that hold 3 billion images of two pixels."""
    path, shape = tmp_path / "a.npy", (3 * 2**30, 1, 2)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 2 * shape[0])
    with pytest.raises(ImageError, match="would take 24 GiB of memory, more than the 16 GiB"):
        load_images(str(path))


# --- files that change --------------------------------------------------------------------------


def touch(path):
    """As if it had been written a second later."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


@pytest.mark.parametrize("kind", [*FORMATS, "idx"])
@pytest.mark.parametrize("how", ["written again", "cut", "longer"])
def test_a_file_that_changes_under_a_run(tmp_path, kind, how):
    source, path = (str(write_idx(tmp_path)),) * 2 if kind == "idx" else written(tmp_path, kind)
    path, images = Path(path), load_images(source)
    before, content = images.select([5]), path.read_bytes()
    assert before.pixels.any()
    cut = content[: len(content) // 2]
    path.write_bytes({"written again": content, "cut": cut, "longer": content + b"x"}[how])
    if how == "written again":
        touch(path)
    told = re.escape(f"{path}: changed while it was being read; start again")
    assert before.pixels.any()  # read already
    again = images.select([5])
    for read in (lambda: again.pixels, lambda: again.digest, again.check):
        with pytest.raises(ImageError, match=f"^{told}$"):
            read()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_is_gone(tmp_path, kind):
    source, path = written(tmp_path, kind)
    images = load_images(source)
    path.unlink()
    with pytest.raises(ImageError, match=re.escape(f"{path}: cannot be read: No such file")):
        images.check()


def test_what_is_in_memory_may_change_on_disk(tmp_path):
    path = write_packed_npz(tmp_path)
    images = load_images(str(path))
    path.unlink()
    assert np.array_equal(images.select(ROWS).pixels, EXPECTED[ROWS])


# --- pictures -----------------------------------------------------------------------------------


def break_picture(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_pictures_are_decoded_when_they_are_asked_for(tmp_path):
    write_pictures(tmp_path)
    break_picture(tmp_path / "2.png")
    images = load_images(str(tmp_path))
    images.select([0, 1, 3]).check()
    message = re.escape(f"{tmp_path / '2.png'}: cannot be read: ")
    for read in (images.check, lambda: images.digest, lambda: images.select([2]).pixels):
        with pytest.raises(ImageError, match=f"^{message}"):
            read()


def test_a_broken_picture_ends_an_audit_before_it_begins(tmp_path):
    write_pictures(tmp_path)
    break_picture(tmp_path / "2.png")
    asked = {"checkpoint": "bit-depth:bits=5", "data": str(tmp_path)}
    with pytest.raises(ImageError, match=r"2\.png: cannot be read: "):
        prepare(asked, CPU)
    left = prepare(asked | {"last_id": 2}, CPU)
    assert sorted(left.images.ids.tolist()) == [0, 1]


# --- choices ------------------------------------------------------------------------------------


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    seed=st.integers(0, 2**64 - 1),
    data=st.data(),
)
def test_choices_are_those_of_classes_taking_turns(labels, seed, data):
    """`choose` sorts columns; here classes take turns one image after the other."""
    ids = data.draw(st.permutations(range(10, 10 + len(labels))))

    def rank(row):
        text = f"purify-audit choice {seed} {ids[row]}".encode()
        return hashlib.blake2b(text, digest_size=8).digest()

    queues = {label: [] for label in labels}
    for row in sorted(range(len(labels)), key=rank):
        queues[labels[row]].append(row)
    wanted = []
    while any(queues.values()):
        wanted += sorted((queue.pop(0) for queue in queues.values() if queue), key=rank)
    images = ImageSet(np.zeros((len(labels), 1, 1, 1)), np.array(labels), np.array(ids), "made up")
    chosen = choose(images, len(labels), seed)
    assert chosen.ids.tolist() == [ids[row] for row in wanted]
    assert chosen.labels.tolist() == [labels[row] for row in wanted]
