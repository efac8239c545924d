"""Table style shared by the terminal tables."""

from typing import Any

from rich import box

TABLE: dict[str, Any] = {
    "title_justify": "left",
    "title_style": "bold",
    "box": box.SIMPLE_HEAD,
    "padding": (0, 1),
}
