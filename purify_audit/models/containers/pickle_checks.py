"""What a PyTorch pickle would build, found without building it.

A pickle is a program for a small stack machine (Python's `pickletools` documents its opcodes).
Here it is followed with stand-ins: no name in it is imported, nothing is called, and a tensor is
its sizes alone. So before PyTorch's own restricted loader runs, it is known which names the pickle
asks for and how much memory its tensors claim. That loader checks the former too, and not the
latter: it lets a storage grow to whatever a tensor says of itself.
"""

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Sized
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pickletools import genops
from typing import IO, Any

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.containers.pickle_stand_ins import (
    CALLS,
    DTYPES,
    STORAGES,
    UNUSABLE,
    Name,
    Opaque,
    Storage,
    keyed,
)

MAX_PICKLE = 64 * 2**20
"""Bytes of a pickle, which holds names and sizes but no weights: a few MB at most in practice."""

MAX_OPCODES = 1_000_000
"""Of a pickle; a tensor takes some 40. The worst of this size takes seconds to read."""


@dataclass(slots=True)
class Scan:
    """What a pickle would build.

    Attributes:
        value: with stand-ins for all that is not plain; none if a name is disallowed.
        storages: by key.
        disallowed: names it imports that plain weights do not need, in their order.
        beyond: an opcode that PyTorch's restricted loader does not know, where it has one.
    """

    value: object = None
    storages: dict[str, Storage] = field(default_factory=dict)
    disallowed: list[str] = field(default_factory=list)
    beyond: str | None = None


def scan_pickle(where: str, file: IO[bytes]) -> Scan:
    """Follow a pickle to its end.

    Args:
        where: what messages begin with.
        file: at the pickle's first byte; left after its last, unless a name is disallowed.

    Raises:
        CheckpointError: it is damaged, has more opcodes than `MAX_OPCODES`, or holds tensors that
            are not dense and real, are expanded, or reach beyond the storage they view.
    """
    machine, start, name = _Machine(where), file.tell(), "its first byte"
    try:
        for count, (opcode, argument, _) in enumerate(genops(file)):
            name = opcode.name
            if count >= MAX_OPCODES:
                raise CheckpointError(f"{where}: the pickle has more than {MAX_OPCODES} opcodes")
            if name not in _OPCODES:
                file.seek(start)
                return Scan(disallowed=names_in(file), beyond=name)
            _OPCODES[name](machine, argument)
    except CheckpointError:
        raise
    except Exception as error:  # pickletools promises no list of what it raises over damaged bytes
        if not machine.scan.disallowed:
            fault = printable(str(error).partition("\n")[0] or type(error).__name__)
            raise CheckpointError(
                f"{where}: the pickle is damaged or truncated at {name}: {fault}"
            ) from None
    return machine.scan


def names_in(file: IO[bytes]) -> list[str]:
    """The names that a pickle of any protocol imports, as far as it can be read.

    Where they come as two texts (protocol 4) this is a guess, for messages only: no file is
    accepted by it.
    """
    names: list[str] = []
    texts: list[str] = []
    memo: list[str] = []
    with suppress(Exception):  # whatever is damaged, the names before it are worth telling
        for opcode, argument, _ in islice(genops(file), MAX_OPCODES):
            match opcode.name, argument:
                case (("GLOBAL" | "INST"), str(name)):
                    names.append(_name_today(name))
                case "STACK_GLOBAL", _:
                    names.append(".".join(texts[-2:]))
                case "MEMOIZE", _:
                    memo.append(texts[-1] if texts else "")
                case (("BINGET" | "LONG_BINGET"), int(place)) if place < len(memo):
                    texts.append(memo[place])
                case _, str(text):
                    texts.append(text)
    return list(dict.fromkeys(names))


def _name_today(argument: str) -> str:
    """A name with its module, as Python 3 has it: protocol 2 keeps those of Python 2."""
    module, _, name = argument.partition(" ")
    renamed = IMPORT_MAPPING.get(module, module), name
    return ".".join(NAME_MAPPING.get((module, name), renamed))


