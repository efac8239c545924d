"""Names of the weights of diffusers' U-Nets, then and now."""

import re
from collections.abc import Iterable

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable

_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(rf"(.*\battentions\.\d+\.)({'|'.join(_RENAMED)})(\.(?:weight|bias))")


def modern_keys(names: Iterable[str]) -> dict[str, str]:
    """Each name as it is stored, and as diffusers has it since May 2023.

    Its pull request 3387 gave attention `to_q`, `to_k`, `to_v` and `to_out.0` instead of `query`,
    `key`, `value` and `proj_attn`; shapes are the same. Every other name is left as it is.

    Raises:
        CheckpointError: two stored names come to mean one weight.
    """
    modern: dict[str, str] = {}
    meant: dict[str, str] = {}
    for name in names:
        old = _OLD.fullmatch(name)
        now = f"{old[1]}{_RENAMED[old[2]]}{old[3]}" if old else name
        if now in meant:
            raise CheckpointError(
                f"tensors '{printable(meant[now])}' and '{printable(name)}' are the same weight"
                " under its old and its new name; remove one of them"
            )
        modern[name], meant[now] = now, name
    return modern
