"""Interpreter of `torch.export` graphs, operator by operator: no code is generated or executed.

Operators are looked up by name among ATen's and a few of Python's arithmetic, and nowhere else, so
a file can only request arithmetic on tensors.
"""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.exported.pt2 import DTYPES, ExportedGraph

_ATEN = re.compile(r"torch\.ops\.(aten|prims)\.([A-Za-z_]\w*)\.(\w+)")
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "neg")},
    **{f"_operator.{name}": getattr(operator, name) for name in ("floordiv", "truediv", "mod")},
    **{f"_operator.{name}": getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt")},
    **{f"_operator.{name}": getattr(operator, name) for name in ("ge", "and_", "or_", "not_")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    "torch.sym_max": torch.sym_max,
    "torch.sym_min": torch.sym_min,
    "torch.sym_float": torch.sym_float,
    "torch.sym_int": torch.sym_int,
    "torch.sym_not": torch.sym_not,
    "torch.sym_ite": torch.sym_ite,
}
"""Arithmetic on sizes; powers are excluded, because they may take unbounded time."""

_MODES = {"pad", "div", "div_", "gelu", "gelu_", "gelu_backward", "conv1d", "conv2d", "conv3d"}
_MODES |= {"einsum", "meshgrid", "scatter_reduce", "index_reduce", "searchsorted", "linalg_norm"}
_MODES |= {"linalg_matrix_norm", "cov", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2"}
_MODES |= {"fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "_assert_scalar", "_assert_async"}
"""Operators whose text arguments select a mode; elsewhere text may name a file (`from_file`)."""

_CHECKS_OF_TYPE = "torch.ops.aten._assert_tensor_metadata.default"
_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)
_FAULTS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, ArithmeticError)
_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
_KEYWORD = 2


@dataclass(frozen=True, slots=True)
class _Value:
    """A reference to the result of an earlier operator."""

    name: str


def _tensors(value: list[Any]) -> tuple[Any, ...]:
    return tuple(_tensors(v) if isinstance(v, list) else _Value(v["name"]) for v in value)


_PLAIN = {"as_int", "as_float", "as_bool", "as_ints", "as_floats", "as_bools", "as_int_lists"}
_PLAIN |= {"as_string", "as_strings"}
_PARTS = {"as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"}
_WITHIN = {"as_optional_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"}
_READ: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda value: None,
    "as_tensor": lambda value: _Value(value["name"]),
    "as_tensors": _tensors,
    "as_nested_tensors": _tensors,
    "as_name": _Value,
    "as_scalar_type": lambda value: getattr(torch, DTYPES[value]),
    "as_memory_format": lambda value: (None, *_FORMATS, torch.preserve_format)[value],
    "as_layout": lambda value: {7: torch.strided}[value],
    "as_device": lambda value: torch.device("cpu"),  # stands for the program's own
    "as_complex": lambda value: complex(value["real"], value["imag"]),
}
"""Decoders of the schema's kinds of `Argument` (`_PARTS`, `_WITHIN`: nested unions)."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One operator.

    Attributes:
        label: its name in messages.
        function: its implementation.
        arguments: constants, values, and tuples of them.
        keywords: the same, by name.
        results: names of its results: one, or several in a tuple or list.
        dropped: values that are not used after it.
    """

    label: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: str | tuple[str, ...] | None
    dropped: tuple[str, ...]


