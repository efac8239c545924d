"""Find the networks inside user code; their mode and precision."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from purify_audit.models.purifiers.float64 import in_float64

_MODE_MATTERS = (_DropoutNd, _BatchNorm, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)
_DEPTH = 4  # such as an object in an attribute of an object in a closure


def modules_of(code: object) -> list[nn.Module]:
    """Networks reachable from a callable.

    Itself, its attributes, closure, defaults and global variables, and containers of these.
    """
    modules: dict[int, nn.Module] = {}
    seen = set[int]()
    level: list[object] = [code]
    for _ in range(_DEPTH):
        inside: list[object] = []
        for value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                modules[id(value)] = value
            else:
                inside.extend(_parts(value))
        level = inside
    return list(modules.values())


def in_training_mode(code: object) -> list[str]:
    """Names of mode-dependent modules (dropout, batch normalisation) in training mode."""
    return [
        f"{name or 'itself'} ({type(module).__name__})"
        for root in modules_of(code)
        for name, module in root.named_modules()
        if module.training and isinstance(module, _MODE_MATTERS)
    ]


def _parts(value: Any) -> Iterable[object]:
    match value:
        case functools.partial():
            return (value.func, *value.args, *value.keywords.values())
        case MethodType():
            return (value.__self__,)
        case FunctionType():
            return (*_cells(value), *(value.__defaults__ or ()), *_globals(value))
        case list() | tuple():
            return value
        case dict():
            return value.values()
        case type() | ModuleType():
            return ()
        case _:
            return vars(value).values() if hasattr(value, "__dict__") else ()


def _cells(function: FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _globals(function: FunctionType) -> Iterator[object]:
    """Global objects that a function refers to."""
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if not isinstance(value, ModuleType | type):
            yield value


def precision_of(x: Tensor, code: object) -> contextlib.AbstractContextManager[None]:
    """A context that runs code in float64 if its input is float64."""
    if x.dtype == torch.float64:
        return in_float64(modules_of(code))
    return contextlib.nullcontext()
