"""The manifest of a run: the inputs that determine its results, in `manifest.json`."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from purify_audit.audit.store.disk import sync_folder, write_whole
from purify_audit.audit.store.lock import holder, lock
from purify_audit.core.errors import RunError
from purify_audit.core.records import printable

JSON: TypeAlias = "Mapping[str, JSON] | list[JSON] | str | int | float | bool | None"

MANIFEST = "manifest.json"
_LOCK = "manifest.lock"
_SCRATCH = ".manifest.tmp"
_SCHEMA = 2
_PATIENCE = 10.0  # seconds for another process to write the manifest


def canonical(value: JSON) -> str:
    """The one JSON text of a value: keys sorted, no spaces, ASCII, floats exact.

    Raises:
        ValueError: it contains NaN or infinity, which JSON cannot represent.
    """
    plain = dict(value) if isinstance(value, Mapping) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def manifest_digest(manifest: Mapping[str, JSON]) -> str:
    """SHA-256 of a manifest's canonical text, in hexadecimal."""
    return hashlib.sha256(canonical(manifest).encode()).hexdigest()


def read_run(folder: Path) -> dict[str, JSON]:
    """The manifest of the run in a folder.

    Raises:
        RunError: it is missing or damaged.
    """
    path = folder / MANIFEST
    whole = _read_json(path)
    if not isinstance(whole, dict) or not isinstance(manifest := whole.get("manifest"), dict):
        raise _damaged(path, "it holds no 'manifest'")
    if whole.get("schema") != _SCHEMA:
        raise RunError(
            f"{path}: has schema {printable(str(whole.get('schema')))}, and this version of"
            f" purify-audit reads {_SCHEMA}; continue the run with the version that began it"
        )
    try:
        intact = whole.get("digest") == manifest_digest(manifest)
    except (ValueError, RecursionError):  # NaN, or nested without end
        intact = False
    if not intact:
        raise _damaged(path, "its content does not have its digest")
    return manifest


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path.parent}: is no run folder: it holds no {path.name}") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):  # no text, no JSON, or JSON nested without end
        raise _damaged(path, "it is no JSON") from None


def _damaged(path: Path, why: str) -> RunError:
    return RunError(f"{path}: is damaged ({why}); start the run again in another folder")


def begin_or_check(folder: Path, manifest: Mapping[str, JSON]) -> None:
    """Create the folder and its manifest, or check that the manifest is the same.

    Raises:
        RunError: the folder is another run's, holds other things, or its manifest is damaged.
        OSError: the disk refuses.
    """
    if not (folder / MANIFEST).exists():
        _begin(folder, manifest)
    found = read_run(folder)
    if manifest_digest(found) == manifest_digest(manifest):
        return
    keys = sorted(found.keys() | manifest.keys())
    differ = [k for k in keys if not _same(k, found, manifest)]
    names = printable(", ".join(f"'{k}'" for k in differ))
    raise RunError(
        f"{folder}: holds another run, which differs in {names}; give another folder, or delete"
        " this one"
    )


def _same(key: str, one: Mapping[str, JSON], other: Mapping[str, JSON]) -> bool:
    if (key in one) != (key in other):
        return False
    return canonical(one[key]) == canonical(other[key])


def _begin(folder: Path, manifest: Mapping[str, JSON]) -> None:
    canonical(manifest)  # before a folder is created: JSON cannot represent every manifest
    folder.mkdir(parents=True, exist_ok=True)
    others = {p.name for p in folder.iterdir()} - {MANIFEST, _LOCK, _SCRATCH}
    if others and not (folder / MANIFEST).exists():
        raise RunError(
            f"{folder}: holds files ('{printable(min(others))}') but no {MANIFEST}, so it is no"
            " run folder; give a new folder"
        )
    locked = lock(folder / _LOCK, _PATIENCE)
    if locked is None:
        who = printable(holder(folder / _LOCK))
        raise RunError(f"{folder}: {who} is making this run folder; try again when it is done")
    with locked:
        if (folder / MANIFEST).exists():
            return
        whole = {"schema": _SCHEMA, "digest": manifest_digest(manifest), "manifest": dict(manifest)}
        text = json.dumps(whole, indent=1, allow_nan=False) + "\n"
        write_whole(folder / MANIFEST, text.encode(), folder / _SCRATCH)
        sync_folder(folder.parent)
