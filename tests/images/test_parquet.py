"""Parquet files as the Hugging Face Hub keeps image data sets, and what is refused of them."""

import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from purify_audit.core.errors import ImageError
from purify_audit.images.image_set import load_images

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

COLOUR = np.random.default_rng(5).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
EXPECTED = COLOUR.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
LABELS = [2, 0, 1, 1, 0, 2]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(array, kind="PNG", **options):
    content = io.BytesIO()
    Image.fromarray(array).save(content, kind, **options)
    return content.getvalue()


def pictures(arrays=COLOUR):
    rows = [{"bytes": encoded(a), "path": f"{i}.png"} for i, a in enumerate(arrays)]
    return pa.array(rows, PICTURE)


def write(path, columns=None, **options):
    columns = {"image": pictures(), "label": LABELS} if columns is None else columns
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def part(rows):
    """Columns of some of the images."""
    return {"image": pictures(COLOUR[rows]), "label": [LABELS[i] for i in rows]}


# --- one file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "none"])
def test_a_file(tmp_path, compression):
    source = write(tmp_path / "a.parquet", compression=compression, row_group_size=4)
    images = load_images(source)
    assert np.array_equal(images.pixels, EXPECTED)
    assert images.labels.tolist() == LABELS
    assert images.ids.tolist() == list(range(6))
    assert images.source == source


def test_grey_pictures_have_one_channel(tmp_path):
    source = write(tmp_path / "a.parquet", {"image": pictures(COLOUR[..., 0])})
    assert np.array_equal(load_images(source).pixels, EXPECTED[:, :1])


def test_jpeg_is_decoded(tmp_path):
    grey = encoded(np.full((8, 8, 3), 128, np.uint8), "JPEG", quality=95)
    rows = pa.array([{"bytes": grey, "path": None}], PICTURE)
    source = write(tmp_path / "a.parquet", {"image": rows})
    assert load_images(source).pixels == pytest.approx(128 / 255, abs=2 / 255)


