"""Graphs saved by `torch.export.save` (.pt2), read as data: nothing in the file is executed.

`torch.export.load` is not safe: in PyTorch 2.13 a file can make it execute code: it unpickles the
sample inputs without restriction when the restricted unpickler refuses them, and so every weight
whose index entry says `use_pickle`; it hands the text of shapes to `sympy.sympify`, which evaluates
it, and that of guards to `exec`; it finds operators by walking attributes from the package `torch`,
where `torch.os.system` is; and it loads compiled libraries from the archive (in `torch`:
`export/pt2_archive/_package.py`, `_export/serde/serialize.py`, `export/_unlift.py`).

This module therefore reads the graph, which is JSON, and the weights, which are plain arrays, and
`purify_audit.models.exported.interpreter` evaluates them operator by operator; only ATen's
operators are trusted. The layout is that of `torch/_export/serde/schema.py`, version 8.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.containers.zip_checks import Archive
from purify_audit.models.exported.signature import Rows, Signature, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 8
"""The supported version of the layout; in others, the same names may have other meanings."""

DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32"}
DTYPES |= {8: "float64", 12: "bool", 13: "bfloat16"}
"""By the layout's numbers; complex and 8-bit floating-point types are left out."""

_GRAPH, _WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_SYMBOL = re.compile(r"(?:Symbol\()?'?([a-z]+[0-9]+)'?(?:, [a-z]+=True)*\)?")
_STRIDED = 7
_UNBOUNDED = 2**31  # an upper bound beyond this is none
_RANDOM = re.compile(
    r"torch\.ops\.aten\.(rand|bernoulli|normal|uniform|multinomial|poisson|exponential|geometric"
    r"|cauchy|log_normal|rrelu)"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """Location and memory layout of an array in the archive.

    Attributes:
        record: name of the entry.
        dtype: by torch's name.
        shape: length of each axis.
        strides: of each axis, in numbers.
        offset: of the first number.
    """

    record: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A graph as read from the file.

    Attributes:
        signature: its inputs and output.
        nodes: the file's list of operators, in order; not checked.
        weights: name in the graph -> name in `stored`.
        stored: arrays by name.
        opaque: why it cannot be evaluated without executing code of the file; or none.
    """

    signature: Signature
    nodes: list[Any]
    weights: dict[str, str]
    stored: dict[str, Stored]
    opaque: str | None


def read_exported(archive: Archive) -> ExportedGraph:
    """Read the graph of a .pt2 archive.

    Raises:
        CheckpointError: written by another version of PyTorch, compiled, damaged, or a graph that
            does not map tensors to one tensor without changing itself.
    """
    _check_entries(archive)
    program = _json(archive, _GRAPH)
    try:
        _check_version(archive, program)
        return _graph(archive, program)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        fault = printable(f"{type(error).__name__}: {error}")
        raise CheckpointError(
            f"{archive.path}: its graph does not follow the schema of torch.export ({fault}):"
            " damaged, or by another version of PyTorch; save it again"
        ) from None


def read_tensors(archive: Archive, graph: ExportedGraph) -> dict[str, "Tensor"]:
    """The arrays of a graph, by name, on the CPU; checksums are verified.

    Raises:
        CheckpointError: they are damaged, or have fewer bytes than their shapes need.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with zipfile.ZipFile(archive.path) as file:
            for name, place in graph.stored.items():
                tensors[name] = _tensor_of(place, file.read(archive.top + place.record))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, RuntimeError) as error:
        raise CheckpointError(
            f"{archive.path}: the weights cannot be read: {printable(str(error))}: truncated or"
            " damaged"
        ) from None
    return tensors


def _tensor_of(place: Stored, data: bytes) -> "Tensor":
    import torch

    dtype: torch.dtype = getattr(torch, place.dtype)
    if 0 in place.shape:
        return torch.empty(place.shape, dtype=dtype)
    steps = zip(place.shape, place.strides, strict=True)
    last = place.offset + sum((size - 1) * stride for size, stride in steps)
    # With strides of 0, a few bytes could request any amount of memory.
    if max(last + 1, prod(place.shape)) * dtype.itemsize > len(data):
        raise ValueError(f"{len(data)} bytes are too few for shape {list(place.shape)}")
    flat = torch.frombuffer(bytearray(data), dtype=dtype)
    return flat.as_strided(place.shape, place.strides, place.offset).clone()


