"""Attacks as units of a run: taken apart to be kept, and put together again."""

from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from purify_audit.attack.pgd import AttackOutput
from purify_audit.audit.store import Unit
from purify_audit.compression.preflight import Preflight
from purify_audit.statistics.attack_rows import AttackSamples, Scored, from_columns, to_columns

_PREFLIGHT = TypeAdapter(Preflight)
_TENSORS = ("x", "margins", "last")


def packed(part: AttackSamples, made: AttackOutput | None, evaluations: int) -> Unit:
    """A group's results, the main attack as it was made, and what they cost."""
    arrays, attacks = to_columns(part)
    facts: dict[str, Any] = {"attacks": [list(a) for a in attacks], "evaluations": evaluations}
    if made is not None:
        arrays |= {f"made.{name}": getattr(made, name).cpu().numpy() for name in _TENSORS}
        facts |= {"fooled": list(made.fooled), "losses": list(made.losses)}
    return Unit(arrays, facts)


def unpacked(unit: Unit, device: torch.device) -> tuple[AttackSamples, AttackOutput | None]:
    """What `packed` took apart."""
    facts: dict[str, Any] = unit.facts
    arrays = dict(unit.arrays)
    tensors = {name: arrays.pop(f"made.{name}", None) for name in _TENSORS}
    part = from_columns(arrays, [(str(name), float(eps)) for name, eps in facts["attacks"]])
    if "fooled" not in facts:
        return part, None
    on_device = {n: torch.from_numpy(_own(a)).to(device) for n, a in tensors.items()}
    return part, AttackOutput(
        **on_device, fooled=tuple(facts["fooled"]), losses=tuple(facts["losses"])
    )


def packed_score(made: Scored, evaluations: int) -> Unit:
    """One scored attack."""
    arrays = {n: getattr(made, n) for n in Scored.__dataclass_fields__ if n not in ("name", "eps")}
    return Unit(arrays, {"name": made.name, "eps": made.eps, "evaluations": evaluations})


def unpacked_score(unit: Unit) -> Scored:
    """What `packed_score` took apart."""
    facts: dict[str, Any] = unit.facts
    return Scored(name=facts["name"], eps=facts["eps"], **unit.arrays)


def _own(array: np.ndarray | None) -> np.ndarray:
    assert array is not None, "the three are kept together"
    return array.copy()


def packed_preflight(seen: Preflight) -> Unit:
    """Results of preflight; as text, since a unit's facts do not keep the order of their keys."""
    return Unit({}, {"preflight": _PREFLIGHT.dump_json(seen).decode()})


def unpacked_preflight(unit: Unit) -> Preflight:
    """What `packed_preflight` took apart."""
    return _PREFLIGHT.validate_json(str(unit.facts["preflight"]))
