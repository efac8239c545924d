"""Running unmodified float32 code in float64.

Rounding hides gradient errors that float64 shows. Networks inside user code cannot be copied, so
their weights are replaced by float64 for the duration, and every operator computes in float64
instead of the requested type.
"""

import contextlib
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


@contextlib.contextmanager
def in_float64(modules: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Every operator within computes in float64, whatever type is passed or requested.

    Args:
        modules: networks whose weights are float64 meanwhile. Others are cast where an operator
            reads them, which convolutions refuse: they compare types before the cast.
    """
    before = torch.get_default_dtype()
    weights = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    narrow = {key: t.data for key, t in weights.items() if t.dtype in _NARROW}
    try:
        torch.set_default_dtype(torch.float64)
        for key, values in narrow.items():
            weights[key].data = values.double()
        with _Widen():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)
        for key, values in narrow.items():
            weights[key].data = values


class _Widen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Casts operands and requested types; weights stay as they are."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.is_view:  # a view of a weight must stay a view; it is cast where it is read
            return func(*args, **kwargs)
        kept = _written(func)
        args = tuple(a if n in kept else _widen(a) for n, a in enumerate(args))
        kwargs = {name: a if name in kept else _widen(a) for name, a in kwargs.items()}
        if kwargs.get("dtype") in _NARROW:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


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
