"""Model-card metadata of the Hugging Face Hub: `model-index`, and the newer `.eval_results`.

The YAML is written by hand, every text between double quotes, so that no YAML library is needed.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import PurePath
from typing import Any

from purify_audit.render.wording import key_estimates
from purify_audit.report.schema import Report
from purify_audit.report.wording import at, number
from purify_audit.statistics.estimates import Estimate

_ARGS = ("norm", "probe", "eps", "lower", "upper", "level", "method", "n_images", "n_draws")


def model_index(report: Report) -> str:
    """Front matter for a model card's README, with the main estimates under `model-index`.

    The format has no field for intervals: they are in the name for people, and in `args` for
    programs, with norm and radius. The Hub calls this format legacy and still reads it.
    """
    result = {
        "task": {"type": "image-classification", "name": "adversarial purification"},
        "dataset": {
            "type": _dataset(report),
            "name": _dataset(report),
            "args": {"digest": report.data.digest, "images": len(report.data.ids)},
        },
        "metrics": [_metric(e) for e in key_estimates(report)],
    }
    index = [{"name": report.checkpoint.card.name, "results": [result]}]
    tags = ["adversarial-robustness", "adversarial-purification"]
    return f"---\n{_yaml({'tags': tags, 'model-index': index})}---\n"


def _metric(e: Estimate) -> dict[str, Any]:
    where = f" ({at(e)})" if at(e) else ""
    args = {name: v for name in _ARGS if (v := getattr(e, name)) is not None}
    name = f"{e.metric}{where}{_interval(e)}"
    return {"type": e.metric, "value": e.value, "name": name, "args": args}


def _interval(e: Estimate) -> str:
    if e.lower is None or e.upper is None:
        return ", no interval"
    return f", {100 * e.level:.4g}% interval {number(e.lower)} to {number(e.upper)}"


def eval_results(report: Report) -> str:
    """A file for a model repository's folder `.eval_results`, one entry for each main estimate.

    The Hub shows entries whose dataset is registered with it as a benchmark. There is no field
    for intervals, so `notes` has them, with norm, probe, radius and the report's digest.
    """
    date = _date(report)
    entries = [
        {
            "dataset": {"id": _dataset(report), "task_id": e.metric},
            "value": e.value,
            **({} if date is None else {"date": date}),
            "notes": f"{at(e) or 'no perturbation'}{_interval(e)}, {e.n_images} images;"
            f" purify-audit {report.tool_version}, report {report.digest[:12]}",
        }
        for e in key_estimates(report)
    ]
    return _yaml(entries)


def _dataset(report: Report) -> str:
    """The source of the images; of an absolute path only the last part."""
    source = report.data.source
    return PurePath(source).name if PurePath(source).is_absolute() else source


def _date(report: Report) -> str | None:
    """When the audit began, if the report has an ISO 8601 date."""
    try:
        return (
            None if report.run is None else datetime.fromisoformat(report.run.started).isoformat()
        )
    except ValueError:
        return None


def _yaml(value: Any) -> str:
    """Dicts, lists and scalars as YAML in block style."""
    if not value:
        return "[]\n"
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _entry(f"{_scalar(key)}:", inner, "  ")
    else:
        for inner in value:
            lines = list(_lines(inner)) if _nested(inner) else [_scalar(inner)]
            yield from (f"{'  ' if n else '- '}{line}" for n, line in enumerate(lines))


def _entry(key: str, value: Any, indent: str) -> Iterator[str]:
    if _nested(value):
        yield key
        yield from (indent + line for line in _lines(value))
    else:
        yield f"{key} {_scalar(value)}"


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list | tuple) and bool(value)


def _scalar(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            mantissa, e, exponent = repr(value).partition("e")
            point = "" if "." in mantissa else ".0"  # without one, YAML 1.1 reads 1e-05 as text
            return f"{mantissa}{point}{e}{exponent}"
        case dict() | list() | tuple():
            return "{}" if isinstance(value, dict) else "[]"
        case _:
            return f'"{"".join(map(_character, str(value)))}"'


def _character(c: str) -> str:
    """A character of a double-quoted text (YAML 1.2, 5.7)."""
    if c in '"\\':
        return f"\\{c}"
    if c.isprintable():
        return c
    code = ord(c)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
