"""Results of an attack or a preflight as units of a run, and back."""

from typing import Any

import torch
from pydantic import TypeAdapter

from purify_audit.attacks.pgd import AttackOutput
from purify_audit.audit.store import Unit
from purify_audit.compression.preflight import Preflight
from purify_audit.statistics.attack_rows import AttackSamples, Scored, from_columns, to_columns
from purify_audit.statistics.columns import columns_of, table_of

_PREFLIGHT = TypeAdapter(Preflight)
_TENSORS = ("x", "margins", "last", "last_losses")


def packed(part: AttackSamples, output: AttackOutput | None, evaluations: int) -> Unit:
    """A group's rows, the main attack's output, and the network evaluations that they took."""
    arrays, attacks = to_columns(part)
    facts: dict[str, Any] = {"attacks": [list(a) for a in attacks], "evaluations": evaluations}
    if output is not None:
        arrays |= {f"made.{name}": getattr(output, name).cpu().numpy() for name in _TENSORS}
        facts |= {"fooled": list(output.fooled), "losses": list(output.losses)}
    return Unit(arrays, facts)


def unpacked(unit: Unit, device: torch.device) -> tuple[AttackSamples, AttackOutput | None]:
    """The inverse of `packed`, the output's tensors on a device."""
    facts: dict[str, Any] = unit.facts
    part = from_columns(unit.arrays, [(str(name), float(eps)) for name, eps in facts["attacks"]])
    if "fooled" not in facts:
        return part, None
    tensors = {n: torch.from_numpy(unit.arrays[f"made.{n}"].copy()).to(device) for n in _TENSORS}
    fooled, losses = tuple(facts["fooled"]), tuple(facts["losses"])
    return part, AttackOutput(**tensors, fooled=fooled, losses=losses)


def packed_score(score: Scored, evaluations: int) -> Unit:
    """One scored attack, and the network evaluations that it took."""
    facts: dict[str, Any] = {"name": score.name, "eps": score.eps, "evaluations": evaluations}
    return Unit(columns_of(score), facts)


def unpacked_score(unit: Unit) -> Scored:
    """The inverse of `packed_score`."""
    facts: dict[str, Any] = unit.facts
    return table_of(Scored, unit.arrays, name=facts["name"], eps=facts["eps"])


def packed_preflight(result: Preflight) -> Unit:
    """Results of preflight; as text, since a unit's facts do not keep the order of their keys."""
    return Unit({}, {"preflight": _PREFLIGHT.dump_json(result).decode()})


def unpacked_preflight(unit: Unit) -> Preflight:
    """The inverse of `packed_preflight`."""
    return _PREFLIGHT.validate_json(str(unit.facts["preflight"]))
