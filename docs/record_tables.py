"""Tables of a record's fields: type and default from its schema, meaning from its docstring."""

import inspect
import json
import math
import re
from typing import Any

from purify_audit.core.records import Record
from purify_audit.statistics.metrics import METRICS

Schema = dict[str, Any]

_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "none",
    "object": "table",
}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
_ELSEWHERE = {
    "Sampler": "[sampler](samplers.md)",
    "Card": "[card](#card)",
    "AuditPlan": "[AuditPlan](plan.md)",
}
_ENTRY = re.compile(r"^    (\w+): (.*)")


def meanings(record: type) -> dict[str, str]:
    """Meaning of each field, from the section `Attributes` of the docstring."""
    _, _, section = (inspect.getdoc(record) or "").partition("Attributes:\n")
    fields: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        entry = _ENTRY.match(line)
        if entry:
            name = entry[1]
            fields[name] = entry[2]
        elif name and line.strip():
            fields[name] += f" {line.strip()}"
    return {name: text.replace("|", "\\|") for name, text in fields.items()}


def summary(record: type) -> str:
    """A docstring without its section `Attributes`."""
    text = (inspect.getdoc(record) or "").partition("Attributes:\n")[0]
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text).strip()


def table(record: type[Record], known: tuple[type[Record], ...] = ()) -> str:
    """A Markdown table of a record's fields.

    Args:
        record: the record.
        known: records with a heading on the same page, to link to.
    """
    schema = record.model_json_schema(mode="serialization")
    required = record.model_json_schema().get("required", [])
    definitions, meaning = schema.get("$defs", {}), meanings(record)
    names = {other.__name__ for other in known}
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, about in schema["properties"].items():
        if "const" in about and name == "kind":
            continue
        kind = _words(about, definitions, names)
        default = "required" if name in required else _default(record, name)
        rows.append(f"| `{name}` | {kind} | {default} | {meaning.get(name, '')} |")
    return "\n".join(rows)


def _default(record: type[Record], name: str) -> str:
    value = record.model_fields[name].get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, Record):
        return "its defaults"
    return "empty" if value in ((), {}) else f"`{json.dumps(value)}`"


def _words(about: Schema, definitions: Schema, known: set[str]) -> str:
    """A type in words."""
    if "$ref" in about:
        return _named(about["$ref"].rpartition("/")[2], definitions, known)
    several = about.get("anyOf") or about.get("oneOf")
    if several:
        return " or ".join(dict.fromkeys(_words(one, definitions, known) for one in several))
    if about.get("type") != "array":
        return _one(about)
    if "prefixItems" in about:
        return f"{len(about['prefixItems'])} numbers"
    items = _words(about["items"], definitions, known)
    return f"list of {items.replace('number', 'numbers', 1)}"


def _one(about: Schema) -> str:
    """A type without nested types."""
    if "const" in about:
        return f"`{about['const']}`"
    if about.get("enum") == list(METRICS):
        return "[a metric](#metrics)"
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if about.get("format") == "date":
        return "date"
    words = _TYPES[about.get("type", "object")]
    limits = [text.format(_number(about[key])) for key, text in _LIMITS.items() if key in about]
    return " ".join([words, " and ".join(limits)]).strip()


def _named(name: str, definitions: Schema, known: set[str]) -> str:
    """A link to the record's heading; for a union of types, these in words."""
    if name in known:
        return f"[{name}](#{name.lower()})"
    for ending, link in _ELSEWHERE.items():
        if name.endswith(ending):
            return link
    about = definitions[name]
    return name if "properties" in about else _words(about, definitions, known)


def _number(value: float) -> str:
    """A limit; large powers of two as powers."""
    power = round(math.log2(value)) if value > 0 else 0
    return f"2^{power}" if power > 16 and value == 2**power else f"{value:g}"
