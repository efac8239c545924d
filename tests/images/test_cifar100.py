"""CIFAR-100 in both its versions, and telling its lone binary files from CIFAR-10's."""

import pickle

import numpy as np
import pytest

from purify_audit.core.errors import ImageError
from purify_audit.images.image_set import load_images


def batch(n, first=0):
    """As published: rows of 1024 red, 1024 green and 1024 blue values, with both labels."""
    return {
        b"filenames": [b"picture_%d.png" % i for i in range(n)],
        b"batch_label": b"testing batch 1 of 1",
        b"fine_labels": [(first + 7 * i) % 100 for i in range(n)],
        b"coarse_labels": [(first + 3 * i) % 20 for i in range(n)],
        b"data": (np.arange(n * 3072) * 7 + first).astype(np.uint8).reshape(n, 3072),
    }


def write_pickle(path, value):
    path.write_bytes(pickle.dumps(value, 2))


def write_binary(path, value):
    """Records of 3074 bytes: the coarse label, the fine label, the pixels."""
    labels = np.array([value[b"coarse_labels"], value[b"fine_labels"]], np.uint8).T
    path.write_bytes(np.hstack([labels, value[b"data"]]).tobytes())


def write_folder(folder, write):
    folder.mkdir()
    ending = ".bin" if write is write_binary else ""
    write(folder / f"test{ending}", batch(4))
    write(folder / f"train{ending}", batch(5, first=1))
    return str(folder)


@pytest.mark.parametrize("write", [write_pickle, write_binary])
def test_folders(tmp_path, write):
    source = write_folder(tmp_path / "c", write)
    (tmp_path / "c" / "meta").write_bytes(b"names of classes, ignored")
    test, train = load_images(source), load_images(f"{source}:train")
    assert test.pixels.shape == (4, 3, 32, 32)
    assert test.pixels[2, 1, 3, 5] == batch(4)[b"data"][2, 1024 + 3 * 32 + 5] / np.float32(255)
    assert test.labels.tolist() == [0, 7, 14, 21]
    assert train.labels.tolist() == [1, 8, 15, 22, 29]
    assert load_images(f"{source}:coarse").labels.tolist() == [0, 3, 6, 9]
    for both in ("train,coarse", "coarse,train"):
        images = load_images(f"{source}:{both}")
        assert images.labels.tolist() == [1, 4, 7, 10, 13]
        assert np.array_equal(images.pixels, train.pixels)
        assert images.source == f"{source}:{both}"


def test_both_versions_are_the_same_images(tmp_path):
    python = write_folder(tmp_path / "py", write_pickle)
    binary = write_folder(tmp_path / "bin", write_binary)
    for part in ("", ":train", ":coarse", ":train,coarse"):
        assert load_images(python + part).digest == load_images(binary + part).digest


def test_a_lone_binary_file(tmp_path):
    source = write_folder(tmp_path / "bin", write_binary)
    assert load_images(f"{source}/test.bin").digest == load_images(source).digest
    (tmp_path / "bin" / "train.bin").rename(tmp_path / "renamed.bin")
    assert load_images(f"{tmp_path}/renamed.bin").labels.tolist() == [1, 8, 15, 22, 29]
    assert load_images(f"{tmp_path}/renamed.bin:coarse").labels.tolist() == [1, 4, 7, 10, 13]


def test_length_and_name_tell_the_two_data_sets_apart(tmp_path):
    both = bytes(3073 * 3074)
    for name in ("data_batch_2.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(both)
        assert len(load_images(str(tmp_path / name))) == 3074
    (tmp_path / "test.bin").write_bytes(both)
    assert len(load_images(str(tmp_path / "test.bin"))) == 3073
    (tmp_path / "a.bin").write_bytes(both)
    with pytest.raises(
        ImageError,
        match=r"a\.bin: 9446402 bytes are whole records of CIFAR-10 and of CIFAR-100; name it"
        r" 'test_batch\.bin' if it is CIFAR-10, 'test\.bin' if it is CIFAR-100",
    ):
        load_images(str(tmp_path / "a.bin"))
    (tmp_path / "test.bin").write_bytes(bytes(2 * 3073))  # CIFAR-10 under a name of CIFAR-100
    assert len(load_images(str(tmp_path / "test.bin"))) == 2
    with pytest.raises(ImageError, match=r"test\.bin: CIFAR-10 has no coarse labels; remove"):
        load_images(f"{tmp_path / 'test.bin'}:coarse")
    (tmp_path / "test.bin").write_bytes(bytes(3075))
    with pytest.raises(ImageError, match="3075 bytes are not whole CIFAR-100 records of 3074"):
        load_images(str(tmp_path / "test.bin"))
    (tmp_path / "test_batch.bin").write_bytes(bytes(3074))
    with pytest.raises(ImageError, match="3074 bytes are not whole CIFAR-10 records of 3073"):
        load_images(str(tmp_path / "test_batch.bin"))


def test_coarse_labels_of_cifar_10(tmp_path):
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073))
    with pytest.raises(ImageError, match="only CIFAR-100 supports ':coarse'"):
        load_images(f"{tmp_path}:coarse")


REFUSED = {
    "fine": ({b"fine_labels": [99, 100]}, "", "label 100 of row 1 is not one of CIFAR-100's 0..99"),
    "negative": ({b"fine_labels": [-1, 0]}, "", "label -1 of row 0 is not one of CIFAR-100's"),
    "coarse": ({b"coarse_labels": [19, 20]}, ":coarse", "label 20 .* CIFAR-100's coarse 0..19"),
    "few": ({b"fine_labels": [1]}, "", "'fine_labels' is not one integer per image"),
    "one kind": ({b"coarse_labels": None}, ":coarse", "'coarse_labels' is not one integer"),
    "list": ({b"data": [1, 2]}, "", r"'data' is not an array of uint8 \[n, 3072\]"),
    "code": ({b"fine_labels": print}, "", r"names '__builtin__\.print', which could run code"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_pickles(tmp_path, case):
    changes, part, message = REFUSED[case]
    write_pickle(tmp_path / "test", {**batch(2), **changes})
    with pytest.raises(ImageError, match=f"/test: .*{message}") as caught:
        load_images(f"{tmp_path}{part}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", pickle.dumps(batch(2), 2)[:-40]])
def test_files_of_another_kind(tmp_path, content):
    (tmp_path / "test").write_bytes(content)
    with pytest.raises(ImageError, match="/test: cannot be read: "):
        load_images(str(tmp_path))


def test_a_missing_file_is_named(tmp_path):
    source = write_folder(tmp_path / "c", write_binary)
    (tmp_path / "c" / "train.bin").unlink()
    with pytest.raises(ImageError, match=r"train\.bin: is missing; unpack CIFAR-100 again"):
        load_images(f"{source}:train")


def test_links_that_leave_the_folder_are_refused(tmp_path):
    write_pickle(tmp_path / "elsewhere", batch(2))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "test").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match="/test: is a link that leaves its folder; put the file"):
        load_images(str(tmp_path / "c"))


def test_pictures_beside_a_file_called_test_come_first(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "test").write_bytes(b"notes")
    image.new("L", (5, 4)).save(tmp_path / "a.png")
    assert load_images(str(tmp_path)).pixels.shape == (1, 1, 4, 5)
