"""Line numbers of keys and tables in a TOML file, which `tomllib` does not give."""

import re

Path = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*([A-Za-z0-9_-]+|"[^"]*"|'[^']*')((?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=(.*)""")
_TOKEN = re.compile(r"""\"{3}|'{3}|"(?:\\.|[^"\\])*"|'[^']*'|\#.*|[\[\]{}]""")
_ESCAPED_TRIPLE = re.compile(r'\\.|"{3}')


def line_numbers(text: str) -> dict[Path, int]:
    """Lines, counted from 1, of every table and key that starts a line.

    Args:
        text: valid TOML.

    Returns:
        By path: names, and for arrays of tables the place in the array, counted from 0. Keys inside
        inline tables and arrays are not listed: they have the line of the key that holds them.
    """
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    value = _Value()
    for number, line in enumerate(text.split("\n"), 1):
        if value.is_open:
            value.read(line)
            continue
        header, key = _HEADER.match(line), _KEY.match(line)
        if header:
            table = _table(header, counts)
            lines.setdefault(table, number)
        elif key:
            names = [key[1], *(part for part in re.split(r"\s*\.\s*", key[2].strip()) if part)]
            lines.setdefault((*table, *(name.strip("\"'") for name in names)), number)
            value.read(key[3])
    return lines


class _Value:
    """Whether a value goes on to the next line: an open array, inline table or string."""

    def __init__(self) -> None:
        self._depth, self._quotes = 0, ""

    @property
    def is_open(self) -> bool:
        return bool(self._depth or self._quotes)

    def read(self, text: str) -> None:
        """Read one line of the value."""
        place = 0
        while place < len(text):
            if self._quotes:
                place = self._end_of_string(text, place)
                continue
            token = _TOKEN.search(text, place)
            if token is None:
                return
            place = token.end()
            if token[0] in ('"""', "'''"):
                self._quotes = token[0]
            elif token[0] in "[{":
                self._depth += 1
            elif token[0] in "]}":
                self._depth = max(0, self._depth - 1)

    def _end_of_string(self, text: str, place: int) -> int:
        if self._quotes == "'''":
            end = text.find(self._quotes, place)
            end = len(text) if end < 0 else end + 3
            self._quotes = self._quotes if text[end - 3 : end] != "'''" else ""
            return end
        for match in _ESCAPED_TRIPLE.finditer(text, place):
            if match[0] == self._quotes:
                self._quotes = ""
                return match.end()
        return len(text)


def _table(header: re.Match[str], counts: dict[Path, int]) -> Path:
    """The path of a header, with the place in every array of tables along it."""
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
    """The line of a path, or of the nearest enclosing table or key that has one."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None
