"""The architecture page names files, functions and rooms that exist, and leaves no room out."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:purify_audit|tests|docs)/[\w./-]*)(?:::(\w+))?`", PAGE)))
ROOMS = sorted(p.parent.name for p in (ROOT / "purify_audit").glob("*/__init__.py"))


@pytest.mark.parametrize(("path", "name"), NAMED, ids="::".join)
def test_what_is_named_exists(path, name):
    assert (ROOT / path).exists()
    if name:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {getattr(node, "name", None) for node in tree.body}


def test_names_in_prose_exist():
    """Constants and types that are named after the file that defines them."""
    for path, name in (
        ("spec/card.py", "PurifierCard"),
        ("models/formats/recognise.py", "FORMATS"),
        ("spec/samplers.py", "Sampler"),
        ("core/findings.py", "CODES"),
        ("statistics/metrics.py", "MetricName"),
    ):
        assert f"`{name}`" in PAGE
        text = (ROOT / "purify_audit" / path).read_text(encoding="utf-8")
        assert re.search(rf"^{name}\b", text, re.MULTILINE), f"{path}: {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_described(room):
    assert f"| `purify_audit/{room}/` |" in PAGE
    assert f"  {room}/ " in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_picture_has_the_layers_that_are_enforced():
    picture = (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = (c["layers"] for c in contracts if c["type"] == "layers")
    rooms = [room.strip() for layer in layers for room in layer.split("|")]
    assert re.findall(r'font-weight="bold">(\w+)<', picture) == rooms
    assert len(ROOMS) == 12
