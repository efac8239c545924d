"""Project files: settings in `purify-audit.toml` or `pyproject.toml`."""

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purify_audit.core.errors import PlanError
from purify_audit.core.records import printable
from purify_audit.spec.notation import meant_instead
from purify_audit.spec.toml_lines import Path as KeyPath
from purify_audit.spec.toml_lines import line_numbers, line_of

_TEXT, _WHOLE = (str,), (int,)
AUDIT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("checkpoint", "classifier", "data", "ids", "norm", "sampler"), _TEXT),
    **dict.fromkeys(("images", "directions", "t_star", "seed"), _WHOLE),
    "eps": (str, float, int, list),
    "probes": (list,),
    "level": (float,),
}
ATTACK: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("optimiser", "loss", "gradient"), _TEXT),
    **dict.fromkeys(("steps", "targets", "draws", "fresh_draws", "fresh_steps"), _WHOLE),
    **dict.fromkeys(("restarts", "held_out", "microbatch"), _WHOLE),
    "early_stop": (bool,),
}
ENGINE: dict[str, tuple[type, ...]] = {
    "precision": _TEXT,
    **dict.fromkeys(("compile", "channels_last"), (bool,)),
}
SETTINGS = AUDIT | ATTACK | ENGINE | {"preset": _TEXT, "device": _TEXT}
"""Settings of a project's file and their types, named like the options."""

_RENAMED = {"leave": "early_stop"}
_TYPES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    bool: "true or false",
}


@dataclass(frozen=True, slots=True)
class ProjectFile:
    """A project's own file.

    Attributes:
        path: as it was named or found.
        sha256: of its bytes.
        table: its settings; in `pyproject.toml` those of `[tool.purify-audit]`.
        inside: the path of that table.
        lines: line numbers of keys (`line_numbers`).
    """

    path: Path
    sha256: str
    table: dict[str, Any]
    inside: tuple[str, ...]
    lines: dict[KeyPath, int]

    def line(self, *path: str | int) -> int | None:
        """The line of a key, or of the nearest table around it."""
        return line_of(self.lines, (*self.inside, *path))

    def place(self, *path: str | int) -> str:
        """The file's name and, if known, the line of a key."""
        line = self.line(*path)
        return self.path.name if line is None else f"{self.path.name}, line {line}"


def find_project(folder: Path) -> ProjectFile | None:
    """`purify-audit.toml`, or else `pyproject.toml` where it has a table `[tool.purify-audit]`.

    Raises:
        PlanError: see `open_project`.
    """
    own, project = folder / "purify-audit.toml", folder / "pyproject.toml"
    if own.is_file():
        return open_project(own)
    file = open_project(project) if project.is_file() else None
    return file if file and file.table else None


def open_project(path: Path) -> ProjectFile:
    """Read a project's file.

    Raises:
        PlanError: it cannot be read or is not TOML.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
        table = tomllib.loads(text)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise PlanError(f"{path.name}: cannot be read: {error}") from None
    inside = ("tool", "purify-audit") if path.name == "pyproject.toml" else ()
    for name in inside:
        table = table.get(name, {})
        if not isinstance(table, dict):
            raise PlanError(f"{path.name}: [{'.'.join(inside)}] is not a table of settings")
    return ProjectFile(path, hashlib.sha256(raw).hexdigest(), table, inside, line_numbers(text))


def project_settings(file: ProjectFile | None) -> dict[str, object]:
    """The settings of a project's file, but its policy (`[gate]`).

    Returns:
        Settings by the long options' names, with `_`; none without a file.

    Raises:
        PlanError: a setting is unknown or of another type.
    """
    if file is None:
        return {}
    settings: dict[str, object] = {}
    for key, value in file.table.items():
        name = _RENAMED.get(key, key.replace("-", "_"))
        if key == "gate":
            continue
        if name not in SETTINGS:
            meant = meant_instead(name, [*SETTINGS, "gate"])
            raise PlanError(f"{file.place(key)}: no setting '{printable(key)}'{meant}")
        if type(value) not in SETTINGS[name]:  # a bool is an int to isinstance
            wanted = " or ".join(_TYPES[kind] for kind in SETTINGS[name])
            raise PlanError(f"{file.place(key)}: '{name}' is {value!r}, not {wanted}")
        settings[name] = value
    return settings
