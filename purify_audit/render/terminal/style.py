"""Style shared by the terminal tables, and shared tables as Rich tables."""

from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from purify_audit.render.summary import Table

TABLE: dict[str, Any] = {
    "title_justify": "left",
    "title_style": "bold",
    "box": box.SIMPLE_HEAD,
    "padding": (0, 1),
}


def cell(text: str, gap: str = " ") -> Text:
    """A value with its interval dimmed, on a line of its own if `gap` is a line break."""
    value, space, interval = text.partition(" ")
    if interval.startswith("["):
        interval = interval.replace(" ", "")  # lines are broken at spaces
    return Text.assemble(value, (f"{gap if space else ''}{interval}", "dim"))


def rich_table(table: Table) -> RichTable:
    """A shared table for the terminal."""
    rich = RichTable(title=table.title, caption=table.note, caption_justify="left", **TABLE)
    text_columns = (0, *table.words)
    for n, name in enumerate(table.columns):
        rich.add_column(name, justify="left" if n in text_columns else "right")
    for row in table.rows:
        rich.add_row(*(Text(c) if n in text_columns else cell(c) for n, c in enumerate(row)))
    return rich
