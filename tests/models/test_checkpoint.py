"""One file holds weights and card; every other file is refused in one sentence."""

import hashlib
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys

import pytest
import torch
from conftest import FAMILIES, example_card
from effort import calls
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from purify_audit.core.errors import CardError, CheckpointError, InputError, PurifyAuditError
from purify_audit.models.checkpoint import (
    METADATA_KEY,
    TensorInfo,
    file_sha256,
    load_tensors,
    read_checkpoint,
    read_header,
    save_checkpoint,
    transform_checkpoint,
)
from purify_audit.models.load import load_purifier
from purify_audit.models.networks import build_network
from purify_audit.spec.card import TransformCard, parse_card

CPU = torch.device("cpu")
CARD = json.dumps(example_card("feedforward"))
CARDED = {METADATA_KEY: CARD}


def pack(header, data=b""):
    """The bytes of a safetensors file, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape=(2,), begin=0, end=8, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.fixture
def fault(tmp_path):
    """Bytes -> the one sentence that refuses them, less the name of the file."""

    def refuse(content, error=CheckpointError):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(error) as raised:
            read_checkpoint(path)
        message = str(raised.value)
        assert type(raised.value) is error
        assert raised.value.exit_code == 2
        assert message.isprintable()
        assert len(message) < 1000
        assert message.startswith(f"{path}: ")
        return message.removeprefix(f"{path}: ")

    return refuse


# --- what is written is what is read ------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_card_survive_a_round_trip(family, tmp_path, make_card, random_tensors):
    card = make_card(family)
    tensors = random_tensors(card)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, card, tensors)
    checkpoint = read_checkpoint(path)
    assert checkpoint.card == card
    assert (checkpoint.source, checkpoint.path) == (str(path), path)
    assert checkpoint.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.sha256 == file_sha256(path)
    loaded = load_tensors(checkpoint)
    assert loaded.keys() == tensors.keys() == checkpoint.tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)


def test_the_library_of_the_format_reads_the_file(stored):
    path = stored("feedforward")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(read_checkpoint(path).tensors)
        assert json.loads(file.metadata()[METADATA_KEY])["name"] == "tiny feedforward"


def test_the_header_is_as_the_format_says(stored):
    path = stored("feedforward")
    header = read_header(path)
    assert header["__metadata__"].keys() == {METADATA_KEY}
    info = read_checkpoint(path).tensors["encoder.0.weight"]
    assert info == TensorInfo("F32", (2, 1, 3, 3))


def test_the_same_model_gives_the_same_bytes(tmp_path, make_card, random_tensors):
    card = make_card("cifar-resnet")
    tensors = random_tensors(card)
    backwards = dict(reversed(tensors.items()))
    strided = {
        name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
    }
    contents = set()
    for order in (tensors, backwards, strided, random_tensors(card)):
        save_checkpoint(tmp_path / "model.safetensors", card, order)
        contents.add((tmp_path / "model.safetensors").read_bytes())
    assert len(contents) == 1
    save_checkpoint(tmp_path / "model.safetensors", card, random_tensors(card, seed=1))
    assert (tmp_path / "model.safetensors").read_bytes() not in contents


def test_weights_that_require_gradients_are_saved(tmp_path, make_card):
    weights = {"w": torch.ones(2, requires_grad=True)}
    save_checkpoint(tmp_path / "m.safetensors", make_card("feedforward"), weights)
    assert not load_tensors(read_checkpoint(tmp_path / "m.safetensors"))["w"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_tensors_are_loaded_as_stored(dtype, stored):
    path = stored("feedforward", lambda _: {"w": torch.ones(2, 3, dtype=dtype)})
    loaded = load_tensors(read_checkpoint(path))
    assert loaded["w"].dtype == dtype
    assert loaded["w"].shape == (2, 3)


def test_empty_and_scalar_tensors(stored):
    tensors = {"a": torch.ones(0, 3), "b": torch.tensor(2.0), "c": torch.ones(0)}
    checkpoint = read_checkpoint(stored("feedforward", lambda _: tensors))
    assert checkpoint.tensors["a"] == TensorInfo("F32", (0, 3))
    assert checkpoint.tensors["b"] == TensorInfo("F32", ())
    assert checkpoint.parameters == 1
    assert load_tensors(checkpoint)["b"] == 2


def test_no_tensors_at_all(stored):
    assert load_tensors(read_checkpoint(stored("feedforward", lambda _: {}))) == {}


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_as_long_as_a_pickle_magic_is_no_pickle(length, tmp_path):
    """`80 04` is the length 1152 in little-endian, and how a pickle of protocol 4 begins."""
    text = json.dumps({"__metadata__": CARDED}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack(text.ljust(length)))
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    assert read_checkpoint(path).card.family == "feedforward"


def test_a_transformation_is_a_checkpoint_without_a_file(make_card):
    card = make_card("transform")
    checkpoint = transform_checkpoint("median:size=3", card)
    assert isinstance(checkpoint.card, TransformCard)
    assert (checkpoint.path, checkpoint.tensors, checkpoint.parameters) == (None, {}, 0)
    assert load_tensors(checkpoint) == {}
    other = make_card("transform", transform={"kind": "median", "size": 5})
    assert checkpoint.sha256 == transform_checkpoint("other name", card).sha256
    assert checkpoint.sha256 != transform_checkpoint("median:size=3", other).sha256


# --- saving -------------------------------------------------------------------------------------


def test_saving_leaves_one_file(stored, tmp_path):
    path = stored("feedforward")
    stored("feedforward")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("broken", ["write_bytes", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file(broken, error, stored, tmp_path, monkeypatch):
    path = stored("feedforward")
    before = path.read_bytes()

    def fail(scratch, *_):
        if broken == "write_bytes":
            os.close(os.open(scratch, os.O_CREAT))  # as a full disk does
        raise error

    if broken == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        stored("feedforward", name="another")
    if isinstance(error, OSError):
        assert str(raised.value) == f"{path}: cannot be written: No space left on device"
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere/model.safetensors", "No such file or directory"),
        ("file/model.safetensors", "Not a directory"),
        ("folder", "Is a directory"),
        ("n" * 300, "File name too long"),
        (".", "."),
        ("/", "."),
    ],
)
def test_where_nothing_can_be_saved(name, reason, tmp_path, make_card):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=rf": cannot be written: {reason}"):
        save_checkpoint(tmp_path / name, make_card("feedforward"), {})
    assert sorted(tmp_path.iterdir()) == before


def test_a_long_name_can_be_saved(tmp_path, make_card):
    path = tmp_path / ("n" * 255)
    save_checkpoint(path, make_card("feedforward"), {})
    assert read_checkpoint(path).card.name == "tiny feedforward"


# --- what is no file ----------------------------------------------------------------------------


def odd_paths(folder):
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "folder").mkdir()
    (folder / "file").touch()
    os.mkfifo(folder / "pipe")
    return {
        "missing": "no such file$",
        "dangling": "no such file$",
        "loop": "cannot be read: Too many levels of symbolic links$",
        "folder": "is a directory, not a .safetensors file$",
        "pipe": "is a device or pipe, not a .safetensors file$",
        "file": "is empty$",
        "file/inside": "cannot be read: Not a directory$",
        "n" * 300: "cannot be read: File name too long$",
        "/dev/zero": "is a device or pipe, not a .safetensors file$",
    }


def test_what_is_no_file_is_refused(tmp_path):
    for name, message in odd_paths(tmp_path).items():
        with pytest.raises(CheckpointError, match=message) as raised:
            read_checkpoint(tmp_path / name)
        assert str(raised.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("command", ["inspect", "compress"])
def test_what_is_no_file_is_refused_on_the_command_line(command, tmp_path, refused):
    for name, message in odd_paths(tmp_path).items():
        if "is a directory" in message:  # which may be a diffusers folder
            message = "is a folder without a diffusers model"
        assert re.search(
            message.rstrip("$").removesuffix(", not a .safetensors file"),
            refused(command, tmp_path / name),
        )


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_permission_to_read(stored):
    path = stored("feedforward")
    path.chmod(0)
    with pytest.raises(CheckpointError, match=r": cannot be read: Permission denied$"):
        read_checkpoint(path)


def test_a_file_that_fails_while_it_is_read(stored, monkeypatch):
    path = stored("feedforward")

    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", fail)
    for read in (read_checkpoint, file_sha256):
        with pytest.raises(InputError, match=f"^{path}: cannot be read: Permission denied$"):
            read(path)


def test_a_file_that_vanishes_before_its_weights_are_loaded(stored):
    path = stored("feedforward")
    checkpoint = read_checkpoint(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"^{path}: cannot be read: .*No such file"):
        load_tensors(checkpoint)


# --- what is another format ---------------------------------------------------------------------


class Bomb:
    """A pickle that would leave a trace if it were opened."""

    def __reduce__(self):
        return os.mkdir, ("opened",)


def pickles():
    weights = {"w": torch.ones(2)}
    for modern in (True, False):
        buffer = io.BytesIO()
        torch.save(weights, buffer, _use_new_zipfile_serialization=modern)
        yield buffer.getvalue()
    for protocol in (2, 3, 4, 5):
        yield pickle.dumps(Bomb(), protocol)
        yield pickle.dumps({"w": list(range(1000))}, protocol)


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("command", ["inspect", "compress"])
def test_a_pickle_by_any_name_is_never_opened(number, command, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(list(pickles())[number])
    message = refused(command, path)
    assert message.startswith(f"{path}: ")
    weights = number < 2  # torch.save of a state dict, which is read without running anything
    assert ("its tensor names are of no known format" in message) == weights
    assert ("is a Python pickle" in message) == (not weights)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"w": [1.0, 2.0]}, 0),
        pickle.dumps({"w": [1.0, 2.0]}, 1),
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"GGUF\x03\x00\x00\x00" + bytes(100),
        b'{"name": "a card, not a checkpoint"}',
        b"\xff" * 100,
    ],
)
def test_other_formats(content, fault):
    assert re.search(
        r"^the header declares \d+ bytes but can have at most \d+: truncated, or not a safetensors"
        " file$",
        fault(content),
    )


# --- truncated files ----------------------------------------------------------------------------


def test_prefixes_of_a_file_are_refused(stored, fault):
    whole = stored("feedforward").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    seen = set()
    first_byte = 8 + length
    interesting = {*range(20), *range(first_byte - 9, first_byte + 9), *range(0, len(whole), 29)}
    for size in interesting | {len(whole) - 1}:
        message = fault(whole[:size])
        seen.add(re.sub(r"\d+|'.*?'|\[.*?\]", "#", message))
        if size == 0:
            assert message == "is empty"
        elif size < 8:
            assert message == f"has only {size} bytes: truncated"
        elif size < 8 + length:
            assert message == (
                f"the header declares {length} bytes but can have at most {size - 8}: truncated, or"
                " not a safetensors file"
            )
        else:
            assert re.search(r"^tensor '\S+' of shape .* of \d+: truncated or damaged$", message)
    assert len(seen) == 4


# --- headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 7, 8])
def test_a_length_that_cuts_the_header(length, fault):
    content = pack({"__metadata__": CARDED})
    message = "the header is not JSON: not a safetensors file"
    assert fault(struct.pack("<Q", length) + content[8:]) == message


@pytest.mark.parametrize("length", [10_000, 2**31, 2**32, 2**63, 2**64 - 1])
def test_a_length_beyond_the_file(length, fault):
    content = struct.pack("<Q", length) + pack({"__metadata__": CARDED})[8:]
    found = fault(content)
    assert found.startswith(f"the header declares {length} bytes but can have at most ")


def test_a_header_beyond_the_limit_of_the_format_is_not_read(tmp_path):
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2 * 10**8))
        file.truncate(3 * 10**8)
    with pytest.raises(
        CheckpointError, match=r"declares 20{8} bytes but can have at most 10{8}: truncated"
    ):
        read_header(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the header is not JSON: not a safetensors file"),
        (b"{", "the header is not JSON: not a safetensors file"),
        (b"{'a': 1}", "the header is not JSON: not a safetensors file"),
        (b"{} {}", "the header is not JSON: not a safetensors file"),
        (b"\0" * 16, "the header is not JSON: not a safetensors file"),
        (b'{"\xff": 1}', "the header is not JSON: not a safetensors file"),
        (b"\xef\xbb\xbf{}", "the header is not JSON: not a safetensors file"),
        ("{}".encode("utf-16"), "the header is not JSON: not a safetensors file"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the header is not JSON: not a safetensors file"),
        (b"[" * 100_000, "the header is not JSON: not a safetensors file"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "the header is not JSON: not a"),
        (b"[]", "the header is not a JSON object"),
        (b"null", "the header is not a JSON object"),
        (b'"{}"', "the header is not a JSON object"),
        (b'{"w": 1, "w": 2}', "the header repeats 'w'"),
        (b'{"__metadata__": {"a": "b", "a": "c"}}', "the header repeats 'a'"),
        (b'{"__metadata__": {}, "__metadata__": {}}', "the header repeats '__metadata__'"),
        (b'{"w\\n\\u001b[2J": 1, "w\\n\\u001b[2J": 2}', r"the header repeats 'w\\n\\x1b\[2J'"),
        (b'{"__metadata__": []}', "__metadata__ in the header is not a map of strings"),
        (b'{"__metadata__": null}', "__metadata__ in the header is not a map of strings"),
        (b'{"__metadata__": {"a": 1}}', "__metadata__ in the header is not a map of strings"),
        (b'{"__metadata__": {"a": {}}}', "__metadata__ in the header is not a map of strings"),
    ],
)
def test_damaged_headers(text, message, fault):
    assert re.match(message, fault(pack(text)))


@pytest.mark.parametrize("header", [{}, {"__metadata__": {}}, {"__metadata__": {"format": "pt"}}])
def test_weights_without_a_card(header, fault, tmp_path, refused):
    path = tmp_path / "model.safetensors"
    assert fault(pack(header | {"w": entry()}, bytes(8)), CardError) == (
        "no card: the header has no 'purify_audit' entry, which describes the use of the weights;"
        f" write a card and attach it with `purify-audit attach {path} CARD OUT`"
    )
    strange = f"{path}: its tensor names are of no known format (w, …)"
    assert refused("inspect", path).startswith(strange)
    assert refused("compress", path).startswith(strange)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("", "Invalid JSON"),
        ("not JSON", "Invalid JSON"),
        ("[" * 10_000, "Invalid JSON: recursion limit exceeded"),
        (CARD.replace('"tiny feedforward"', "NaN"), "field 'feedforward.name'"),
        (
            CARD.replace('"channels": 1', '"channels": Infinity'),
            "field 'feedforward.image.channels'",
        ),
        (CARD.replace('"family": "feedforward"', '"spec": 7'), "the card is of version 7, but"),
    ],
)
def test_cards_that_cannot_be_used(card, message, fault, tmp_path, refused):
    path = tmp_path / "model.safetensors"
    found = fault(pack({"__metadata__": {METADATA_KEY: card}}), CardError)
    assert message in found
    for command in ("inspect", "compress"):
        assert refused(command, path) == f"{path}: {found}"


# --- tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_entry", "message"),
    [
        (None, "the header does not give its dtype, shape and offsets"),
        ([], "the header does not give its dtype, shape and offsets"),
        ("F32", "the header does not give its dtype, shape and offsets"),
        ({}, "the header does not give its dtype, shape and offsets"),
        ({"dtype": "F32", "shape": [2]}, "the header does not give its dtype, shape and offsets"),
        (entry() | {"dtype": 32}, "the header does not give its dtype, shape and offsets"),
        (entry() | {"dtype": ["F32"]}, "the header does not give its dtype, shape and offsets"),
        (entry() | {"shape": 2}, "the header does not give its dtype, shape and offsets"),
        (entry() | {"shape": "2"}, "the header does not give its dtype, shape and offsets"),
        (entry() | {"shape": {}}, "the header does not give its dtype, shape and offsets"),
        (entry() | {"data_offsets": [0]}, "the header does not give its dtype, shape and"),
        (entry() | {"data_offsets": [0, 4, 8]}, "the header does not give its dtype, shape and"),
        (entry() | {"data_offsets": "08"}, "the header does not give its dtype, shape and"),
        (entry(dtype="F99"), "of unknown type 'F99'"),
        (entry(dtype="f32"), "of unknown type 'f32'"),
        (entry(dtype="\n" * 10**6), r"of unknown type '(\\n){300}…'"),
        (entry([-2]), r"shape \[-2\] and offsets \[0, 8\] are not integers in range"),
        (entry([-1, -2]), "are not integers in range"),
        (entry([2.0]), r"shape \[2.0\] and offsets .* are not integers in range"),
        (entry([True, 2]), "are not integers in range"),
        (entry(["2"]), "are not integers in range"),
        (entry([[2]]), "are not integers in range"),
        (entry([None]), "are not integers in range"),
        (entry([1] * 65), "are not integers in range"),
        (entry([10**6] * 10**5), "are not integers in range"),
        (entry([2], -8, 0), r"offsets \[-8, 0\] are not integers in range"),
        (entry([2], 0.0, 8.0), "are not integers in range"),
        (entry([2], 0, "8"), "are not integers in range"),
        (entry([2**63]), "are not integers in range"),
        (entry([0, 2**63], 0, 0), "are not integers in range"),
        (entry([2], 2**64, 2**64 + 8), "are not integers in range"),
        (entry([2**62, 4]), rf"needs {2**66} bytes; .* at 0..8 of 8: truncated or damaged"),
        (entry([2**32, 2**32]), rf"needs {2**66} bytes; .* at 0..8 of 8: truncated or damaged"),
        (entry([2**62], 0, 2**62), f"needs {2**64} bytes"),
        (entry([2**61 - 1], 0, 2**63 - 4), "at 0..9223372036854775804 of 8: truncated or damaged"),
        (entry([3]), r"of shape \[3\] and type F32 needs 12 bytes; the header places it at 0..8"),
        (entry([2], dtype="F64"), r"of shape \[2\] and type F64 needs 16 bytes"),
        (entry([2], 8, 0), "needs 8 bytes; the header places it at 8..0 of 8"),
        (entry([2], 4, 12), "needs 8 bytes; the header places it at 4..12 of 8: truncated"),
        (entry([1], 4, 8), "begins at byte 4 where 0 was expected: the header leaves a gap"),
        (entry([0], 4, 4), "begins at byte 4 where 0 was expected: the header leaves a gap"),
    ],
)
def test_damaged_tensors(given_entry, message, fault):
    content = pack({"__metadata__": CARDED, "some.weight": given_entry}, bytes(8))
    assert re.search(rf"^tensor 'some.weight'.*{message}", fault(content))


def test_overlapping_tensors(fault):
    header = {"__metadata__": CARDED, "a": entry([2], 0, 8), "b": entry([2], 4, 12)}
    assert fault(pack(header, bytes(12))) == (
        "tensor 'b' begins at byte 4 where 8 was expected: the header leaves a gap, or"
        " tensors overlap"
    )
    header["b"] = entry([2], 0, 8)
    assert fault(pack(header, bytes(8))).startswith("tensor 'b' begins at byte 0 where 8 was")


def test_a_hole_between_tensors(fault):
    header = {"__metadata__": CARDED, "b": entry([2], 12, 20), "a": entry([2], 0, 8)}
    assert fault(pack(header, bytes(20))).startswith("tensor 'b' begins at byte 12 where 8 was")


@pytest.mark.parametrize(("extra", "header"), [(4, {"w": entry()}), (12, {}), (10**6, {})])
def test_trailing_bytes(extra, header, fault):
    data = bytes(8 * len(header) + extra)
    content = pack({"__metadata__": CARDED} | header, data)
    assert fault(content) == f"{extra} bytes belong to no tensor"


def test_a_hostile_name_cannot_break_the_line(fault):
    for name in ("w\nTraceback (most recent call last):", "\x1b[2J", "\ud800", "n" * 10**6):
        for header in ({name: 1}, {name: entry([3])}, {name: entry([1], 4, 8)}):
            assert fault(pack({"__metadata__": CARDED} | header, bytes(8))).startswith("tensor '")


def test_a_header_of_many_names_is_checked_in_linear_time(fault, tmp_path):
    entries = {f"t{n}": entry([1], 4 * n, 4 * n + 4) for n in range(20_000)}
    text = json.dumps({"__metadata__": CARDED} | entries)
    path = tmp_path / "many.safetensors"
    path.write_bytes(pack(text.encode(), bytes(80_000)))
    found, count = calls(lambda: read_checkpoint(path))
    assert len(found.tensors) == 20_000
    assert count < 100 * 20_000
    repeated = text[:-1] + ', "t19999": 1}'
    assert fault(pack(repeated.encode(), bytes(80_000))) == "the header repeats 't19999'"


# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float32, float("nan")),
        (torch.float32, float("-inf")),
        (torch.float16, float("inf")),
        (torch.bfloat16, float("nan")),
        (torch.float64, float("nan")),
        (torch.float64, 1e300),  # infinite once it is float32
        (torch.float8_e5m2, float("inf")),
    ],
)
def test_weights_that_are_not_finite(dtype, value, stored):
    def spoil(tensors):
        bad = torch.full((5, 2), 1.0, dtype=torch.float64)
        bad[2, 1] = bad[4, 0] = value
        return tensors | {"encoder.0.bias": bad.to(dtype)}

    path = stored("feedforward", spoil)
    assert read_checkpoint(path).card.family == "feedforward"  # the header is in order
    with pytest.raises(CheckpointError) as raised:
        load_tensors(read_checkpoint(path))
    assert str(raised.value) == (
        f"{path}: tensor 'encoder.0.bias' has 2 NaN or infinite values of 10; the training or the"
        " conversion that wrote it failed"
    )


# --- inspect ------------------------------------------------------------------------------------


def test_inspect_shows_the_card(stored, run_cli):
    path = stored("diffusion")
    code, out, err = run_cli("inspect", path)
    assert (code, err) == (0, "")
    assert '"name": "tiny diffusion"' in out
    checkpoint = read_checkpoint(path)
    assert f"parameters  {checkpoint.parameters:,} in {len(checkpoint.tensors)} tensors" in out
    assert f"sha256      {checkpoint.sha256}" in out


def test_inspect_as_json(stored, run_cli):
    path = stored("cnn")
    code, out, _ = run_cli("inspect", path, "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["sha256"] == file_sha256(path)
    assert shown["parameters"] == read_checkpoint(path).parameters
    assert shown["card"]["classes"] == 10


def test_inspect_does_not_import_torch(stored):
    script = (
        "import sys; from purify_audit.models.checkpoint import read_checkpoint;"
        "read_checkpoint(sys.argv[2]); assert 'torch' not in sys.modules;"
        "from purify_audit.cli import app; app(standalone_mode=False);"
        "assert 'torch' not in sys.modules; assert 'safetensors' not in sys.modules"
    )
    command = [sys.executable, "-c", script, "inspect", str(stored("diffusion"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tiny diffusion" in done.stdout


@pytest.mark.parametrize("command", ["inspect", "compress"])
def test_a_real_process_ends_with_one_sentence(command, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack({"__metadata__": CARDED, "w": entry([2**62, 4])}, bytes(8)))
    done = subprocess.run(
        [sys.executable, "-m", "purify_audit", command, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "10000"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"purify-audit: {path}: tensor 'w' of shape [{2**62}, 4] and type F32 needs {2**66} bytes;"
        " the header places it at 0..8 of 8: truncated or damaged\n"
    )


# --- damage at random ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The bytes of a small valid file, and a path to write damaged copies to."""
    card = parse_card(
        json.dumps(
            example_card("feedforward") | {"network": {"arch": "autoencoder", "widths": [1]}}
        ),
        "t",
    )
    folder = tmp_path_factory.mktemp("fuzz")
    save_checkpoint(folder / "valid.safetensors", card, build_network(card).state_dict())
    return (folder / "valid.safetensors").read_bytes(), folder / "damaged.safetensors"


