"""What a file of weights holds once it is read: nested plain Python, and the state dicts in it."""

from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.containers.pickle_stand_ins import check_view

MAX_DEPTH = 64
"""Levels of dictionaries and lists in one another."""

MAX_PARTS = 1_000_000
"""Values in a file, each counted as often as it is referred to."""

MAX_REPEAT = 4
"""How many times the file's size its tensors may take, each counted as often as it is referred to.

Weights that are stored once and stand in a file as raw and as averaged ones make 2. Whoever copies
every tensor of a file that was let through gets no more than this.
"""

_SMALL = 2**20  # bytes of tensors allowed in any case
_PLAIN = {str, int, float, complex, bool, type(None)}
_Container = dict[Any, object] | list[object] | tuple[object, ...]


def plain_tree(where: str, value: object, file_bytes: int) -> object:
    """What was read, in plain Python: dict, list, tuple, str, numbers, None and dense tensors.

    Tensors are detached, sets become lists, bytes text (Latin-1), types and devices their names.
    Of what only a full unpickle can build, a module becomes its state dict, a numpy array a tensor,
    another object a dict of its attributes, and whatever has none its type's name. Whatever is
    referred to twice still is.

    Args:
        where: what messages begin with.
        value: what the file holds.
        file_bytes: the file's size.

    Raises:
        CheckpointError: it contains itself, or is deeper, larger or more repetitive than
            `MAX_DEPTH`, `MAX_PARTS` and `MAX_REPEAT` allow; a tensor is complex, sparse,
            quantised, nested, without numbers, or expanded.
    """
    return _Plain(where, max(MAX_REPEAT * file_bytes, _SMALL)).visit(value, ()).value