COLUMNS = {
    "mnist": ({"image": "pictures", "label": LABELS}, LABELS),
    "cifar10": ({"img": "pictures", "label": LABELS}, LABELS),
    "cifar100": ({"img": "pictures", "fine_label": LABELS, "coarse_label": [0] * 6}, LABELS),
    "only one": ({"photo": "pictures", "labels": LABELS}, LABELS),
    "mask": ({"mask": "pictures", "image": "pictures", "label": LABELS}, LABELS),
    "unlabelled": ({"image": "pictures", "width": [4] * 6, "caption": ["a"] * 6}, None),
    "uint64": ({"image": "pictures", "label": pa.array(LABELS, pa.uint64())}, LABELS),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_by_their_usual_names(tmp_path, case):
    columns, labels = COLUMNS[case]
    columns = {k: pictures() if isinstance(v, str) else v for k, v in columns.items()}
    if "mask" in columns:
        columns["mask"] = pictures(255 - COLOUR)
    images = load_images(write(tmp_path / "a.parquet", columns))
    assert np.array_equal(images.pixels, EXPECTED)
    assert (images.labels if labels is None else images.labels.tolist()) == labels


def test_columns_by_choice(tmp_path):
    columns = {
        "image": pictures(),
        "img": pictures(255 - COLOUR),
        "label": LABELS,
        "labels": LABELS[::-1],
        "target": [5, 4, 3, 2, 1, 0],
    }
    source = write(tmp_path / "a.parquet", columns)
    with pytest.raises(
        ImageError, match="columns 'image' and 'img' are ambiguous; append ':image=NAME'"
    ):
        load_images(source)
    with pytest.raises(
        ImageError, match="'label' and 'labels' are ambiguous; append ':label=NAME'"
    ):
        load_images(f"{source}:image=img")
    images = load_images(f"{source}:image=img,label=target")
    assert images.pixels == pytest.approx(1 - EXPECTED, abs=1e-6)
    assert images.labels.tolist() == [5, 4, 3, 2, 1, 0]
    assert load_images(f"{source}:label=labels,image=image").labels.tolist() == LABELS[::-1]


def test_reading_imports_neither_torch_nor_pyarrow_until_needed():
    check = (
        "import sys, purify_audit.images.image_set as images; images.load_images('digits');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_without_pyarrow(tmp_path, monkeypatch):
    source = write(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = "a.parquet: reading Parquet needs pyarrow; install purify-audit[parquet]"
    with pytest.raises(ImageError, match=f"{re.escape(message)}$"):
        load_images(source)


# --- folders ------------------------------------------------------------------------------------


def test_a_folder_of_shards(tmp_path):
    """The test split unless another is named, its shards in the order of their numbers."""
    write(tmp_path / "test-00001-of-00002.parquet", part([4, 5]))
    write(tmp_path / "test-00000-of-00002.parquet", part([0, 1, 2, 3]))
    write(tmp_path / "train-00000-of-00001-a09b74b3ef9c3b56.parquet", part([3, 2]))
    write(tmp_path / "validation-00000-of-00001.parquet", part([1]))
    (tmp_path / ".test-00002-of-00002.parquet").write_bytes(b"hidden, ignored")
    (tmp_path / "README.md").write_text("ignored")
    assert np.array_equal(load_images(str(tmp_path)).pixels, EXPECTED)
    assert load_images(str(tmp_path)).labels.tolist() == LABELS
    assert np.array_equal(load_images(f"{tmp_path}:train").pixels, EXPECTED[[3, 2]])
    assert load_images(f"{tmp_path}:validation").labels.tolist() == [0]
    assert load_images(f"{tmp_path}:train,label=label").labels.tolist() == [1, 1]


def test_a_folder_of_files_with_other_names(tmp_path):
    """As the Hub converts them: `default/test/0000.parquet`."""
    write(tmp_path / "0001.parquet", part([4, 5]))
    write(tmp_path / "0000.parquet", part([0, 1, 2, 3]))
    assert np.array_equal(load_images(str(tmp_path)).pixels, EXPECTED)
    with pytest.raises(ImageError, match=r"0000\.parquet: is not named like a shard of a split"):
        load_images(f"{tmp_path}:train")
    write(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(ImageError, match=r"0000\.parquet: is not named like a shard .*; name one"):
        load_images(str(tmp_path))


def test_a_split_that_is_not_there(tmp_path):
    write(tmp_path / "train-00000-of-00001.parquet")
    write(tmp_path / "validation-00000-of-00001.parquet")
    message = "has no split 'test', only train, validation; append ':train' or ':validation' to"
    with pytest.raises(ImageError, match=message):
        load_images(str(tmp_path))


@pytest.mark.parametrize("missing", ["0", "1", "2"])
def test_shards_that_are_missing_or_twice_there(tmp_path, missing):
    for number in {"0", "1", "2"} - {missing}:
        write(tmp_path / f"test-0000{number}-of-00003.parquet", part([0]))
    message = "shards of split 'test' are missing or repeated; download it again, or name one"
    with pytest.raises(ImageError, match=message):
        load_images(str(tmp_path))
    write(tmp_path / f"test-0000{missing}-of-00003.parquet", part([0]))
    assert len(load_images(str(tmp_path))) == 3
    write(tmp_path / "test-00000-of-00003-0123456789abcdef.parquet", part([0]))
    with pytest.raises(ImageError, match=message):
        load_images(str(tmp_path))


def test_shards_with_different_columns(tmp_path):
    write(tmp_path / "0.parquet", part([0]))
    write(tmp_path / "1.parquet", {"image": pictures(COLOUR[:1])})
    with pytest.raises(ImageError, match=r"1\.parquet: has other columns .* than 0\.parquet; name"):
        load_images(str(tmp_path))


def test_pictures_beside_a_table_come_first(tmp_path):
    """Folders of pictures may describe them in `metadata.parquet`."""
    write(tmp_path / "metadata.parquet", {"file_name": ["cat/a.png"]})
    (tmp_path / "cat").mkdir()
    Image.fromarray(COLOUR[0]).save(tmp_path / "cat" / "a.png")
    assert np.array_equal(load_images(str(tmp_path)).pixels, EXPECTED[:1])


def test_links_that_leave_the_folder_are_refused(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "elsewhere.parquet")
    link = tmp_path / "data" / "test-00000-of-00001.parquet"
    link.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(ImageError, match=r"of-00001\.parquet: is a link that leaves its folder;"):
        load_images(str(tmp_path / "data"))
    assert len(load_images(str(link))) == 6  # this file was asked for by name


def test_the_cache_of_the_hub_consists_of_links(tmp_path):
    blobs, data = tmp_path / "blobs", tmp_path / "snapshots" / "0f1e2d" / "data"
    blobs.mkdir()
    data.mkdir(parents=True)
    write(blobs / "5ca1ab1e")
    link = data / "test-00000-of-00001.parquet"
    link.symlink_to(os.path.relpath(blobs / "5ca1ab1e", data))
    assert np.array_equal(load_images(str(data)).pixels, EXPECTED)
    write(tmp_path / "elsewhere")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match="is a link that leaves its folder"):
        load_images(str(data))


# --- what is refused ----------------------------------------------------------------------------


def row(**cells):
    return pa.array([{"bytes": encoded(COLOUR[0]), "path": "a.png"}, cells or None], PICTURE)


def struct_of(**fields):
    return pa.array([dict.fromkeys(fields)], pa.struct(list(fields.items())))


REFUSED = {
    "no pictures": (
        {"x": [1], "text": ["a"]},
        r"no column contains pictures \(a struct of bytes and path\); its columns are 'x', 'text'",
    ),
    "plain bytes": ({"image": [b"PNG"]}, "no column contains pictures"),
    "other struct": ({"image": struct_of(bytes=pa.binary())}, "no column contains pictures"),
    "path only": (
        {"image": row(path="/etc/hostname")},
        "row 1: contains no picture but the file name '/etc/hostname', which is not opened",
    ),
    "nothing": ({"image": row()}, "row 1: contains no picture but the file name 'None'"),
    "line break": ({"image": row(path="a\nb")}, r"the file name 'a\\nb', which"),
    "text": ({"image": row(bytes=b"hello")}, "row 1: cannot be read: neither PNG nor JPEG"),
    "gif": (
        {"image": row(bytes=encoded(COLOUR[0], "GIF"))},
        "row 1: cannot be read: neither PNG nor JPEG",
    ),
    "half": ({"image": row(bytes=encoded(COLOUR[0])[:-30])}, "row 1: cannot be read: "),
    "size": (
        {"image": row(bytes=encoded(COLOUR[0, :4]))},
        r"row 1: is \[4, 4, 3\] \(height, width, channels\) but row 0 of a\.parquet is \[5, 4, 3\]",
    ),
    "grey": ({"image": row(bytes=encoded(COLOUR[0, ..., 0]))}, "the same size and mode"),
    "mode": (
        {"image": row(bytes=encoded(np.zeros((5, 4, 4), np.uint8)))},
        r"row 1: has mode RGBA; save it as 8-bit grey \(L\) or RGB",
    ),
    "bomb": (
        {"image": row(bytes=encoded(np.zeros((9500, 9500), np.uint8)))},
        "row 1: cannot be read: .*decompression bomb",
    ),
    "no rows": ({"image": pictures(COLOUR[:0])}, "contains no pictures"),
    "null label": (
        {"image": pictures(), "label": [*LABELS[:5], None]},
        "row 5: has no label; remove such rows",
    ),
    "hidden labels": (
        {"image": pictures(), "label": [-1] * 6},
        r"label -1 of row 0 is not in \[0, 2\*\*32\)",
    ),
    "names": (
        {"image": pictures(), "label": ["cat"] * 6, "id": LABELS},
        "no column 'label' of integers; there are: 'id'; append ':label=NAME'",
    ),
    "lists": (
        {"image": pictures(), "labels": [[i] for i in LABELS]},
        "no column 'labels' of integers; there are: none",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_tables(tmp_path, case):
    columns, message = REFUSED[case]
    source = write(tmp_path / "a.parquet", columns)
    with pytest.raises(ImageError, match=message) as caught:
        load_images(source)
    assert str(caught.value).startswith(f"{source}: ")
    assert "\n" not in str(caught.value)


def test_columns_that_are_not_there(tmp_path):
    source = write(tmp_path / "a.parquet")
    with pytest.raises(ImageError, match=r"no column 'x' of pictures .*; there are: 'image'"):
        load_images(f"{source}:image=x")
    with pytest.raises(ImageError, match=r"no column 'image' of integers; .* are: 'label';"):
        load_images(f"{source}:label=image")
    with pytest.raises(ImageError, match=r"a\.parquet: only digits and folders of CIFAR-10"):
        load_images(f"{source}:train")


def test_the_same_column_twice(tmp_path):
    table = pa.Table.from_arrays([pictures(), pictures()], names=["image", "image"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ImageError, match=r"a\.parquet: cannot be read: "):
        load_images(str(tmp_path / "a.parquet"))


def test_one_picture_repeated_is_not_unpacked_at_once(tmp_path):
    """A file of 0.3 MB that means 600 MB: never more than a few rows of it are in memory."""
    noise = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    content = pa.DictionaryArray.from_arrays(np.zeros(2000, np.int32), [encoded(noise)])
    rows = pa.StructArray.from_arrays([content, pa.array(["a"] * 2000)], ["bytes", "path"])
    source = write(tmp_path / "a.parquet", {"image": rows}, store_schema=False)
    assert os.path.getsize(source) < 500_000
    code = (
        "import sys, pyarrow, purify_audit.images.parquet as p\n"
        "from pathlib import Path; from pyarrow import parquet\n"
        "table = p._Table(Path(sys.argv[1]), 2000, 'image', None)\n"
        "assert sum(1 for _ in p._rows(parquet, table)) == 2000\n"
        "print(pyarrow.default_memory_pool().max_memory())"
    )
    result = subprocess.run([sys.executable, "-c", code, source], capture_output=True, check=True)
    assert int(result.stdout) < 20_000_000


def test_pictures_that_would_not_fit_together(tmp_path):
    big = encoded(np.zeros((4000, 4000), np.uint8))
    content = pa.DictionaryArray.from_arrays(np.zeros(1000, np.int32), [big])
    rows = pa.StructArray.from_arrays([content, pa.array(["a"] * 1000)], ["bytes", "path"])
    source = write(tmp_path / "a.parquet", {"image": rows}, store_schema=False)
    message = r"shape \[1000, 4000, 4000, 1\] would take 60 GiB of memory, more than the 16 GiB"
    with pytest.raises(ImageError, match=message):
        load_images(source)


def test_damaged_files_end_in_one_sentence(tmp_path):
    path = tmp_path / "a.parquet"
    source = write(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    damaged = [whole[:n] for n in (0, 3, 4, 40, len(whole) // 2, len(whole) - 1)]
    for _ in range(60):
        place = int(rng.integers(len(whole)))
        damaged.append(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    told = []
    for content in damaged:
        path.write_bytes(content)
        told.append(complaint(source))
    assert None not in told[:6]
    assert all(text is None or text.startswith(f"{source}: ") for text in told)
    assert not any("\n" in text for text in told if text)


def complaint(source):
    try:
        load_images(source)
    except ImageError as error:
        return str(error)
    return None