def _check_entries(archive: Archive) -> None:
    """Raise CheckpointError for archives that are not one plain graph."""
    names = archive.entries.keys()
    if "serialized_exported_program.json" in names:
        raise CheckpointError(
            f"{archive.path}: is in the layout of PyTorch before 2.8; load it there with"
            " torch.export.load, and save it again with a newer PyTorch"
        )
    if any(name.startswith("data/aotinductor/") for name in names):
        raise CheckpointError(
            f"{archive.path}: holds libraries compiled by AOTInductor, which are machine code; save"
            " the graph itself with torch.export.save"
        )
    if _GRAPH not in names:
        raise CheckpointError(
            f"{archive.path}: holds no graph ({_GRAPH}); save one with torch.export.save"
        )
    if "byteorder" in names and archive.read("byteorder") != b"little":
        raise CheckpointError(
            f"{archive.path}: was written by a big-endian machine, which is not supported"
        )


def _json(archive: Archive, entry: str) -> Any:
    try:
        return json.loads(archive.read(entry))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{archive.path}: entry '{entry}' is not JSON: damaged") from None


def _check_version(archive: Archive, program: Any) -> None:
    version, writer = program["schema_version"], program.get("torch_version", "an old version")
    if version["major"] != SCHEMA:
        layout = printable(f"{version['major']}.{version['minor']} (PyTorch {writer})")
        raise CheckpointError(
            f"{archive.path}: its graph has layout {layout}, and this purify-audit reads layout"
            f" {SCHEMA}; save it again with PyTorch 2.8 or newer, or get a newer purify-audit"
        )


def _graph(archive: Archive, program: Any) -> ExportedGraph:
    module, ranges = program["graph_module"], program["range_constraints"]
    graph, signature = module["graph"], module["signature"]
    values = graph["tensor_values"]
    weights, inputs, opaque = dict[str, str](), list[TensorSpec](), list[str]()
    for spec in signature["input_specs"]:
        ((kind, body),) = spec.items()
        match kind:
            case "user_input":
                inputs.append(_input(archive, body["arg"], values, ranges))
            case "parameter" | "buffer" | "tensor_constant":
                weights[str(body["arg"]["name"])] = str(body[f"{kind}_name"])
            case "constant_input":
                pass  # its value is already in the operators
            case _:
                opaque.append(f"takes an input of kind {printable(kind)}")
    stored = dict[str, Stored]()
    for index, folder in ((_WEIGHTS, "data/weights/"), (_CONSTANTS, "data/constants/")):
        opaque += _place(archive, index, folder, stored)
    if missing := sorted(set(weights.values()) - stored.keys()):
        opaque.append(f"does not hold '{printable(missing[0])}' as a plain array")
    nodes = list(graph["nodes"])
    opaque += [f"calls '{printable(node['target'])}'" for node in nodes if _is_opaque(node)]
    output = _tensor(_output(archive, signature["output_specs"]), values)
    draws = {n["target"].split(".")[3] for n in nodes if _RANDOM.match(n["target"]) or _drops(n)}
    random = None if opaque and not draws else tuple(sorted(draws))
    taken = Signature(tuple(inputs), output, random)
    return ExportedGraph(taken, nodes, weights, stored, opaque[0] if opaque else None)


