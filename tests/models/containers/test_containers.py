"""Files of weights from strangers: what is good is read, the rest is refused and nothing runs."""

import argparse
import gzip
import hashlib
import io
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import tarfile
import time
import types
import warnings
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from effort import calls
from safetensors.torch import save_file
from torch import nn
from torch._utils import _rebuild_parameter, _rebuild_tensor, _rebuild_tensor_v2

from purify_audit.core.errors import CheckpointError
from purify_audit.models.containers import pickle_checks, trees, zip_checks
from purify_audit.models.containers.read import read_weights
from purify_audit.models.containers.trees import state_dicts, strip_prefix
from purify_audit.models.exported.read import graph_container

FORMATS = ("zip pickle", "legacy pickle")
MAGIC, VERSION, SYSTEM = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}


@pytest.fixture
def fault(tmp_path):
    """A file, or bytes for one -> the one sentence that refuses it, less the file's name."""

    def refuse(file, **options):
        if isinstance(file, bytes):
            (tmp_path / "model.pth").write_bytes(file)
            file = tmp_path / "model.pth"
        before = sorted(file.parent.rglob("*"))
        with pytest.raises(CheckpointError) as raised:
            read_weights(file, **options)
        message = str(raised.value)
        assert message.isprintable()
        assert len(message) < 1200
        assert message.startswith(f"{file}: ")
        assert sorted(file.parent.rglob("*")) == before
        return message.removeprefix(f"{file}: ")

    return refuse


@pytest.fixture
def saved(tmp_path):
    """A value -> the file that torch.save makes of it."""

    def save(value, container="zip pickle", name="model.pth", **options):
        path = tmp_path / name
        torch.save(value, path, _use_new_zipfile_serialization=container == "zip pickle", **options)
        return path

    return save


class Stored:
    """Pickled as torch.save pickles a storage."""

    def __init__(self, numbers=4, kind=torch.FloatStorage, key="0", view=()):
        self.id = ("storage", kind, key, "cpu", numbers, *view)