class Program:
    """The network of an exported graph: tensors, in the order of its signature, to one tensor.

    It runs on the given device, whatever device it was exported on. Given float64, it computes in
    float64 throughout: weights are widened, and float32 in the graph means float64.
    """

    def __init__(
        self, source: str, graph: ExportedGraph, arrays: dict[str, Tensor], device: torch.device
    ) -> None:
        """Look up every operator.

        Args:
            source: the file, for messages.
            graph: not opaque.
            arrays: of the graph, by name.
            device: to run on.

        Raises:
            CheckpointError: an operator is unknown, or is not arithmetic.
        """
        self._source, self._device, self._output = source, device, graph.signature.output.name
        self._inputs = tuple(spec.name for spec in graph.signature.inputs)
        self._weights = {name: arrays[a].to(device) for name, a in graph.weights.items()}
        self._wide: dict[str, Tensor] = {}
        try:
            self._calls = _calls(graph, self._output)
        except _Unsupported as unknown:
            raise CheckpointError(f"{source}: {printable(str(unknown))}") from None
        except _MALFORMED as error:
            fault = printable(f"{type(error).__name__}: {error}")
            raise CheckpointError(
                f"{source}: an operator does not follow the schema of torch.export ({fault}):"
                " damaged, or by another version of PyTorch"
            ) from None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The graph's output.

        Args:
            inputs: one for each of the signature's, in order.

        Raises:
            CheckpointError: an operator cannot be computed.
        """
        wide = any(tensor.dtype == torch.float64 for tensor in inputs)
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        values |= self._widened() if wide else self._weights
        for call in self._calls:
            try:
                arguments = [self._given(a, values, wide) for a in call.arguments]
                keywords = {n: self._given(a, values, wide) for n, a in call.keywords.items()}
                _store(call.results, call.function(*arguments, **keywords), values)
            except torch.OutOfMemoryError:
                raise
            except _FAULTS as e:
                fault = printable(str(e).partition("\n")[0])
                raise CheckpointError(
                    f"{self._source}: operator {call.label} cannot be computed: {fault}"
                ) from None
            for name in call.dropped:
                values.pop(name, None)
        output: Tensor = values[self._output]
        return output

    def _widened(self) -> dict[str, Tensor]:
        if not self._wide:
            self._wide = {
                name: tensor.double() if tensor.is_floating_point() else tensor
                for name, tensor in self._weights.items()
            }
        return self._wide

    def _given(self, argument: Any, values: dict[str, Any], wide: bool) -> Any:
        match argument:
            case _Value(name=name):
                return values[name]
            case tuple():
                return [self._given(part, values, wide) for part in argument]
            case torch.device():
                return self._device
            case torch.dtype() if wide and argument.is_floating_point:
                return torch.float64
        return argument


class _Unsupported(Exception):
    """An unsupported operator; the message names it."""


def _calls(graph: ExportedGraph, output: str) -> tuple[_Call, ...]:
    """The operators, each with the values that it uses last."""
    calls, needed = list[_Call](), {output}
    for node in reversed(graph.nodes):
        if node["target"] == _CHECKS_OF_TYPE:  # of the type and device at the time of export
            continue
        function = _function(node)
        for name in _written(function, node) & graph.weights.keys():
            raise _Unsupported(
                f"every call changes '{graph.weights[name]}', so calls differ; export the model in"
                " eval mode"
            )
        given = [(a["name"], _argument(a["arg"], node), a.get("kind")) for a in node["inputs"]]
        plain = tuple(value for _, value, kind in given if kind != _KEYWORD)
        named = {str(name): value for name, value, kind in given if kind == _KEYWORD}
        results = _results(node["outputs"])
        produced = (results,) if isinstance(results, str) else results or ()
        names = _names((*plain, *named.values())) | set(produced)
        label = f"{printable(node['target'])} (node {printable(str(node.get('name')))})"
        calls.append(_Call(label, function, plain, named, results, tuple(sorted(names - needed))))
        needed = (needed | names) - set(produced)
    if missing := needed - {s.name for s in graph.signature.inputs} - graph.weights.keys():
        raise _Unsupported(
            f"no operator produces the value '{min(missing)}', which others use: damaged"
        )
    return tuple(reversed(calls))


def _function(node: Any) -> Callable[..., Any]:
    """The implementation of an operator.

    Raises:
        _Unsupported: there is none, or it might have side effects.
    """
    target = node["target"]
    if target in _ARITHMETIC:
        return _ARITHMETIC[target]
    name = _ATEN.fullmatch(target)
    packet = getattr(getattr(torch.ops, name[1]), name[2], None) if name else None
    overload = getattr(packet, name[3], None) if name else None
    if name is None or not isinstance(overload, torch._ops.OpOverload):
        raise _Unsupported(
            f"uses operator '{target}', which is no arithmetic operator of PyTorch"
            f" {torch.__version__}; export the graph again, with this version"
        )
    text = any("as_string" in a["arg"] or "as_strings" in a["arg"] for a in node["inputs"])
    if text and name[2] not in _MODES:
        raise _Unsupported(f"gives text to operator '{target}', which may be the name of a file")
    return overload


def _written(function: Callable[..., Any], node: Any) -> set[str]:
    """Values that an operator writes to."""
    schema = function._schema.arguments if isinstance(function, torch._ops.OpOverload) else ()
    writes = {a.name for a in schema if a.alias_info is not None and a.alias_info.is_write}
    given = [a["arg"] for a in node["inputs"] if a["name"] in writes]
    return {str(a["as_tensor"]["name"]) for a in given if "as_tensor" in a}


def _argument(argument: Any, node: Any) -> Any:
    """A constant, a `_Value`, or a tuple of them, from the one entry of a union.

    Raises:
        _Unsupported: an argument that is none of these.
    """
    ((kind, value),) = argument.items()
    if kind in _PLAIN:
        return value
    if kind in _PARTS:
        return tuple(_argument(part, node) for part in value)
    if kind in _WITHIN:
        return _argument(value, node)
    if kind not in _READ:
        raise _Unsupported(f"gives operator '{node['target']}' an argument of kind '{kind}'")
    return _READ[kind](value)


def _results(outputs: list[Any]) -> str | tuple[str, ...] | None:
    """The name of the result; several names for a tuple or a list."""
    if not outputs:
        return None
    names = []
    for output in outputs:
        ((kind, value),) = output.items()
        if kind == "as_tensors":
            return tuple(str(part["name"]) for part in value)
        names.append("" if kind == "as_none" else str(value.get("name", value.get("as_name"))))
    return names[0] if len(names) == 1 else tuple(names)


def _store(names: str | tuple[str, ...] | None, result: Any, values: dict[str, Any]) -> None:
    if isinstance(names, str):
        values[names] = result
    elif names is not None:
        values |= dict(zip(names, result, strict=True))


def _names(arguments: tuple[Any, ...]) -> set[str]:
    """Names of the values among arguments."""
    names = set[str]()
    for argument in arguments:
        if isinstance(argument, _Value):
            names.add(argument.name)
        elif isinstance(argument, tuple):
            names |= _names(argument)
    return names
