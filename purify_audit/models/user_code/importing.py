"""Import and call factories: functions in modules, in files, or registered by a package."""

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from purify_audit.core.digests import file_sha256
from purify_audit.core.records import printable
from purify_audit.models.user_code.arguments import PURIFIERS, FactoryError, convert_arguments
from purify_audit.models.user_code.errors import UserCodeError, user_code_errors
from purify_audit.models.user_code.purifier import Code
from purify_audit.spec.architectures import CodeArgs

_FACTORY_TYPES = (FunctionType, BuiltinFunctionType, MethodType, type, partial)


def load_factory(
    spec: str,
    arguments: dict[str, str],
    *,
    group: str = PURIFIERS,
    device: torch.device | None = None,
) -> Code:
    """Import a factory and call it; results are cached by the arguments.

    Args:
        spec: `package.module:function`, `path/to/file.py:function` or a registered name.
        arguments: as text; converted by its annotations (or the types of its defaults):
            int, float, bool, str, Path, a choice (`Literal`), or any of these or none.
        group: of entry points, for a registered name.
        device: given as `device` to a factory that has such a parameter.

    Raises:
        FactoryError: it cannot be found, does not take the arguments, or its result
            is not callable.
        UserCodeError: importing or calling it raised an exception.
    """
    return _call_factory(spec, tuple(sorted(arguments.items())), group, device)


@lru_cache(maxsize=8)
def _call_factory(
    spec: str, arguments: tuple[tuple[str, str], ...], group: str, device: torch.device | None
) -> Code:
    value = _find(spec, group)
    if isinstance(value, _FACTORY_TYPES):
        keywords = convert_arguments(spec, value, dict(arguments), device)
        with user_code_errors(spec):
            value = value(**keywords)
    elif arguments:
        raise FactoryError(f"{spec}: is an object and not a factory, so it takes no arguments")
    if not callable(value):
        kind = printable(type(value).__name__)
        raise FactoryError(f"{spec}: returned a {kind}, which cannot be called with images")
    code: Code = value
    return code


def code_sha256(network: CodeArgs, group: str = PURIFIERS) -> str:
    """A digest of a factory's source file, its arguments, and the files that these name.

    Files that the source imports or opens are not included.

    Raises:
        FactoryError: it cannot be found.
    """
    digest = hashlib.sha256(json.dumps(network.model_dump(), sort_keys=True).encode())
    value = _find(network.factory, group)
    owner = value if isinstance(value, _FACTORY_TYPES) else type(value)
    module = inspect.getmodule(owner.func if isinstance(owner, partial) else owner)
    files = [getattr(module, "__file__", None), *(v for _, v in sorted(network.arguments.items()))]
    for file in (Path(f) for f in files if f):
        if file.is_file():
            digest.update(file_sha256(file).encode())
    return digest.hexdigest()


def _find(spec: str, group: str) -> Any:
    """The object of a name."""
    module_name, colon, attribute = spec.partition(":")
    if not colon:
        registered = entry_points(group=group)
        if spec not in registered.names:
            near = get_close_matches(spec, registered.names, n=1)
            hint = f"; did you mean {near[0]}" if near else ""
            raise FactoryError(
                f"{printable(spec)}: no installed package registers a factory of this name"
                f" ({group}){hint}; other factories are named package.module:function"
            )
        with user_code_errors(spec):
            return registered[spec].load()
    value: Any = _module(spec, module_name)
    for part in attribute.split("."):
        if not hasattr(value, part):
            near = get_close_matches(part, dir(value), n=1)
            hint = f"; it has {near[0]}" if near else ""
            raise FactoryError(f"{printable(spec)}: there is no '{printable(part)}' in it{hint}")
        value = getattr(value, part)
    return value


def _module(spec: str, name: str) -> ModuleType:
    """The module of a dotted name, or of a Python file."""
    if name.endswith(".py"):
        return _file_module(spec, Path(name).resolve())
    try:
        with user_code_errors(spec):
            return importlib.import_module(name)
    except UserCodeError as error:
        missing = getattr(error.__cause__, "name", None)  # of a ModuleNotFoundError
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise
    raise FactoryError(
        f"{printable(spec)}: there is no module '{printable(missing)}'; install it, run in its"
        " folder, or name a file (path/to/file.py:function)"
    )


def _file_module(spec: str, path: Path) -> ModuleType:
    """A Python file as a module, cached; its folder is importable, as for a script."""
    name = f"_purify_audit_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FactoryError(f"{printable(spec)}: there is no file '{printable(str(path))}'")
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None, "the name ends in .py"
    assert module_spec.loader is not None, "it is a source file"
    module = importlib.util.module_from_spec(module_spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        with user_code_errors(spec):
            module_spec.loader.exec_module(module)
    except UserCodeError:
        del sys.modules[name]
        raise
    return module
