"""Mutations of files: of any bytes, and inside archives and headers with valid checksums.

Every function takes a source of random numbers and the bytes, and returns other bytes.
"""

import gzip
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from random import Random  # noqa: TID251 - no noise of a purifier: damage, addressed by a seed
from typing import Any

_MOST = 3  # mutations of one file
_NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
_NUMBERS += (2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = ("", "F32", "F16", "I64", "../x", "/etc/passwd", "a\0b", "𝒳", "NaN", "1e999", "x" * 5000)

Mutation = Callable[[Random, bytes], bytes]


def damage(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Content with one to three mutations, or that of another file.

    Args:
        rng: addressed: the same one makes the same file.
        content: of a valid file.
        others: contents of other valid files, to swap and to splice with.
    """
    if rng.random() < 0.01:
        return rng.choice(others)
    for _ in range(rng.randint(1, _MOST)):
        inner = _inner(content)
        if inner is not None and rng.random() < 0.7:
            content = inner(rng, content)
        elif rng.random() < 0.1:
            content = _splice(rng, content, rng.choice(others))
        else:
            content = rng.choice(_PLAIN)(rng, content)
    return content


# --- any bytes ----------------------------------------------------------------------------------


def _span(rng: Random, content: bytes) -> tuple[int, int]:
    """A span, more often a short one."""
    first = rng.randrange(len(content) + 1)
    return first, min(len(content), first + int(2 ** rng.uniform(0, 12)))


def _flip_bits(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _repeat(rng: Random, content: bytes) -> bytes:
    first, last = _span(rng, content)
    return content[:last] + content[first:last] * rng.choice((1, 1, 5)) + content[last:]


def _remove(rng: Random, content: bytes) -> bytes:
    first, last = _span(rng, content)
    return content[:first] + content[last:]


def _fill(rng: Random, content: bytes) -> bytes:
    first, last = _span(rng, content)
    filling = rng.choice((b"\0", b"\xff", rng.randbytes(1)))
    noise = rng.random() < 0.3
    return (
        content[:first]
        + (rng.randbytes(last - first) if noise else filling * (last - first))
        + (content[last:])
    )


def _move(rng: Random, content: bytes) -> bytes:
    first, last = _span(rng, content)
    place = rng.randrange(len(content) + 1)
    rest = content[:first] + content[last:]
    return rest[:place] + content[first:last] + rest[place:]


def _write_number(rng: Random, content: bytes) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(_NUMBERS) % 2 ** (8 * size)
    place = rng.randrange(len(content) + 1)
    order = rng.choice(("little", "big"))
    return content[:place] + number.to_bytes(size, order) + content[place + size :]


def _change_digits(rng: Random, content: bytes) -> bytes:
    digits = [place for place, byte in enumerate(content[:100_000]) if 48 <= byte <= 57]
    if not digits:
        return _write_number(rng, content)
    place = rng.choice(digits)
    return content[:place] + str(rng.choice(_NUMBERS)).encode() + content[place + 1 :]


def _splice(rng: Random, content: bytes, other: bytes) -> bytes:
    first, last = _span(rng, other)
    place, end = _span(rng, content)
    return content[:place] + other[first:last] + content[rng.choice((place, end)) :]


_PLAIN: tuple[Mutation, ...] = (
    _flip_bits,
    _flip_bits,
    _truncate,
    _repeat,
    _remove,
    _fill,
    _move,
    _write_number,
    _change_digits,
)


# --- what is inside -----------------------------------------------------------------------------


def _inner(content: bytes) -> Mutation | None:
    """How to damage what a container holds, if it is one that can be opened."""
    if content.startswith(b"PK\x03\x04"):
        return _in_zip
    if content.startswith(b"\x1f\x8b"):
        return _in_gzip
    if content[8:9] == b"{":
        return _in_header
    if content[:1] in (b"{", b"["):
        return _in_json
    return None


def _in_zip(rng: Random, content: bytes) -> bytes:
    """An entry damaged, removed, doubled, renamed or compressed; its checksum is right again."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            entries = [(info, archive.read(info)) for info in archive.infolist()]
    except Exception:  # damaged already, and zipfile promises no list of what it raises
        return _flip_bits(rng, content)
    if not entries:
        return content
    chosen, change = rng.randrange(len(entries)), rng.random()
    info, inside = entries[chosen]
    name, kind = info.filename, info.compress_type
    if change < 0.75:
        mutation = _in_json if inside[:1] in (b"{", b"[") and rng.random() < 0.7 else None
        inside = (mutation or rng.choice(_PLAIN))(rng, inside)
    elif change < 0.8:
        name = rng.choice(
            (name.upper(), name + "x", "../" + name, "/" + name, "x", name[1:] or "y")
        )
    elif change < 0.85:
        kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    written = [(each.filename, data, each.compress_type) for each, data in entries]
    written[chosen : chosen + (change < 0.95)] = [(name, inside, kind)] * (
        change < 0.9 or change > 0.95
    )
    with zipfile.ZipFile(out := BytesIO(), "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two entries with one name
        for each in written:
            with suppress(ValueError, struct.error):  # a name that no archive can have
                archive.writestr(*each)
    return out.getvalue()


def _in_gzip(rng: Random, content: bytes) -> bytes:
    try:
        inside = gzip.decompress(content)
    except Exception:  # damaged already
        return _flip_bits(rng, content)
    return gzip.compress(rng.choice(_PLAIN)(rng, inside), mtime=0)


def _in_header(rng: Random, content: bytes) -> bytes:
    """Of safetensors; its length is right again."""
    (length,) = struct.unpack("<Q", content[:8])
    header = _in_json(rng, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _in_json(rng: Random, content: bytes) -> bytes:
    """A value replaced, removed or doubled somewhere, also in JSON that is text inside of JSON."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _change_digits(rng, content)
    with suppress(ValueError):  # a number that JSON cannot tell
        return json.dumps(_changed(rng, value)).encode()
    return content


def _changed(rng: Random, value: Any) -> Any:
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, copy = rng.choice(keys), value.copy()
        if rng.random() < 0.1:
            del copy[key]
        elif rng.random() < 0.1 and isinstance(copy, dict):
            copy[rng.choice(_TEXTS)] = copy.pop(key)
        else:
            copy[key] = _changed(rng, value[key])
        return copy
    if isinstance(value, str) and value[:1] in ("{", "["):
        with suppress(ValueError):
            return json.dumps(_changed(rng, json.loads(value)))
    if isinstance(value, int | float) and rng.random() < 0.8:
        return rng.choice((*_NUMBERS, value + 1, value - 1, value * 2, 0.5, 1e308, -0.0))
    return rng.choice((*_NUMBERS, *_TEXTS, None, True, [], {}, [value], {"a": value}, 1e-300))
