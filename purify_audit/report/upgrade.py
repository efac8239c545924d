"""Reports of earlier schema versions, rewritten in the field names of the current one."""

import json
from pathlib import Path
from typing import Any, Literal

from purify_audit.core.errors import ReportError
from purify_audit.core.records import printable

SCHEMA_VERSION: Literal["2.1"] = "2.1"

_READ = ("1.0", "2.0")
_RENAMED_SINCE_1_0 = {
    ("plan",): {
        "reading": "load_options",
        "classifier_reading": "classifier_load_options",
    },
    ("plan", "attack"): {"leave": "early_stop"},
    ("data",): {"brought_digest": "user_images_digest"},
    ("attack",): {
        "compresses_yet_falls": "fooled_despite_compression",
        "stands_without_compressing": "robust_without_compression",
    },
    ("attack", "images"): {"falls_at": "fooling_radius"},
    ("run",): {"settled": "tuning"},
}
"""Where a record lies in a report (in lists, every item) -> its old field names and the new ones.

Free-form dictionaries, such as the arguments of a factory, are never renamed.
"""


def upgrade(raw: bytes, path: Path) -> bytes:
    """A report's JSON in the current schema; anything that is not a report is left as it is.

    Raises:
        ReportError: it has a schema version that cannot be read.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    if not isinstance(document, dict) or "schema_version" not in document:
        return raw
    version = document["schema_version"]
    if version == SCHEMA_VERSION:
        return raw
    if version not in _READ:
        tool = printable(str(document.get("tool_version", "of an unknown version")))
        raise ReportError(
            f"{path}: was written by purify-audit {tool} in report schema"
            f" {printable(str(version))}, and this version reads {', '.join(_READ)} and"
            f" {SCHEMA_VERSION}: read it with the version that wrote it, or audit again"
        )
    for place, names in _RENAMED_SINCE_1_0.items():
        for record in _records(document, place):
            for old in names.keys() & record.keys():
                record[names[old]] = record.pop(old)
    _fresh_as_aligned(document)
    return json.dumps(document | {"schema_version": SCHEMA_VERSION}).encode()


def _fresh_as_aligned(document: Any) -> None:
    """Before 2.1 attacks had no targets, and the one under fresh draws had the aligned budget."""
    for attack in _records(document, ("plan", "attack")):
        if {"draws", "steps"} <= attack.keys():
            attack |= {"fresh_draws": attack["draws"], "fresh_steps": attack["steps"]}
        attack["targets"] = 0


def _records(value: Any, place: tuple[str, ...]) -> list[dict[str, Any]]:
    """The records at a place of a document; none where the document has something else."""
    if isinstance(value, list):
        return [record for item in value for record in _records(item, place)]
    if not isinstance(value, dict):
        return []
    return _records(value.get(place[0]), place[1:]) if place else [value]