class _Machine:
    """Stack, memo and disallowed names of an unpickling machine. Faults raise exceptions."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.scan = Scan()
        self.views: dict[str, tuple[str, int, int]] = {}
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stack under each mark
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def last(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def stop(self) -> None:
        self.scan.value = self.stack.pop()

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise ValueError("something is appended to what is no list")

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(keyed(list(zip(items[::2], items[1::2], strict=True))))
        elif not isinstance(target, Opaque):
            raise ValueError("an item is set in what is no dictionary")

    def look_up(self, argument: str) -> None:
        name = _name_today(argument)
        if name in UNUSABLE:
            raise CheckpointError(
                f"{self.where}: holds a {UNUSABLE[name]} tensor; only dense tensors of real numbers"
                " can be read, so convert it (`.dequantize()`, `.to_dense()`, `.float()`)"
            )
        if not any(name in known for known in (CALLS, STORAGES, DTYPES, self.scan.disallowed)):
            self.scan.disallowed.append(name)
        self.push(Name(name))

    def call(self, function: Any, arguments: Any) -> None:
        name = function.name if isinstance(function, Name) else ""
        if isinstance(function, Opaque) or name in self.scan.disallowed:
            self.push(Opaque())
        elif name in CALLS and isinstance(arguments, tuple):
            self.copied += sum(len(each) for each in arguments if isinstance(each, Sized))
            if self.copied > MAX_OPCODES:  # the pickle's own parts are counted, copies are not
                raise ValueError("the same parts are copied again and again")
            try:
                self.push(CALLS[name](*arguments))
            except TypeError:
                raise ValueError(f"{name} is called as PyTorch never does") from None
        else:
            raise ValueError(f"what cannot be called is called{name and f': {name}'}")

    def new_object(self, cls: Any, _: Any) -> None:
        if not isinstance(cls, Opaque | Name) or getattr(cls, "name", None) in CALLS:
            raise ValueError("an object is made of what is no class")
        self.push(Opaque())

    def build(self, state: Any) -> None:
        built = self.stack[-1]
        metadata = isinstance(state, dict) and state.keys() <= {"_metadata"}
        if not isinstance(built, Opaque) and not (isinstance(built, dict) and metadata):
            raise ValueError("an object gets attributes that weights do not have")

    def load_storage(self, described: Any) -> None:
        """Persistent ids are described by `torch.serialization._save` and `_legacy_save`."""
        match described:
            case ("storage", Name(kind), str(key), str(), int(numbers), *view) if kind in STORAGES:
                self.push(self._storage(Storage(key, kind, numbers), view))
            case ("module", Name() as cls, *_):
                self.push(cls)
            case _:
                raise ValueError("a storage is not described as PyTorch does it")

    def _storage(self, root: Storage, view: list[Any]) -> Storage:
        """A storage, or its part with a key of its own (in files older than PyTorch 0.4)."""
        if root.numbers < 0 or root.key in self.views:
            raise ValueError(f"storage '{root.key}' has {root.numbers} numbers")
        if self.scan.storages.setdefault(root.key, root) != root:
            raise ValueError(f"storage '{root.key}' has two sizes or types")
        match view:
            case [] | [None]:
                return root
            case [(str(key), int(begin), int(numbers))]:
                inside = min(begin, numbers) >= 0 and begin + numbers <= root.numbers
                same = self.views.setdefault(key, place := (root.key, begin, numbers)) == place
                if inside and same and key not in self.scan.storages:
                    return Storage(key, root.kind, numbers)
        raise ValueError(f"storage '{root.key}' has no part as described")


_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "STOP": lambda machine, _: machine.stop(),
    "MARK": lambda machine, _: machine.mark(),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    "REDUCE": lambda machine, _: machine.call(*machine.last(2)),
    "NEWOBJ": lambda machine, _: machine.new_object(*machine.last(2)),
    "BUILD": lambda machine, _: machine.build(machine.stack.pop()),
    "BINPERSID": lambda machine, _: machine.load_storage(machine.stack.pop()),
    "GLOBAL": lambda machine, name: machine.look_up(name),
    "BINGET": lambda machine, place: machine.push(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.push(machine.memo[place]),
    "BINPUT": lambda machine, place: machine.put(place),
    "LONG_BINPUT": lambda machine, place: machine.put(place),
}
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
_OPCODES |= dict.fromkeys(_LITERALS, lambda machine, literal: machine.push(literal))
"""Those that PyTorch's restricted loader knows."""
