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
_DEPTH = 4  # of an object in an attribute of an object in a closure, say


def modules_of(code: object) -> list[nn.Module]:
    """Networks that a callable is, holds or names.

    In attributes, closures, defaults, global variables, and containers of these.
    """
    found: dict[int, nn.Module] = {}
    seen = set[int]()
    level: list[object] = [code]
    for _ in range(_DEPTH):
        inside: list[object] = []
        for thing in level:
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            if isinstance(thing, nn.Module):
                found[id(thing)] = thing
            else:
                inside.extend(_parts(thing))
        level = inside
    return list(found.values())


def in_training_mode(code: object) -> list[str]:
    """Names of modules whose mode matters (dropout, batch normalisation) and is training."""
    return [
        f"{name or 'itself'} ({type(module).__name__})"
        for root in modules_of(code)
        for name, module in root.named_modules()
        if module.training and isinstance(module, _MODE_MATTERS)
    ]


def _parts(thing: Any) -> Iterable[object]:
    match thing:
        case functools.partial():
            return (thing.func, *thing.args, *thing.keywords.values())
        case MethodType():
            return (thing.__self__,)
        case FunctionType():
            return (*_cells(thing), *(thing.__defaults__ or ()), *_globals(thing))
        case list() | tuple():
            return thing
        case dict():
            return thing.values()
        case type() | ModuleType():
            return ()
        case _:
            return vars(thing).values() if hasattr(thing, "__dict__") else ()


def _cells(function: FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _globals(function: FunctionType) -> Iterator[object]:
    """Global objects that a function names."""
    for name in function.__code__.co_names:
        thing = function.__globals__.get(name)
        if not isinstance(thing, ModuleType | type):
            yield thing


def precision_of(x: Tensor, code: object) -> contextlib.AbstractContextManager[None]:
    """Code runs in float64 where it is given float64."""
    if x.dtype == torch.float64:
        return in_float64(modules_of(code))
    return contextlib.nullcontext()