class Call:
    """Pickled as a call of a function, with a state to build it with where one is given."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Stored) else None


def pickled(value, protocol=2):
    if isinstance(value, bytes):
        return value
    file = io.BytesIO()
    _Pickler(file, protocol).dump(value)
    return file.getvalue()


def tensor(size=(4,), stride=(1,), offset=0, storage=None, function=_rebuild_tensor_v2):
    rest = () if function is _rebuild_tensor else (False, OrderedDict())
    return Call(function, storage or Stored(), offset, size, stride, *rest)


def archive(value, storages=None, change=lambda file: None, **entries):
    """The bytes of a zip archive laid out as torch.save does it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("model/data.pkl", pickled(value))
        file.writestr("model/byteorder", "little")
        for key, content in ({"0": bytes(16)} if storages is None else storages).items():
            file.writestr(f"model/data/{key}", content)
        file.writestr("model/version", "3\n")
        for name, content in entries.items():
            file.writestr(name, content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of duplicate names
            change(file)
    return buffer.getvalue()


def legacy(value, storages=None, keys=None, version=VERSION):
    """The bytes of a legacy file around any pickle."""
    storages = {"0": bytes(16)} if storages is None else storages
    parts = [pickled(part) for part in (MAGIC, version, SYSTEM, value, keys or list(storages))]
    numbers = [struct.pack("<q", len(each) // 4) + each for each in storages.values()]
    return b"".join(parts + numbers)


def wrapped(value, container):
    """A pickle around which either format is laid; in legacy files a storage's id is longer."""
    if container == "zip pickle":
        return archive(value)
    ids = []

    class Pickler(_Pickler):
        def persistent_id(self, each):
            if isinstance(each, Stored):
                ids.append(each.id[2])
            return (*each.id, None) if isinstance(each, Stored) else None

    if isinstance(value, bytes):
        return legacy(value)
    Pickler(file := io.BytesIO(), 2).dump(value)
    return legacy(file.getvalue(), {key: bytes(16) for key in ids})


# --- what is good -------------------------------------------------------------------------------


def same(read, kept):
    if isinstance(kept, torch.Tensor):
        assert type(read) is torch.Tensor
        assert not read.requires_grad
        assert read.dtype == kept.dtype
        assert torch.equal(read, kept)
    elif isinstance(kept, dict):
        assert list(read) == list(kept)
        for key in kept:
            same(read[key], kept[key])
    elif isinstance(kept, list | tuple):
        assert type(read) is type(kept)
        assert len(read) == len(kept)
        for one, other in zip(read, kept):
            same(one, other)
    else:
        assert read == kept
        assert type(read) is type(kept)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def training_state():
    model = network()
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 3)
    model(torch.randn(2, 1, 6, 6)).sum().backward()
    optimiser.step()
    schedule.step()
    return {
        "state_dict": model.state_dict(),
        "optimizer": optimiser.state_dict(),
        "lr": schedule.state_dict(),
        "epoch": 7,
    }


GOOD = {
    "state dict": lambda: network().state_dict(),
    "training": training_state,
    "list": lambda: [network().state_dict(), {"state": {}}, 3, 0.5, {"w": torch.ones(2)}],
    "parameters": lambda: {"w": nn.Parameter(torch.randn(3)), "b": nn.Parameter(torch.ones(1))},
    "ordered": lambda: OrderedDict(b=torch.ones(2), a=torch.zeros(1)),
    "plain": lambda: {"a": None, 1: True, "x": (1, 2.5, -3, 2**40, "λ", [], {}, ())},
    "transposed": lambda: {"w": torch.arange(6.0).reshape(2, 3).t(), "v": torch.arange(9.0)[2:7:2]},
    "empty": lambda: {"w": torch.ones(0, 3), "v": torch.tensor(2.0), "u": torch.ones(0)},
    "types": lambda: {
        str(kind): torch.arange(5).to(kind)
        for kind in (
            *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
            *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        )
    },
}


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.parametrize("name", GOOD)
def test_what_torch_saves_is_read_back(name, container, saved):
    kept = GOOD[name]()
    path = saved(kept, container)
    contents = read_weights(path)
    same(contents.tree, kept)
    assert (contents.container, contents.unpickled) == (container, False)
    assert contents.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("container", FORMATS)
def test_what_is_not_quite_plain_becomes_so(container, saved):
    value = {
        "milestones": Counter({3: 1, 5: 2}),
        "shape": torch.Size((2, 3)),
        "device": torch.device("cuda", 1),
        "dtype": torch.bfloat16,
        "bytes": b"a\xff",
    }
    assert read_weights(saved(value, container)).tree == {
        "milestones": {3: 1, 5: 2},
        "shape": (2, 3),
        "device": "cuda:1",
        "dtype": "torch.bfloat16",
        "bytes": "aÿ",
    }


@pytest.mark.parametrize("container", FORMATS)
def test_weights_that_are_stored_once_stay_shared(container, saved):
    weight = torch.randn(8)
    path = saved({"a": weight, "b": weight, "c": weight[2:4]}, container)
    tree = read_weights(path).tree
    same(tree, {"a": weight, "b": weight, "c": weight[2:4]})
    assert tree["a"].data_ptr() == tree["b"].data_ptr() == tree["c"].data_ptr() - 8


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.ckpt", "m.bin", "m.safetensors", "m"])
def test_content_decides_and_not_the_name(name, saved, tmp_path):
    kept = {"w": torch.randn(3)}
    for container in FORMATS:
        assert read_weights(saved(kept, container, name)).container == container
    save_file(kept, tmp_path / name)
    contents = read_weights(tmp_path / name)
    assert contents.container == "safetensors"
    same(contents.tree, kept)


def test_a_link_to_a_file_is_followed(saved, tmp_path):
    path = saved({"w": torch.ones(2)})
    (tmp_path / "link").symlink_to(path)
    assert read_weights(tmp_path / "link").sha256 == read_weights(path).sha256


def test_a_file_of_python_2_is_read(tmp_path):
    """Short texts are bytes, an ordered dictionary is a list of pairs, a storage has parts."""
    opcodes = (
        b"\x80\x02ccollections\nOrderedDict\n]](U\x01wctorch._utils\n_rebuild_tensor\n"
        b"((U\x07storagectorch\nFloatStorage\nU\x03keyU\x03cpuK\x04U\x04partK\x01K\x02\x87t"
        b"QK\x00K\x02\x85K\x01\x85tRea\x85R."
    )
    numbers = struct.pack("<q4f", 4, 0, 1, 2, 3)
    parts = [pickled(part) for part in (MAGIC, VERSION, SYSTEM)]
    path = tmp_path / "old.ckpt"
    path.write_bytes(b"".join(parts) + opcodes + pickled(["key"]) + numbers)
    same(read_weights(path).tree, {"w": torch.tensor([1.0, 2.0])})


@pytest.mark.parametrize("function", [_rebuild_tensor, _rebuild_tensor_v2])
def test_the_hand_made_pickles_of_these_tests_are_good(function, tmp_path):
    path = tmp_path / "model.pth"
    for container in FORMATS:
        path.write_bytes(wrapped({"w": tensor(function=function)}, container))
        contents = read_weights(path)
        assert contents.container == container
        same(contents.tree, {"w": torch.zeros(4)})


# --- what would run code ------------------------------------------------------------------------


def _hostile(canary):
    command = f"touch {canary}"
    opened = f"open({str(canary)!r}, 'w')"
    return {
        "posix.system": Call(os.system, command),
        "builtins.eval": Call(eval, opened),
        "builtins.exec": Call(exec, opened),
        "io.open": Call(open, str(canary), "w"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(canary)]),
        "builtins.getattr": Call(Call(getattr, os, "system"), command),
        "torch.serialization.load": Call(torch.load, str(canary)),
        "torch.jit._serialization.load": Call(torch.jit.load, str(canary)),
        "argparse.Namespace": Call(argparse.Namespace, state={"a": 1}),
        "test_containers.SetsItself": Call(SetsItself, state=str(canary)),
    }


class SetsItself:
    def __setstate__(self, canary):
        open(canary, "w").close()


HOSTILE = [name for name in _hostile("") if name != "builtins.getattr"]


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("inside", [True, False])
def test_nothing_in_a_pickle_runs(inside, name, container, fault, tmp_path):
    canary = tmp_path / "canary"
    payload = _hostile(canary)[name]
    value = {"state_dict": {"w": tensor()}, "x": [payload, {"y": payload}]} if inside else payload
    message = fault(wrapped(value, container))
    assert not canary.exists()
    assert message.startswith(f"names `{name}`, which only a full unpickle can load")
    assert message.endswith("use --allow-pickle if you trust the author of this file")


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.parametrize("name", ["posix.system", "builtins.exec", "test_containers.SetsItself"])
def test_these_pickles_do_run_where_it_is_allowed(name, container, tmp_path):
    """Else the test above could not fail."""
    canary, path = tmp_path / "canary", tmp_path / "model.pth"
    path.write_bytes(wrapped({"w": _hostile(canary)[name]}, container))
    assert read_weights(path, allow_pickle=True).unpickled
    assert canary.exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_later_protocols_are_told_by_name(protocol, fault, tmp_path):
    canary = tmp_path / "canary"
    for name, payload in _hostile(canary).items():
        if name != "builtins.getattr":
            message = fault(archive(pickled({"w": payload, "v": payload}, protocol)))
            assert message.startswith(f"names `{name}`, which only a full unpickle")
    plain = fault(archive(pickled({"w": 1}, 4)))
    assert plain.startswith("has an opcode FRAME, which only a full unpickle")
    assert not canary.exists()


def test_later_protocols_are_read_where_it_is_allowed(saved):
    path = saved({"w": torch.ones(2)}, pickle_protocol=4)
    contents = read_weights(path, allow_pickle=True)
    same(contents.tree, {"w": torch.ones(2)})
    assert contents.unpickled


def test_code_by_other_opcodes(fault, tmp_path):
    canary = tmp_path / "canary"
    command = f"touch {canary}".encode()
    for opcodes in (
        b"(S'" + command + b"'\niposix\nsystem\n.",  # INST
        b"(cposix\nsystem\nS'" + command + b"'\no.",  # OBJ
        b"cposix\nsystem\n(X" + struct.pack("<I", len(command)) + command + b"tR.",
        b"\x82\x01.",  # EXT1
        b"Pname\n.",  # PERSID
        b"ccollections\nOrderedDict\n)\x81}X\x01\x00\x00\x00aNsb.",  # an attribute for a dict
    ):
        message = fault(archive(opcodes))
        assert not canary.exists()
        assert re.search("full unpickle|damaged", message)


def test_an_ordered_dict_cannot_hide_its_methods(fault):
    hidden = Call(OrderedDict, state={"items": 1})
    assert "gets attributes that weights do not have" in fault(archive(hidden))


def test_no_warning_and_no_temporary_file(saved, tmp_path, monkeypatch):
    """PyTorch's loader would make a folder for a legacy file that is a tar archive as well."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_, **__: pytest.fail("a folder was made"))
    for container in FORMATS:
        read_weights(saved({"w": torch.ones(3)}, container))


# --- what needs a full unpickle -----------------------------------------------------------------


@pytest.mark.parametrize("container", FORMATS)
def test_training_arguments_are_refused_with_the_next_step(container, saved, fault):
    args = argparse.Namespace(lr=0.1, layers=[1, 2], nested=argparse.Namespace(a=None))
    path = saved({"args": args, "state_dict": {"w": torch.ones(2)}}, container)
    assert fault(path) == (
        "names `argparse.Namespace`, which only a full unpickle can load, and that can run any"
        " code; save its weights alone, with torch.save(model.state_dict(), FILE), or use"
        " --allow-pickle if you trust the author of this file"
    )
    contents = read_weights(path, allow_pickle=True)
    assert contents.unpickled
    assert contents.tree["args"] == {"lr": 0.1, "layers": [1, 2], "nested": {"a": None}}
    same(contents.tree["state_dict"], {"w": torch.ones(2)})


def test_numpy_in_a_file(saved, fault):
    path = saved({"best": np.float64(0.5), "mean": np.arange(3.0), "w": torch.ones(1)})
    message = fault(path)
    assert re.match(r"names `numpy\.\S+`, `numpy\.\S+`, `numpy\.\S+` and \d more, which", message)
    tree = read_weights(path, allow_pickle=True).tree
    same(tree["best"], 0.5)
    same(tree["mean"], torch.arange(3, dtype=torch.float64))


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
def test_a_whole_model(container, saved, fault):
    model = network()
    path = saved(model, container)
    assert fault(path).startswith("names `torch.nn.modules.container.Sequential`")
    same(read_weights(path, allow_pickle=True).tree, dict(model.state_dict()))


def test_other_objects_are_taken_apart(saved):
    value = {"set": {1}, "type": Call, "function": time.sleep, "range": range(3)}
    tree = read_weights(saved(value), allow_pickle=True).tree
    assert tree["set"] == [1]
    assert "Call" in tree["type"]
    assert tree["function"] == "<builtins.builtin_function_or_method>"
    assert tree["range"] == "<builtins.range>"


def test_permission_is_used_only_where_it_is_needed(saved):
    assert not read_weights(saved({"w": torch.ones(1)}), allow_pickle=True).unpickled


def test_a_module_that_is_not_installed(tmp_path, fault, monkeypatch):
    module = types.ModuleType("someones_code")
    module.Config = type("Config", (), {"__module__": "someones_code"})
    monkeypatch.setitem(sys.modules, "someones_code", module)
    content = archive({"config": module.Config()})
    monkeypatch.delitem(sys.modules, "someones_code")
    assert fault(content).startswith("names `someones_code.Config`, which")
    assert fault(content, allow_pickle=True).startswith(
        "needs the Python module 'someones_code', which is not installed"
    )


def test_what_fails_in_a_full_unpickle_is_an_error_too(fault):
    content = archive({"w": Call(int, "x")})
    assert fault(content, allow_pickle=True).startswith("PyTorch cannot load it: invalid literal")


def test_edm_pickles_get_the_way_to_convert_them(fault, monkeypatch):
    module = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError(meta)

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for protocol in (2, 3, 4):
        content = pickle.dumps({"ema": Call(_reconstruct_persistent_obj, {})}, protocol)
        for allowed in (False, True):
            message = fault(content, allow_pickle=allowed)
            assert "`torch_utils.persistence._reconstruct_persistent_obj`" in message
            assert "convert it once" in message
            assert "['ema'].state_dict()" in message


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_other_pickles_are_refused(protocol, fault):
    message = fault(pickle.dumps(OrderedDict(a=1), protocol))
    assert message.startswith(
        "is a Python pickle that names `collections.OrderedDict`, not written by torch.save"
    )
    assert fault(pickle.dumps([1], protocol)).startswith("is a Python pickle, not written by")


# --- tensors that claim too much ----------------------------------------------------------------


WRONG_TENSORS = {
    "a stride of 0": (tensor((1000, 4), (0, 1)), "a tensor is expanded"),
    "too many numbers": (tensor((5,)), "needs 5 numbers of a storage that has 4"),
    "too far": (tensor((2,), (4,)), "needs 5 numbers of a storage that has 4"),
    "too far in": (tensor((4,), (1,), 1), "needs 5 numbers of a storage that has 4"),
    "an overlap": (tensor((3, 3), (1, 1)), "needs 9 numbers of a storage that has 4"),
    "terabytes": (tensor((2**40,)), "needs 1099511627776 numbers"),
    "more than there are bytes": (tensor((2**50, 2**50), (2**50, 1)), "is out of range"),
    "an empty one that overflows": (tensor((0, 2**60), (1, 1)), "is out of range"),
    "an offset for none": (tensor((0,), (1,), 9), "needs 9 numbers"),
    "a negative size": (tensor((-1,)), "is not of whole numbers"),
    "a negative stride": (tensor((2,), (-1,), 1), "is not of whole numbers"),
    "a size that is a truth": (tensor((True,)), "is not of whole numbers"),
    "axes": (tensor((1,) * 65, (1,) * 65), "is not of whole numbers"),
    "another number of strides": (tensor((4,), (1, 1)), "no size or no stride"),
    "a list": (tensor([4]), "no size or no stride"),
    "no storage": (Call(_rebuild_tensor_v2, 1, 0, (4,), (1,), False, {}), "not described as"),
    "hooks": (Call(_rebuild_tensor_v2, Stored(), 0, (4,), (1,), False, {1: 2}), "not described"),
    "arguments": (Call(_rebuild_tensor_v2, Stored()), "is called as PyTorch never does"),
    "a storage of a size below 0": (tensor(storage=Stored(-4)), "has -4 numbers"),
    "a parameter of nothing": (Call(_rebuild_parameter, 1, True, {}), "not described as PyTorch"),
    "a type that is called": (Call(torch.FloatStorage, 10**12), "what cannot be called is called"),
    "an object of no class": (b"K\x01)\x81.", "an object is made of what is no class"),
}


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_a_tensor_must_lie_in_its_storage(name, container, fault):
    value, reason = WRONG_TENSORS[name]
    message = fault(wrapped(value if isinstance(value, bytes) else {"w": value}, container))
    assert reason in message
    assert "the pickle is damaged or truncated at" in message


def test_a_storage_must_have_its_bytes(fault):
    assert fault(archive({"w": tensor(storage=Stored(5))})).startswith(
        "a tensor needs 20 bytes of entry 'data/0', which has 16 bytes: damaged"
    )
    assert fault(archive({"w": tensor(storage=Stored(key="../x"))})).startswith(
        "a tensor needs 16 bytes of entry 'data/../x', which is missing"
    )
    two = {"v": tensor(), "w": tensor(storage=Stored(2, torch.DoubleStorage), size=(2,))}
    assert "storage '0' has two sizes or types" in fault(archive(two))


def _special_tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse, quantised and nested tensors are not final
        return {
            "sparse": torch.eye(3).to_sparse(),
            "sparse rows": torch.eye(3).to_sparse_csr(),
            "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "complex": torch.ones(3, dtype=torch.complex64),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "meta": torch.ones(3, device="meta"),
            "8-bit floating-point": torch.ones(3).to(torch.float8_e4m3fn),
            "expanded": torch.ones(1).expand(1000),
        }


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.parametrize("kind", _special_tensors())
@pytest.mark.parametrize("allow_pickle", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_special_tensors_are_refused_by_name(kind, container, allow_pickle, saved, fault):
    if (kind, container) == ("8-bit floating-point", "legacy pickle"):
        pytest.skip("PyTorch cannot save it in this format")
    path = saved({"a": {"w": _special_tensors()[kind]}}, container)
    assert kind.split()[0] in fault(path, allow_pickle=allow_pickle)


@pytest.mark.parametrize("kind", [k for k in _special_tensors() if k[0] not in "8e"])
@pytest.mark.filterwarnings("ignore")
def test_special_tensors_are_refused_after_a_full_unpickle(kind, saved, fault):
    value = {"args": argparse.Namespace(), "a": {"w": _special_tensors()[kind]}}
    path = saved(value, pickle_protocol=4)
    message = fault(path, allow_pickle=True)
    assert message.startswith(f"'a.w' is a tensor that is {kind.split()[0]}")


# --- pickles that are bombs ---------------------------------------------------------------------


def quickly(action):
    result, count = calls(action)
    assert count < 6_000_000
    return result


def doubled(times):
    """Opcodes of a pair of twice the same pair of twice the same pair, and so on."""
    return b")" + b"q\x00h\x00\x86" * times


def test_a_billion_laughs_is_no_joke(fault):
    bomb = b"\x80\x02}X\x01\x00\x00\x00a" + doubled(60) + b"s."
    assert re.match("'a.+' has more than 1000000 values", quickly(lambda: fault(archive(bomb))))


def test_sharing_that_is_not_absurd_is_let_through(tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(archive(b"\x80\x02" + doubled(12) + b"."))
    tree = read_weights(path).tree
    assert tree[0] is tree[1]
    assert len(tree[0][1][0]) == 2
    assert len(state_dicts(tree)) == 0


def test_a_key_that_takes_for_ever_to_hash(fault):
    bomb = b"\x80\x02}" + doubled(60) + b"Ns."
    message = quickly(lambda: fault(archive(bomb)))
    assert message.endswith("a dictionary's key is neither text nor a number")


def test_keys_that_share_a_hash(fault):
    keys = b"".join(b"\x8a\x09" + (k * (2**61 - 1)).to_bytes(9, "little") + b"N" for k in (1, 2))
    assert fault(archive(b"\x80\x02}(" + keys + b"u.")).endswith(
        "a dictionary's key is out of range"
    )


@pytest.mark.parametrize("call", ["collections\nOrderedDict", "torch\nSize"])
def test_copies_without_end(call, fault):
    items = b"]q\x00(" + b"K\x01K\x02\x86" * 3000 + b"e" + b"\x85q\x01"
    copies = f"c{call}\nq\x02h\x01R".encode() * 1000
    bomb = b"\x80\x02(" + items + copies + b"t."
    message = quickly(lambda: fault(archive(bomb)))
    assert message.endswith("the same parts are copied again and again")


def test_deep_nesting(fault):
    for opcode, end in ((b"\x85", b")"), (b"]a", b"]")):
        deep = b"]" * 100_000 + b"a" * 99_999 if opcode == b"]a" else end + opcode * 100_000
        message = quickly(lambda deep=deep: fault(archive(b"\x80\x02" + deep + b".")))
        assert message.endswith("lies more than 64 levels deep")


def test_what_contains_itself(fault):
    assert fault(archive(b"\x80\x02]q\x00h\x00a.")).startswith("'0' contains itself")
    assert fault(archive(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.")).startswith("'a' contains")


def test_the_opcodes_are_counted(fault, monkeypatch):
    content = archive([1] * 500)
    monkeypatch.setattr(pickle_checks, "MAX_OPCODES", 400)
    assert fault(content) == "the pickle has more than 400 opcodes"


def test_a_huge_pickle(fault, monkeypatch):
    monkeypatch.setattr("purify_audit.models.containers.read.MAX_PICKLE", 1000)
    assert fault(archive({"a": "x" * 1000})).endswith("bytes; 1000 are allowed")


@pytest.mark.parametrize("opcodes", [b"", b".", b"\x80\x02", b"N", b"h\x07.", b"(.", b"t.", b"Na."])
def test_broken_pickles(opcodes, fault):
    assert "the pickle is damaged or truncated at" in fault(archive(opcodes))


def test_every_opcode_at_random(tmp_path):
    """A machine fed with noise ends in a sentence."""
    path, refused = tmp_path / "model.pth", 0
    generator = np.random.default_rng(0)
    known = np.frombuffer(b"\x80(.0]a}eusbRQcqrhj)tNK\x85\x86\x87\x88\x89\x81\x8aUX", np.uint8)
    for _ in range(1000):
        noise = generator.choice(known, 12).tobytes()
        path.write_bytes(archive(b"\x80\x02" + noise + b"."))
        try:
            read_weights(path)
        except CheckpointError:
            refused += 1
    assert 100 < refused < 1000


def test_weights_named_again_and_again(fault, monkeypatch, tmp_path):
    monkeypatch.setattr(trees, "_SMALL", 0)
    storage = bytes(4000)

    def content(times):
        weight = tensor((1000,), storage=Stored(1000))
        return archive({f"w{k}": weight for k in range(times)}, {"0": storage})

    (tmp_path / "m.pt").write_bytes(content(4))
    assert len(read_weights(tmp_path / "m.pt").tree) == 4
    assert re.match(
        r"has tensors of 80000 bytes in all, some of them the same, and \d+ are allowed \(4 times",
        fault(content(20)),
    )


# --- zip archives that bend the rules -----------------------------------------------------------


def _link(file):
    info = zipfile.ZipInfo("model/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    file.writestr(info, "/etc/passwd")


def _compressed(file):
    file.writestr("model/data/1", bytes(9999), zipfile.ZIP_DEFLATED)


ODD_ARCHIVES = {
    "a name twice": (lambda f: f.writestr("model/data.pkl", b"."), "two entries called 'model/dat"),
    "a name in capitals": (lambda f: f.writestr("model/DATA/0", b""), "two entries called"),
    "the folder above": (lambda f: f.writestr("model/../x", b""), "outside of it: 'model/../x'"),
    "an absolute name": (lambda f: f.writestr("/etc/x", b""), "outside of it: '/etc/x'"),
    "a name of Windows": (lambda f: f.writestr("model\\x", b""), "outside of it: 'model\\"),
    "a link": (_link, "with a link in it: 'model/link'"),
    "a compressed entry": (_compressed, "entry 'data/1' is compressed, which torch.save never"),
    "another folder": (lambda f: f.writestr("other/x", b""), "that torch.save did not write"),
    "no folder": (lambda f: f.writestr("x", b""), "is a zip archive that torch.save did not write"),
    "a comment": (lambda f: setattr(f, "comment", b"hello"), "directory is not at its end"),
}


@pytest.mark.parametrize("name", ODD_ARCHIVES)
def test_odd_archives(name, fault):
    change, reason = ODD_ARCHIVES[name]
    assert reason in fault(archive({"w": tensor()}, change=change))


def patched(content, places):
    """Bytes with numbers written over them: (place, format, value)."""
    content = bytearray(content)
    for place, form, value in places:
        struct.pack_into(form, content, place if place >= 0 else len(content) + place, value)
    return bytes(content)


def directory_of(content):
    """Where the first central record and the end record of an archive begin."""
    return content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")


def test_archives_whose_directory_lies(fault):
    content = archive({"w": tensor()})
    first, end = directory_of(content)
    size = len(content)
    for places, reason in (
        ([(first + 8, "<H", 1)], "with an encrypted entry"),
        ([(first + 20, "<I", 7)], "has two sizes"),
        ([(first + 42, "<I", size - 30)], "truncated or damaged"),
        ([(first + 42, "<I", 60)], "is not where its directory says"),
        ([(first + 46, "<B", 0)], "entry outside of it: '\\x00odel/data.pkl'"),
        ([(first + 46, "<B", ord("n"))], "is not where its directory says"),
        (
            [(first + 20, "<I", 2**31), (first + 24, "<I", 2**31)],
            "overlaps another or the directory",
        ),
        ([(end + 12, "<I", 2**31)], "with a directory of 2147483648 bytes"),
        ([(end + 16, "<I", 0)], "directory is not where it says"),
        ([(first, "<I", 0)], "truncated or damaged"),
        ([(0, "<I", 0x04034B51)], "is neither what torch.save writes"),
    ):
        assert reason in fault(patched(content, places))
    assert "directory is not where it says" in fault(b"PK\x03\x04" + content)
    assert "directory is not at its end" in fault(content + b"\n")
    checksum = patched(content, [(content.index(b"\x80\x02") + 3, "<B", 0)])
    assert (
        fault(checksum) == "entry 'data.pkl' cannot be read: Bad CRC-32 for file 'model/data.pkl'"
    )


def test_the_64_bit_directory_is_checked_too(saved, fault):
    content = saved({"w": torch.ones(3)}).read_bytes()
    record = content.index(b"PK\x06\x06")
    locator = content.index(b"PK\x06\x07")
    for places, reason in (
        ([(locator + 8, "<Q", 0)], "the 64-bit end of its directory is not where it says"),
        ([(record, "<I", 0)], "the 64-bit end of its directory is not where it says"),
        ([(record + 40, "<Q", 2**40)], "with a directory of 1099511627776 bytes"),
        ([(record + 48, "<Q", 5)], "directory is not where it says"),
    ):
        assert reason in fault(patched(content, places))


def test_entries_that_overlap(fault):
    """Two names for the same bytes: what is checked under one would be read under the other."""
    content = archive({"w": tensor()}, {"0": bytes(16), "1": bytes(16)})
    records = [match.start() for match in re.finditer(b"PK\x01\x02", content)]
    locals_ = [match.start() for match in re.finditer(b"PK\x03\x04", content)]
    larger = [(records[2] + 20, "<I", 60), (records[2] + 24, "<I", 60)]
    assert "entry 'model/data/1' overlaps another" in fault(patched(content, larger))
    moved = [(records[3] + 42, "<I", locals_[2])]
    assert "is not where its directory says" in fault(patched(content, moved))


def test_entries_are_counted_and_their_sizes_summed(fault, monkeypatch):
    content = archive({"w": tensor()})
    monkeypatch.setattr(zip_checks, "MAX_ENTRIES", 3)
    assert fault(content) == "is a zip archive of 4 entries; 3 are allowed"
    monkeypatch.setattr(zip_checks, "MAX_ENTRIES", 100_000)
    bomb = archive({}, change=lambda f: f.writestr("m/x", bytes(2**21), zipfile.ZIP_DEFLATED))
    assert re.match(r"is a zip archive of \d+ bytes that would unpack to \d+, more", fault(bomb))


def test_records_besides_the_pickle_and_the_storages(fault, tmp_path):
    message = fault(archive({"w": tensor()}, change=lambda f: f.writestr("model/byteorder", "x")))
    assert "two entries called 'model/byteorder'" in message
    path = tmp_path / "extra.pth"
    path.write_bytes(archive({"w": tensor()}, **{"model/notes/a.txt": "trained on a Tuesday"}))
    same(read_weights(path).tree, {"w": torch.zeros(4)})


# --- legacy files that lie ----------------------------------------------------------------------


def long_id(**options):
    return Stored(view=(None,), **options)


def test_legacy_files_that_lie_about_their_storages(fault):
    value = {"w": tensor(storage=long_id())}
    good = legacy(value)
    assert fault(good[:-1]).startswith("storage '0' should end at byte")
    assert "should end at byte" in fault(legacy({"w": tensor(storage=long_id(numbers=2**40))}))
    assert fault(legacy(value, keys=["0", "0"])).startswith("its storages are not those")
    assert fault(legacy(value, keys=["1"])).startswith("its storages are not those")
    assert fault(legacy({}, keys=["0"])).startswith("its storages are not those")
    assert fault(legacy(value, version=1002)).startswith("is of an unknown version")
    other = patched(good, [(-24, "<q", 3)])
    assert fault(other).startswith("storage '0' has not the 4 numbers that its tensors need")


@pytest.mark.parametrize("view", [("v", 3, 2), ("v", -1, 2), ("0", 0, 2), ("v", 0), 3])
def test_parts_of_storages_are_checked(view, fault):
    storage = Stored(view=(view,))
    message = fault(legacy({"w": tensor((1,), storage=storage)}))
    assert "storage '0' has no part as described" in message


def test_a_part_is_no_other_storage(fault):
    views = [tensor((2,), storage=Stored(view=(place,))) for place in (("v", 0, 2), ("v", 1, 2))]
    assert "storage '0' has no part as described" in fault(legacy(views))
    root = tensor(storage=Stored(key="v", view=(None,)))
    storages = {"0": bytes(16), "v": bytes(16)}
    assert "storage 'v' has 4 numbers" in fault(legacy([views[0], root], storages))


def test_tar_archives(fault, tmp_path):
    with tarfile.open(tmp_path / "model.tar", "w") as file:
        (tmp_path / "storages").write_bytes(b"x")
        file.add(tmp_path / "storages", "storages")
    assert fault(tmp_path / "model.tar").startswith("is a tar archive; if PyTorch wrote it")
    info = tarfile.TarInfo("name")
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[: len(pickled(MAGIC))] = pickled(MAGIC)
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    assert fault(bytes(header) + bytes(1024)).startswith("is a tar archive")


# --- damaged files, and files of other kinds ----------------------------------------------------


@pytest.mark.parametrize("container", [*FORMATS, "safetensors"])
def test_a_file_that_is_cut_anywhere(container, saved, fault, tmp_path):
    kept = {"a": torch.randn(50), "b": {"c": torch.randn(3)}}
    if container == "safetensors":
        save_file({"a": kept["a"], "c": kept["b"]["c"]}, path := tmp_path / "m.safetensors")
    else:
        path = saved(kept, container)
    content = path.read_bytes()
    for tenth in range(10):
        fault(content[: len(content) * tenth // 10])
    fault(content[:-1])
    fault(content[:20])


OTHER_FILES = {
    "empty": (b"", "is empty"),
    "text": (b"hello, world\n" * 9, "is a text file, not a file of weights"),
    "json": (b'{"a": 1}', "is a text file"),
    "gzip": (gzip.compress(b"weights"), "is compressed with gzip; unpack it first"),
    "web page": (b"\n<!DOCTYPE html><html>", "is a web page, not the file it should be"),
    "xml": (b'<?xml version="1.0"?><Error>', "is a web page"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is a pointer of Git LFS, not the file itself; run `git lfs pull`",
    ),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "numpy": (b"\x93NUMPY\x01\x00", "is a numpy array"),
    "onnx": (b"\x08\x08\x12\x07pytorch", "is an ONNX graph, not a file of weights"),
    "noise": (np.random.default_rng(0).bytes(999), "is neither what torch.save writes nor"),
    "zip": (b"PK\x03\x04", "is a zip archive whose directory is not at its end"),
    "xz": (b"\xfd7zXZ\0\0", "is compressed with xz"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_files_of_other_kinds_are_named(name, fault):
    content, reason = OTHER_FILES[name]
    assert fault(content).startswith(reason)


def test_another_zip_archive(fault):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.ones(3))
    assert fault(buffer.getvalue()).startswith("is a zip archive that torch.save did not write")


def test_what_is_no_file(fault, tmp_path):
    assert fault(tmp_path) == "is a directory, not a file of weights"
    os.mkfifo(tmp_path / "pipe")
    assert fault(tmp_path / "pipe") == "is a device or pipe, not a file of weights"
    assert fault(tmp_path / "absent.pth") == "no such file"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert fault(tmp_path / "loop").startswith("cannot be read: ")


@pytest.mark.filterwarnings("ignore")
def test_graphs_are_recognised_and_sent_elsewhere(fault, saved, tmp_path):
    model, x = nn.Linear(2, 2), torch.randn(3, 2)
    script, program, weights = tmp_path / "s.pt", tmp_path / "p.pt", saved(model.state_dict())
    torch.jit.save(torch.jit.trace(model, x), script)
    torch.export.save(torch.export.export(model, (x,)), program)
    (tmp_path / "g.pt").write_bytes(OTHER_FILES["onnx"][0])
    graph = tmp_path / "g.pt"
    containers = [graph_container(path) for path in (script, program, graph, weights)]
    assert containers == ["torchscript", "pt2", "onnx", None]
    assert fault(script).startswith("is a TorchScript archive: a graph and no weights alone")
    assert fault(program).startswith("is an exported program (.pt2): a graph and no weights alone")
    for path in (script, program):
        assert fault(path, allow_pickle=True) == fault(path)


def test_onnx_as_its_library_writes_it(tmp_path):
    onnx = pytest.importorskip("onnx")
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [info], [other]
    )
    for name in ("", "someone"):
        onnx.save(onnx.helper.make_model(graph, producer_name=name), tmp_path / "m.onnx")
        assert graph_container(tmp_path / "m.onnx") == "onnx"


def test_safetensors_are_checked_first(fault, tmp_path):
    header = b'{"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}'
    assert "needs 36 bytes" in fault(struct.pack("<Q", len(header)) + header + bytes(8))


# --- state dicts --------------------------------------------------------------------------------


W = {"a": torch.ones(2), "b.c": torch.zeros(1)}


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        (W, [""]),
        ({**W, "epoch": 3}, [""]),
        ({"state_dict": W, "epoch": 3, "mean": torch.ones(3)}, ["state_dict"]),
        ({"model": W, "ema": {"decay": 0.9, "shadow_params": [torch.ones(1)]}}, ["model"]),
        ([W, {"state": {0: W}, "param_groups": []}, 5, 100, W], ["0", "4"]),
        ({"optimizer": {"state": {0: W}, "param_groups": [{}]}, "net": W}, ["net"]),
        ({"params": W, "params_ema": W}, ["params", "params_ema"]),
        ({"a": {"b": ({"unet": W},)}}, ["a.b.0.unet"]),
        ({"loss": 1.0, "lr": 0.1, "sigmas": torch.ones(2)}, []),
        ({0: torch.ones(2)}, []),
        ({}, []),
        (None, []),
        (torch.ones(2), []),
    ],
)
def test_state_dicts_are_found(tree, paths):
    found = state_dicts(tree)
    assert list(found) == paths
    for state in found.values():
        assert state == W


def test_two_state_dicts_of_one_path():
    with pytest.raises(CheckpointError, match=re.escape("are both called 'a.b' in the file")):
        state_dicts({"a.b": W, "a": {"b": W}})


def test_prefixes_that_all_names_have_are_removed():
    state = {f"module._orig_mod.{name}": each for name, each in W.items()}
    assert strip_prefix(state) == W
    assert strip_prefix({f"module.module.{name}": each for name, each in W.items()}) == W
    assert strip_prefix(W) == W
    assert strip_prefix({}) == {}
    assert strip_prefix({f"model.{name}": each for name, each in W.items()}).keys() != W.keys()
    assert strip_prefix({f"model.{name}": W[name] for name in W}, ("module.", "model.")) == W


def test_prefixes_that_some_names_have_stay():
    state = {"module.a": W["a"], "b": W["a"]}
    assert strip_prefix(state) == state


@pytest.mark.parametrize("names", [("module.a", "a"), ("module.", "module.a"), ("module.", "b")])
def test_names_that_would_collide(names):
    with pytest.raises(CheckpointError, match=r"with and without 'module\.'"):
        strip_prefix(dict.fromkeys(names, W["a"]))