def state_dicts(tree: object) -> dict[str, dict[str, Tensor]]:
    """The state dicts in a tree, by the dotted path to each; the tree itself has the path "".

    A state dict has names as its keys, and more tensors than other plain values. The state of an
    optimiser is none.

    Args:
        tree: of `purify_audit.models.containers.read.Contents`.

    Raises:
        CheckpointError: two have the same path, because a key has a dot in it.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for path, state in _find(tree, ()):
        if path in found:
            raise CheckpointError(
                f"two sets of weights are both called '{printable(path)}' in the file; save the one"
                " to audit in a file of its own"
            )
        found[path] = state
    return found


def strip_prefix(
    state: dict[str, Tensor], prefixes: tuple[str, ...] = ("module.", "_orig_mod.")
) -> dict[str, Tensor]:
    """Names without the prefixes that wrappers put before all of them, from the outermost in.

    Args:
        state: by name.
        prefixes: to remove, each as long as every name begins with it; by default those of
            `torch.nn.DataParallel` and `torch.compile`.

    Raises:
        CheckpointError: there are tensors with and without a prefix that would get one name, or a
            tensor whose name is nothing but a prefix.
    """
    while prefix := next(
        (p for p in prefixes if state and all(n.startswith(p) for n in state)), ""
    ):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    for prefix in prefixes:
        for name in state:
            bare = name.removeprefix(prefix)
            if not name or (bare != name and (not bare or bare in state)):
                raise CheckpointError(
                    f"tensors are called '{printable(bare)}' and '{printable(prefix + bare)}': with"
                    f" and without '{printable(prefix)}'; save one of the two models"
                )
    return state


def _find(node: object, path: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if isinstance(node, Mapping):
        if node.keys() >= {"state", "param_groups"}:  # torch.optim.Optimizer.state_dict
            return
        tensors = {key: each for key, each in node.items() if isinstance(each, Tensor)}
        if _is_state_dict(node, tensors):
            yield ".".join(path), tensors
            return
        children = list(node.items())
    elif isinstance(node, list | tuple):
        children = list(enumerate(node))
    else:
        return
    for key, child in children:
        yield from _find(child, (*path, str(key)))


def _is_state_dict(node: Mapping[Any, object], tensors: dict[Any, Tensor]) -> bool:
    nested = any(isinstance(each, Mapping | list | tuple) for each in node.values())
    named = all(isinstance(key, str) for key in node)
    return named and not nested and 2 * len(tensors) > len(node)


class _Visited(NamedTuple):
    """A plain value, and how much it is when everything in it is counted as often as it is used."""

    value: object
    parts: int = 1
    bytes: int = 0


class _Plain:
    """One pass over what was read, each object once."""

    def __init__(self, where: str, room: int) -> None:
        self.where, self.room = where, room
        self.done: dict[int, _Visited] = {}
        self.kept: list[object] = []  # so that no id in `done` is given to another object
        self.open: set[int] = set()

    def refuse(self, path: tuple[str, ...], fault: str) -> NoReturn:
        place = f"'{printable('.'.join(path))}' " if path else ""
        raise CheckpointError(f"{self.where}: {place}{fault}")

    def visit(self, value: object, path: tuple[str, ...]) -> _Visited:
        if type(value) in _PLAIN:
            return _Visited(value)
        if (known := self.done.get(id(value))) is not None:
            return known
        if id(value) in self.open:
            self.refuse(path, "contains itself; nothing that was trained does")
        if len(path) >= MAX_DEPTH:
            self.refuse(path, f"lies more than {MAX_DEPTH} levels deep")
        self.open.add(id(value))
        opened = _opened(value)
        if isinstance(opened, Tensor):
            visited = self._tensor(opened, path)
        elif isinstance(opened, dict | list | tuple):
            visited = self._container(opened, path)
        else:
            visited = _Visited(opened)
        self.open.remove(id(value))
        self.kept += [value, opened]
        self.done[id(value)] = visited
        return visited

    def _container(self, container: _Container, path: tuple[str, ...]) -> _Visited:
        # A pickle can give an instance attributes that hide the methods of its class.
        items = dict.items(container) if isinstance(container, dict) else enumerate(container)
        keys, values, parts, size = [], [], 1, 0
        for key, each in items:
            visited = self.visit(each, (*path, str(key)))
            keys.append(key if type(key) in _PLAIN else printable(str(key)))
            values.append(visited.value)
            parts += visited.parts
            size += visited.bytes
        if parts > MAX_PARTS:
            self.refuse(path, f"has more than {MAX_PARTS} values")
        if size > self.room:
            self.refuse(
                path,
                f"has tensors of {size} bytes in all, some of them the same, and {self.room} are"
                f" allowed ({MAX_REPEAT} times the file's size)",
            )
        if isinstance(container, dict):
            return _Visited(dict(zip(keys, values, strict=True)), parts, size)
        return _Visited(tuple(values) if isinstance(container, tuple) else values, parts, size)

    def _tensor(self, tensor: Tensor, path: tuple[str, ...]) -> _Visited:
        if (kind := _unusable(tensor)) is not None:
            self.refuse(
                path,
                f"is a tensor that is {kind}; only dense tensors of real numbers can be read, so"
                " convert it (`.dequantize()`, `.to_dense()`, `.float()`)",
            )
        numbers = tensor.untyped_storage().nbytes() // tensor.element_size()
        try:
            check_view(tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), numbers)
        except ValueError as error:
            self.refuse(path, f"cannot be used: {error}")
        return _Visited(tensor.detach(), 1, tensor.numel() * tensor.element_size())


def _unusable(tensor: Tensor) -> str | None:
    """Why no network here takes a tensor, if so."""
    faults = {
        "nested": tensor.is_nested,
        "quantised": tensor.is_quantized,
        "sparse": tensor.layout != torch.strided,
        "meta (it has a shape and no numbers)": tensor.is_meta,
        "not on the CPU": tensor.device.type != "cpu",
        "complex": tensor.is_complex(),
        f"of class {type(tensor).__qualname__}": type(tensor) not in (Tensor, torch.nn.Parameter),
    }
    return next((kind for kind, present in faults.items() if present), None)


def _opened(value: Any) -> object:
    """What an object holds: a container, a tensor, or something plain."""
    match value:
        case dict() | list() | tuple() | Tensor():
            return value
        case np.generic():
            return value.item()
        case str() | int() | float() | complex():  # of a class of their own
            return value
        case bytes() | bytearray():
            return value.decode("latin1")
        case torch.dtype() | torch.device():
            return str(value)
    return _taken_apart(value)


def _taken_apart(value: Any) -> object:
    """What an object holds that only a full unpickle can build."""
    match value:
        case type():
            return str(value)
        case torch.nn.Module():
            return value.state_dict()
        case Mapping():
            return dict(value.items())
        case Set():
            return list(value)
        case np.ndarray() if value.dtype.kind in "fiub":
            return torch.from_numpy(np.ascontiguousarray(value))
    if hasattr(value, "__dict__"):
        return dict(vars(value))
    return f"<{type(value).__module__}.{type(value).__qualname__}>"
