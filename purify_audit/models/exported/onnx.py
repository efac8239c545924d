"""ONNX graphs, checked before a runtime loads them: every operator, and where the weights are.

ONNX draws random numbers by operators that take at most a fixed seed (the ONNX operator
specification: RandomNormal, RandomUniform, Bernoulli, Multinomial, Dropout), so the numbers of one
row depend on the rows before it, and no addressed numbers can be put in their place. Such graphs
are refused; noise has to be an input.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.checkpoint import TensorInfo
from purify_audit.models.exported.signature import Rows, Signature, TensorSpec

MAX_ONNX = 2**31 - 1
"""Bytes of a protobuf message; larger models keep their weights in other files."""

_STANDARD = ("", "ai.onnx")
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
_RANDOM |= {"Bernoulli", "Multinomial"}
_DTYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
_CODES = {1: "F32", 2: "U8", 3: "I8", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64"}


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """The contents of an ONNX file, without its weights.

    Attributes:
        signature: its inputs and output.
        metadata: its metadata entries, by name.
        tensors: weights, by name.
        sha256: of the file, or of it and the files of its weights.
    """

    signature: Signature
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    sha256: str


def read_onnx(path: Path) -> OnnxGraph:
    """Read and check an ONNX file with the `onnx` package; nothing is computed.

    Raises:
        CheckpointError: the package is missing; the file is not ONNX; it has random or custom
            operators, or not exactly one output tensor; or weights outside the folder of the file.
    """
    model = _model(path)
    for node in _all_nodes(model):
        _check_node(path, model, node)
    files = sorted(
        {_external_file(path, tensor) for tensor in _all_tensors(model) if _is_external(tensor)}
    )
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = [_spec(value) for value in model.graph.input if value.name not in weights]
    outputs = [_spec(value) for value in model.graph.output]
    if len(outputs) != 1:
        listed = "; ".join(str(spec) for spec in outputs)
        raise CheckpointError(
            f"{path}: returns {len(outputs)} values ({listed}); export a function that returns one"
            " image"
        )
    return OnnxGraph(
        Signature(tuple(inputs), outputs[0]),
        {entry.key: entry.value for entry in model.metadata_props},
        {
            name: TensorInfo(_CODES.get(tensor.data_type, "other"), tuple(tensor.dims))
            for name, tensor in weights.items()
        },
        _digest(path, files),
    )


def _model(path: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise CheckpointError(
            f"{path}: reading ONNX needs the packages onnx and onnxruntime:"
            " pip install 'purify-audit[onnx]'"
        ) from None
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        if (size := path.stat().st_size) > MAX_ONNX:
            raise CheckpointError(
                f"{path}: has {size} bytes, and an ONNX file has at most {MAX_ONNX}; save the"
                " weights as external data"
            )
        model = onnx.load_model(path, "protobuf", load_external_data=False)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except DecodeError:
        raise CheckpointError(f"{path}: is not an ONNX file, or is truncated") from None
    if not model.graph.node or not model.graph.output:
        raise CheckpointError(f"{path}: is not an ONNX file: it holds no graph")
    return model


def _all_nodes(model: Any) -> Iterator[Any]:
    """Every operator: of the graph, of graphs within it, and of functions that the file defines."""
    waiting = [model.graph, *model.functions]
    while waiting:
        for node in waiting.pop().node:
            yield node
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _all_tensors(model: Any) -> Iterator[Any]:
    """Every stored tensor, constants among them."""
    graphs = [model.graph]
    for node in _all_nodes(model):
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
            sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for tensor in (*sparse, *attribute.sparse_tensors):
                yield from (tensor.values, tensor.indices)
            graphs += [attribute.g] if attribute.HasField("g") else []
            graphs += attribute.graphs
    for graph in graphs:
        yield from graph.initializer
        for tensor in graph.sparse_initializer:
            yield from (tensor.values, tensor.indices)


def _check_node(path: Path, model: Any, node: Any) -> None:
    """Raise CheckpointError for a random or non-standard operator."""
    operator = f"operator {printable(str(node.op_type))} (node '{printable(str(node.name))}')"
    if node.op_type in _RANDOM or (node.op_type == "Dropout" and _trains(model, node)):
        mode = " in training mode" if node.op_type == "Dropout" else ""
        raise CheckpointError(
            f"{path}: cannot be aligned: {operator}{mode} draws numbers that cannot be reproduced"
            " row by row; export a function that takes its noise as an input"
        )
    own = {(function.domain, function.name) for function in model.functions}
    if node.domain not in _STANDARD and (node.domain, node.op_type) not in own:
        raise CheckpointError(
            f"{path}: has custom {operator} of domain '{printable(node.domain)}'; only operators of"
            " the ONNX standard are supported"
        )


def _trains(model: Any, node: Any) -> bool:
    """Whether dropout is active: its third input exists and is not a stored `false`."""
    if len(node.input) < 3 or not node.input[2]:
        return False
    switch = node.input[2]
    stored = [tensor for tensor in model.graph.initializer if tensor.name == switch]
    for other in _all_nodes(model):
        if other.op_type == "Constant" and switch in other.output:
            stored += [a.t for a in other.attribute if a.name == "value"]
    return len(stored) != 1 or any(stored[0].raw_data) or any(stored[0].int32_data)


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == 1 or tensor.external_data)


def _external_file(path: Path, tensor: Any) -> Path:
    """The external data file of a tensor.

    ONNX Runtime 1.32 applies the same rule; older versions may not.

    Raises:
        CheckpointError: it is not a regular file in the model's folder, or a link leads out of it.
    """
    named = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
    place = PurePosixPath(named.replace("\\", "/"))
    shown = f"'{printable(named)}'"
    file = path.parent / place
    outside = place.is_absolute() or ".." in place.parts or not named
    if outside or not file.resolve().is_relative_to(path.parent.resolve()):
        raise CheckpointError(
            f"{path}: keeps the tensor '{printable(tensor.name)}' outside its folder, at {shown}"
        )
    if not file.is_file():
        raise CheckpointError(
            f"{path}: keeps the tensor '{printable(tensor.name)}' in {shown}, which is not beside"
            " it; copy that file too"
        )
    return file


def _spec(value: Any) -> TensorSpec:
    about = value.type.tensor_type
    dtype = _DTYPES.get(about.elem_type, "other")
    if not about.HasField("shape"):
        return TensorSpec(value.name, dtype, None)
    shape = tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in about.shape.dim)
    first = shape[0] if shape else None
    rows = Rows() if first is None else Rows(first, first)
    return TensorSpec(value.name, dtype, shape, rows)


def _digest(path: Path, files: list[Path]) -> str:
    """SHA-256 of the model's file followed by those of its external weights, if any."""
    digest = hashlib.sha256()
    try:
        for part in (path, *files):
            with part.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
