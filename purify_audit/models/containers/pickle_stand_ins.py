"""Stand-ins for the names that a pickle of plain weights may import; they build nothing.

How tensors are pickled is defined in `torch._utils`: the arguments of its `_rebuild_...` functions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

_MAX_AXES = 64  # torch's limit
_MAX_NUMBERS = 2**53  # even the sizes of an empty tensor must not overflow in torch
_MAX_KEY = 2**61 - 1  # below it no two whole numbers share a hash

_ITEM_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2}
_ITEM_BYTES |= {"Char": 1, "Byte": 1, "Bool": 1}

STORAGES = {f"torch.{name}Storage": size for name, size in _ITEM_BYTES.items()}
"""Bytes of a number in the storages that tensors view, by name."""

DTYPES = {f"torch.{kind}{bits}" for kind in ("int", "float") for bits in (8, 16, 32, 64)}
DTYPES |= {"torch.uint8", "torch.bool", "torch.bfloat16"}

UNUSABLE = {
    "torch.ComplexFloatStorage": "complex",
    "torch.ComplexDoubleStorage": "complex",
    "torch.QInt8Storage": "quantised",
    "torch.QUInt8Storage": "quantised",
    "torch.QInt32Storage": "quantised",
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta",
    "torch._utils._rebuild_tensor_v3": "8-bit floating-point or wide unsigned",
}
"""Names of tensors that no network here takes, and what those are."""


@dataclass(frozen=True, slots=True)
class Storage:
    """The numbers that tensors view."""

    key: str
    kind: str
    numbers: int

    @property
    def bytes(self) -> int:
        """How many it takes."""
        return self.numbers * STORAGES[self.kind]


@dataclass(frozen=True, slots=True)
class Name:
    """A name in a module, not looked up."""

    name: str


class Opaque:
    """The result of a call to a disallowed name."""


class DenseTensor:
    """A tensor whose sizes were checked."""


def keyed(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dictionary of items whose keys take no time to hash (nested tuples may take ages).

    Raises:
        ValueError: a key is neither text nor a number, or is a very large one.
    """
    for key, _ in items:
        if type(key) not in (str, bytes, int, float, bool, type(None)):
            raise ValueError("a dictionary's key is neither text nor a number")
        if type(key) is int and abs(key) >= _MAX_KEY:
            raise ValueError("a dictionary's key is out of range")
    return dict(items)


def check_view(offset: Any, size: Any, stride: Any, numbers: int) -> None:
    """A tensor's numbers all lie in its storage, each in a place of its own.

    Args:
        offset: of the first number, in numbers.
        size: of each axis.
        stride: of each axis, in numbers.
        numbers: of the storage.

    Raises:
        ValueError: they do not, or these are not whole numbers.
    """
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise ValueError("a tensor has no size or no stride")
    if len(size) > _MAX_AXES or not all(
        type(n) is int and n >= 0 for n in (offset, *size, *stride)
    ):
        raise ValueError("a tensor's size or stride is not of whole numbers")
    if prod(max(n, 1) for n in size) > _MAX_NUMBERS or max((offset, *stride)) > _MAX_NUMBERS:
        raise ValueError("a tensor's size or stride is out of range")
    if any(n > 1 and step == 0 for n, step in zip(size, stride, strict=True)):
        raise ValueError("a tensor is expanded (its stride is 0: one number stands for many)")
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    needed = max(prod(size), reach) if prod(size) else offset
    if needed > numbers:
        raise ValueError(f"a tensor needs {needed} numbers of a storage that has {numbers}")


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return keyed([(key, value) for key, value in pairs])


def _counter(counts: dict[Any, Any]) -> dict[Any, Any]:
    return dict(counts)


def _size(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sizes)


def _device(kind: str, index: int = 0) -> str:
    return f"{kind}:{index}"


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("bytes are not encoded as pickle does it")
    return text.encode("latin1")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> DenseTensor:
    requires_grad, hooks, metadata = (*rest, False, None, None)[:3] if rest else (False, None, None)
    if not isinstance(storage, Storage) or type(requires_grad) is not bool or hooks or metadata:
        raise ValueError("a tensor is not described as PyTorch does it")
    check_view(offset, size, stride, storage.numbers)
    return DenseTensor()


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> DenseTensor:
    if not isinstance(tensor, DenseTensor) or type(requires_grad) is not bool or hooks:
        raise ValueError("a parameter is not described as PyTorch does it")
    return tensor


CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "torch.Size": _size,
    "torch.device": _device,
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
"""Names that a pickle may call, with what is called instead."""
