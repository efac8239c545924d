"""GitHub-flavoured Markdown: untrusted text escaped, tables, and pages cut to a limit."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from purify_audit.render.wording import visible

_MARKUP = re.compile(r"[\\`*_\[\]<>|~$&]")
_JOINER = "\u2060"  # word joiner: no width, no break
_LINKS = re.compile(
    r"@(?=\w)|#(?=\d)|\bwww(?=\.)|(?<=\bGH)-(?=\d)|(?<=:)/(?=/)|:(?=[\w+-]+:)", re.IGNORECASE
)
_SPARE = 80  # bytes reserved for the count of omitted rows and an empty line


def escaped(text: str, most: int = 1000) -> str:
    """Untrusted text shown literally: no markup, HTML, mention, link or emoji.

    Backslashes do not keep GitHub from turning `@name`, `#12`, `GH-12` and addresses into links,
    because it does so after Markdown is read; a word joiner inside them does.
    """
    broken = _LINKS.sub(lambda match: match[0] + _JOINER, visible(text, most))
    return _MARKUP.sub(lambda match: "\\" + match[0], broken)


def fenced(text: str, language: str = "") -> tuple[str, str]:
    """A code block's text and the fence around it, longer than any run of backticks within."""
    lines = [visible(line, most=100_000) for line in text.split("\n")]
    runs = [len(run) for line in lines for run in re.findall("`+", line)]
    fence = "`" * max(3, 1 + max(runs, default=0))
    return f"{fence}{language}\n" + "".join(f"{line}\n" for line in lines), f"{fence}\n"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page whose last rows may be cut.

    Attributes:
        head: text before the rows.
        rows: lines or blocks of lines, each ending with a line end.
        foot: text after them.
    """

    head: str
    rows: tuple[str, ...]
    foot: str = ""

    @property
    def frame(self) -> int:
        """Bytes of everything but the rows."""
        return _size(self.head) + _size(self.foot) + _SPARE


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Section:
    """A table; the cells are Markdown already. A column's name ending in `:` aligns right."""
    names = [name.removesuffix(":") for name in columns]
    rules = ["--:" if name.endswith(":") else "---" for name in columns]
    head = f"### {title}\n\n{_row(names)}{_row(rules)}"
    return Section(head, tuple(_row(row) for row in rows))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def fitted(opening: str, sections: Sequence[Section], limit: int) -> str:
    """A page of at most `limit` UTF-8 bytes, hence of no more UTF-16 units either.

    Sections that do not fit even without their rows are left out, the last ones first. What space
    there is goes to the rows of all evenly: none gets more than it needs, and none less than
    another that lost rows.
    """
    space, kept = limit - _size(opening), list[Section]()
    for section in sections:
        if section.frame > space:
            break
        space -= section.frame
        kept.append(section)
    shares = _shares([sum(map(_size, section.rows)) for section in kept], space)
    parts = [_cut(section, share) for section, share in zip(kept, shares, strict=True)]
    return "\n".join((opening, *parts))


def _shares(needs: list[int], space: int) -> list[int]:
    """Space for each, none more than it needs: the smallest need is met first."""
    shares = [0] * len(needs)
    for done, n in enumerate(sorted(range(len(needs)), key=needs.__getitem__)):
        shares[n] = min(needs[n], space // (len(needs) - done))
        space -= shares[n]
    return shares


def _cut(section: Section, space: int) -> str:
    kept = 0
    for row in section.rows:
        space -= _size(row)
        if space < 0:
            break
        kept += 1
    more = len(section.rows) - kept
    note = f"\n{more:,} more {'row is' if more == 1 else 'rows are'} in report.json.\n"
    return section.head + "".join(section.rows[:kept]) + section.foot + (note if more else "")


def _size(text: str) -> int:
    return len(text.encode())
