"""Names of factories, and their arguments converted from text to the signature's types."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from purify_audit.core.errors import InputError
from purify_audit.core.records import first_fault, printable

if TYPE_CHECKING:
    import torch

PURIFIERS, CLASSIFIERS = "purify_audit.purifiers", "purify_audit.classifiers"
"""Groups of entry points."""

_PLAIN = (int, float, bool, str, Path)

_UNNAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


class FactoryError(InputError):
    """A factory cannot be found, or not be called with the arguments that were given."""


def is_factory(text: str) -> bool:
    """Whether a name is a factory's (`a.b:c`, `a.py:c` or a registered name); runs nothing."""
    module, colon, attribute = text.partition(":")
    if colon:
        dotted = all(part.isidentifier() for part in module.split("."))
        named = all(part.isidentifier() for part in attribute.split("."))
        return named and (dotted or module.endswith(".py")) and not Path(text).exists()
    return any(text in entry_points(group=group).names for group in (PURIFIERS, CLASSIFIERS))


def convert_arguments(
    source: str,
    factory: Callable[..., Any],
    arguments: dict[str, str],
    device: "torch.device | None" = None,
) -> dict[str, Any]:
    """Keyword arguments for a factory, of the types in its signature.

    Args:
        source: what the factory is called in messages.
        factory: anything with a signature.
        arguments: by name, as text.
        device: for a parameter of that name which was not given.

    Raises:
        FactoryError: an argument is unknown, missing, not of its type, or of a type that cannot be
            written as text.
    """
    parameters = _parameters(factory)
    if parameters is None:
        return dict(arguments)
    named = {n: p for n, p in parameters.items() if p.kind not in _UNNAMED}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _refuse_unknown(source, named, arguments)
    given: dict[str, Any] = {
        name: _convert(source, named[name], text) if name in named else text
        for name, text in arguments.items()
    }
    if device is not None and "device" in named and "device" not in given:
        given["device"] = str(device) if named["device"].annotation is str else device
    for name, parameter in parameters.items():
        unnamed = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.default is parameter.empty and name not in given and not unnamed:
            raise FactoryError(
                f"{source}: needs an argument '{name}'; give it as text, or, if this is the"
                " purifier itself and takes images, name a function that returns it"
            )
    return given


def _refuse_unknown(
    source: str, named: dict[str, inspect.Parameter], arguments: dict[str, str]
) -> None:
    for name in arguments:
        if name not in named:
            near = get_close_matches(name, named, n=1)
            there = f"; there are {', '.join(named)}" if named else "; it takes none"
            hint = f"; did you mean {near[0]}" if near else there
            raise FactoryError(f"{source}: takes no argument '{printable(name)}'{hint}")


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters of a signature, annotations evaluated where they can be; none if unknown."""
    for evaluate in (True, False):
        try:
            return dict(inspect.signature(factory, eval_str=evaluate).parameters)
        except (NameError, AttributeError, SyntaxError, TypeError):
            continue
        except ValueError:  # some built-in functions have no signature
            return None
    return None


def _convert(source: str, parameter: inspect.Parameter, text: str) -> Any:
    wanted = _wanted(parameter)
    if text.lower() == "none" and NoneType in wanted:
        return None
    kinds = [kind for kind in wanted if kind is not NoneType]
    faults = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            choices = {str(choice): choice for choice in get_args(kind)}
            if text in choices:
                return choices[text]
            faults.append(f"is not one of {', '.join(choices)}")
        elif kind in _PLAIN:
            try:
                return TypeAdapter(kind).validate_python(text)
            except ValidationError as error:
                faults.append(first_fault(error))
        else:
            faults.append(f"is of type {printable(str(kind))}, which cannot be given as text")
    raise FactoryError(
        f"{source}: argument '{parameter.name}' = '{printable(text)}': {'; '.join(faults)}"
    )


def _wanted(parameter: inspect.Parameter) -> list[Any]:
    """The types a parameter may have: by its annotation, else by its default; text if unknown."""
    annotation, default = parameter.annotation, parameter.default
    if annotation in (parameter.empty, Any, object) or isinstance(annotation, str):
        kind = type(default)
        return [kind if kind in _PLAIN else str]
    if get_origin(annotation) in (Union, UnionType):
        return list(get_args(annotation))
    return [annotation]
