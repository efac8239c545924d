"""Old and current names of the weights of diffusers' U-Nets."""

import re
from collections.abc import Iterable

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable

_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(rf"(.*\battentions\.\d+\.)({'|'.join(_RENAMED)})(\.(?:weight|bias))")


def modern_keys(names: Iterable[str]) -> dict[str, str]:
    """Stored name -> name since May 2023.

    Pull request 3387 of diffusers renamed `query`, `key`, `value` and `proj_attn` of attention to
    `to_q`, `to_k`, `to_v` and `to_out.0`, of the same shapes. Other names are unchanged.

    Raises:
        CheckpointError: two stored names denote one weight.
    """
    modern: dict[str, str] = {}
    stored: dict[str, str] = {}
    for name in names:
        old = _OLD.fullmatch(name)
        now = f"{old[1]}{_RENAMED[old[2]]}{old[3]}" if old else name
        if now in stored:
            raise CheckpointError(
                f"tensors '{printable(stored[now])}' and '{printable(name)}' are the same weight"
                " under its old and its new name; remove one of them"
            )
        modern[name], stored[now] = now, name
    return modern
