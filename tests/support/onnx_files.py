"""ONNX models for tests, written operator by operator."""

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

ROWS = "n"


def value(name, shape=(ROWS, 1, 8, 8), dtype=TensorProto.FLOAT):
    return make_tensor_value_info(name, dtype, shape)


def constant(name, array, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(array, dtype), name)


def save_onnx(path, nodes, inputs=None, stored=(), card=None, **changes):
    """Write a model from images `x` to `y`.

    `changes`: `outputs`, `functions`, `domains` (name -> version, beside the standard's).
    """
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x")] if inputs is None else inputs,
        changes.get("outputs", [value("y")]),
        list(stored),
    )
    domains = {"": 17} | changes.get("domains", {})
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(n, v) for n, v in domains.items()],
        functions=changes.get("functions", []),
        ir_version=9,
    )
    if card is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = "purify_audit", json.dumps(card)
    path.write_bytes(model.SerializeToString())
    return path


def halved(x="x", y="y"):
    """y = x / 2 + 1/4."""
    half, quarter = constant("half", 0.5), constant("quarter", 0.25)
    return [make_node("Mul", [x, "half"], ["h"]), make_node("Add", ["h", "quarter"], [y])], [
        half,
        quarter,
    ]


def apart(name, array, location):
    """A tensor whose numbers are in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", str(array.nbytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    return tensor
