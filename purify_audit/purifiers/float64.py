"""Code written for float32, run in float64 without changing a line or a weight of it.

Rounding hides whether a gradient is right; float64 shows it. Networks that nobody can find (in a
closure, a global, a library's object) cannot be copied and converted, so every operator is given
float64 instead of what it asked for.
"""

import contextlib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_IN_PLACE = re.compile(r"\w*[^_]_|__i\w+__|__setitem__")
_NARROW = (torch.float32, torch.float16, torch.bfloat16)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Every operator within computes in float64, whatever type its tensors have or it is told."""
    found = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _WidenMixed(), _Widen():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(found)


class _Widen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Casts what operators read and what type they are asked for; weights stay as they are."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.is_view:  # a view of a weight must stay one; what reads it is cast
            return func(*args, **kwargs)
        kept = _written(func)
        args = tuple(a if n in kept else _widen(a) for n, a in enumerate(args))
        kwargs = {name: a if name in kept else _widen(a) for name, a in kwargs.items()}
        if kwargs.get("dtype") in _NARROW:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


class _WidenMixed(TorchFunctionMode):
    """Casts where types are mixed: convolutions and others compare them before they dispatch."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        found = {t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        name = getattr(func, "__name__", "")
        writes = "out" in kwargs or name == "__set__" or _IN_PLACE.fullmatch(name)
        if writes or torch.float64 not in found or found.isdisjoint(_NARROW):
            return func(*args, **kwargs)
        return func(*_widen(args), **_widen(kwargs))


def _widen(argument: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.double() if t.dtype in _NARROW else t, argument)


@cache
def _written(func: Any) -> frozenset[int | str]:
    """Places and names of arguments that an operator writes to and returns."""
    returned = {
        name for r in func._schema.returns if r.alias_info for name in r.alias_info.after_set
    }
    return frozenset(
        key
        for n, a in enumerate(func._schema.arguments)
        if a.alias_info and a.alias_info.is_write and returned & set(a.alias_info.after_set)
        for key in (n, a.name)
    )