def outcome(path):
    """Read and load a file as `compress` would: the message if it is refused, or nothing."""
    message, code = "", 2
    try:
        load_purifier(read_checkpoint(path), CPU)
    except PurifyAuditError as error:
        message, code = str(error), error.exit_code
    assert code == 2
    return message


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert", "delete", "copy"]),
        st.integers(0, 2**16),
        st.integers(0, 255),
        st.integers(1, 24),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content, edits):
    for kind, where, byte, length in edits:
        place = where % max(1, len(content))
        before, after = content[:place], content[place:]
        match kind:
            case "flip":
                after = bytes(b ^ (1 << byte % 8) for b in after[:1]) + after[1:]
            case "set":
                after = bytes([byte]) + after[1:]
            case "cut":
                after = b""
            case "insert":
                after = bytes([byte]) * length + after
            case "delete":
                after = after[length:]
            case "copy":
                after = content[byte : byte + length] + after
        content = before + after
    return content


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(edits=EDITS)
@example(edits=[])
def test_random_damage_is_read_or_refused_in_one_line(tiny, edits):
    content, path = tiny
    path.write_bytes(damaged(content, edits))
    message = outcome(path)
    assert message.isprintable()
    assert (message == "") or message.startswith(f"{path}: ")
    if not edits:
        assert message == ""


ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["F32", "F16", "BOOL", "U64", "F8_E4M3"]),
    st.lists(st.integers(-1, 20) | st.sampled_from([2**31, 2**63 - 1, 2**63]), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(data=st.data())
def test_a_damaged_entry_is_read_or_refused_in_one_line(tiny, data):
    content, path = tiny
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(header)))
    keys = st.sampled_from(["dtype", "shape", "data_offsets", METADATA_KEY])
    if data.draw(st.booleans()):
        header[name][data.draw(keys)] = data.draw(ODD_VALUES)
    else:
        header[data.draw(st.text(max_size=3) | st.just(name))] = data.draw(ODD_VALUES)
    path.write_bytes(pack(header, content[8 + length :]))
    assert outcome(path).isprintable()