def _input(archive: Archive, argument: Any, values: Any, ranges: Any) -> TensorSpec:
    """The shape and batch sizes of an input.

    Raises:
        CheckpointError: it is not a tensor, or its first axis is a compound expression.
    """
    if "as_tensor" not in argument:
        raise CheckpointError(
            f"{archive.path}: takes an input that is not a tensor: {printable(str(argument))};"
            " export it as a function of tensors"
        )
    name = argument["as_tensor"]["name"]
    spec, sizes = _tensor(name, values), values[name]["sizes"]
    if not sizes:
        return spec
    if (fixed := sizes[0].get("as_int")) is not None:
        return replace(spec, rows=Rows(int(fixed), int(fixed)))
    length = sizes[0]["as_expr"]["expr_str"]
    symbol = _SYMBOL.fullmatch(length)
    if symbol is None:
        raise CheckpointError(
            f"{archive.path}: takes '{printable(name)}' with a first axis of length"
            f" {printable(length)}; export it for any number of rows, or for one number"
        )
    bounds = ranges.get(symbol[1], {"min_val": None, "max_val": None})
    most = bounds["max_val"]
    most = None if most is None or most > _UNBOUNDED else int(most)
    return replace(spec, rows=Rows(max(1, int(bounds["min_val"] or 1)), most))


def _tensor(name: str, values: Any) -> TensorSpec:
    meta = values[name]
    shape = tuple(size.get("as_int") for size in meta["sizes"])
    return TensorSpec(str(name), DTYPES.get(meta["dtype"], "other"), shape)


def _output(archive: Archive, specs: Any) -> str:
    """The name of the one output tensor.

    Raises:
        CheckpointError: there are more, or the graph changes its own weights or its input.
    """
    for spec in specs:
        ((kind, body),) = spec.items()
        if kind != "user_output":
            what = body.get("buffer_name", body.get("user_input_name", kind))
            raise CheckpointError(
                f"{archive.path}: every call changes '{printable(str(what))}', so calls"
                " differ; export the model in eval mode, and without writing to its input"
            )
    if len(specs) != 1:
        raise CheckpointError(
            f"{archive.path}: returns {len(specs)} values; export a function that returns one image"
        )
    return str(specs[0]["user_output"]["arg"]["as_tensor"]["name"])


def _place(archive: Archive, index: str, folder: str, stored: dict[str, Stored]) -> Iterator[str]:
    """Add the arrays of an index to `stored`; yield a phrase for each other entry."""
    if index not in archive.entries:
        yield "keeps its weights as one pickle"
        return
    for name, entry in _json(archive, index)["config"].items():
        if entry["use_pickle"] or (meta := entry["tensor_meta"]) is None:
            yield f"keeps '{printable(name)}' as a pickle"
            continue
        place = Stored(
            folder + str(entry["path_name"]),
            DTYPES.get(meta["dtype"], "other"),
            tuple(int(size["as_int"]) for size in meta["sizes"]),
            tuple(int(size["as_int"]) for size in meta["strides"]),
            int(meta["storage_offset"]["as_int"]),
        )
        if place.record not in archive.entries or place.dtype == "other":
            yield f"does not hold '{printable(name)}' as a plain array"
        elif meta["layout"] != _STRIDED or not _in_order(place):
            raise ValueError(f"the array '{name}' is not laid out by strides")
        else:
            stored[str(name)] = place


def _in_order(place: Stored) -> bool:
    """Whether sizes and strides match in number and fit PyTorch's integers."""
    numbers = (*place.shape, *place.strides, place.offset)
    return len(place.shape) == len(place.strides) and all(0 <= n < 2**63 for n in numbers)


def _is_opaque(node: Any) -> bool:
    """Whether an operator contains a graph, or is not one of ATen's."""
    kinds = {kind for argument in node["inputs"] for kind in argument["arg"]}
    nested = kinds & {"as_graph", "as_operator", "as_custom_obj", "as_string_to_argument"}
    target = node["target"]
    known = target.startswith(("torch.ops.aten.", "torch.ops.prims.", "_operator.", "math."))
    return bool(nested) or not (known or target.startswith("torch.sym_"))


def _drops(node: Any) -> bool:
    """Whether an operator is dropout, in training mode."""
    name = node["target"].split(".")[3:4]
    switches = [a["arg"].get("as_bool") for a in node["inputs"] if a["name"] == "train"]
    return name in (["dropout"], ["native_dropout"], ["alpha_dropout"]) and switches == [True]
