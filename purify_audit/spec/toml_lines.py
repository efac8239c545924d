"""Where a key stands in a TOML file, which Python's own reader does not tell."""

import re

Path = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*([A-Za-z0-9_-]+|"[^"]*"|'[^']*')((?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=(.*)""")
_TRIPLE = ('"""', "'''")


def line_numbers(text: str) -> dict[Path, int]:
    """Lines, counted from 1, of every table and key that starts a line.

    Args:
        text: TOML that has been read without a fault.

    Returns:
        By path: names, and for arrays of tables the place in the array, counted from 0. Keys in
        inline tables and arrays are not listed: they stand where their own key does.
    """
    found: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    open_string = ""
    for number, line in enumerate(text.split("\n"), 1):
        if open_string:
            open_string = "" if open_string in line else open_string
            continue
        header, key = _HEADER.match(line), _KEY.match(line)
        if header:
            table = _table(header, counts)
            found.setdefault(table, number)
        elif key:
            names = [key[1], *(part for part in re.split(r"\s*\.\s*", key[2].strip()) if part)]
            found.setdefault((*table, *(name.strip("\"'") for name in names)), number)
            open_string = next((q for q in _TRIPLE if key[3].count(q) == 1), "")
    return found


def _table(header: re.Match[str], counts: dict[Path, int]) -> Path:
    """The path of a header, with the place of every array of tables on the way."""
    names = [name.strip().strip("\"'") for name in header[2].split(".")]
    path: Path = ()
    for depth, name in enumerate(names, 1):
        path = (*path, name)
        last = depth == len(names)
        if last and header[1] == "[[":
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of a path, or of the nearest thing around it that has one."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None
