"""Settings as people write them: the one-line notation of a choice, and a project's own file."""

import tomllib
from pathlib import Path

from purify_audit.errors import PlanError

_TYPES: dict[type, str] = {int: "a whole number", float: "a number", str: "text", list: "a list"}


def parse_settings(text: str) -> tuple[str, dict[str, str]]:
    """Read `NAME` or `NAME:key=value,key=value`.

    Args:
        text: the notation; spaces around its parts are ignored. A value ends at a comma and may
            itself contain `=` and `:`.

    Returns:
        The name, and the settings in the order written. Values stay strings: what they mean is
        for the record they are validated by.

    Raises:
        PlanError: the name is empty, nothing follows the colon, a setting is not `key=value`,
            a key is repeated, or a key is `kind` (which in a record is the name).
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not name:
        raise PlanError(f"'{text}' names nothing: write NAME or NAME:key=value,key=value")
    settings: dict[str, str] = {}
    for setting in rest.split(",") if colon else ():
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not (key and equals and value):
            raise PlanError(
                f"'{text}': '{setting.strip()}' is not key=value; write NAME:key=value,key=value"
            )
        if key == "kind":
            raise PlanError(f"'{text}': 'kind' is no setting; the name before the colon gives it")
        if key in settings:
            raise PlanError(f"'{text}' gives '{key}' twice")
        settings[key] = value
    return name, settings


def read_project(folder: Path, known: dict[str, tuple[type, ...]]) -> dict[str, object]:
    """Settings of `purify-audit.toml`, or else of `[tool.purify-audit]` in `pyproject.toml`.

    Args:
        folder: where to look.
        known: the settings there are and their types; names are the long options', with `-` or `_`.

    Returns:
        The settings; none without such a file or table.

    Raises:
        PlanError: the file cannot be read, is not TOML, or has a setting that is not known or of
            another type.
    """
    own, project = folder / "purify-audit.toml", folder / "pyproject.toml"
    path = own if own.is_file() else project
    if not path.is_file():
        return {}
    table = _table(path, () if path == own else ("tool", "purify-audit"))
    settings = {name.replace("-", "_"): value for name, value in table.items()}
    strange = sorted(settings.keys() - known)
    if strange:
        raise PlanError(
            f"{path.name}: no setting '{strange[0]}'; there are {', '.join(sorted(known))}"
        )
    for name, value in settings.items():
        if not isinstance(value, known[name]) or isinstance(value, bool):
            wanted = " or ".join(_TYPES[kind] for kind in known[name])
            raise PlanError(f"{path.name}: '{name}' is {value!r}, not {wanted}")
    return settings


def _table(path: Path, inside: tuple[str, ...]) -> dict[str, object]:
    """A table of a TOML file; empty where there is none of that name."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PlanError(f"{path.name}: cannot be read: {error}") from None
    for name in inside:
        table = table.get(name, {})
        if not isinstance(table, dict):
            raise PlanError(f"{path.name}: [{'.'.join(inside)}] is not a table of settings")
    return table
