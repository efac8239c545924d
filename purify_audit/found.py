"""What the attacks have found so far."""

from dataclasses import dataclass, field

from purify_audit.attack.pgd import Attacked
from purify_audit.attack_samples import AttackSamples, CapRows, Portraits, Scored, join_attacks
from purify_audit.defended import Tick
from purify_audit.findings import Finding


@dataclass(slots=True)
class Found:
    """What the attacks have found so far: what there is when the run is asked to end.

    Attributes:
        parts: results of every finished group of images.
        made: the main attack of each, as it was made.
        others: the attacks that the main one was held against.
        caps: random directions.
        portraits: the worst and the best images.
        findings: what is wrong with the attack.
        gradients: what the checks of the gradient measured.
        foretells: whether there is a gradient that can foretell the attack.
        spent: network evaluations, a backward pass counted as one.
        short: whether memory ran short of graphs that gradients were to keep; they took longer.
        complete: whether everything was done.
    """

    parts: list[AttackSamples] = field(default_factory=list)
    made: list[Attacked] = field(default_factory=list)
    others: list[Scored] = field(default_factory=list)
    caps: CapRows | None = None
    portraits: Portraits | None = None
    findings: list[Finding] = field(default_factory=list)
    gradients: dict[str, float] = field(default_factory=dict)
    foretells: bool = True
    spent: int = 0
    short: bool = False
    complete: bool = False

    def counting(self, tick: Tick) -> Tick:
        """A tick that also counts what is spent."""

        def count(evaluations: int) -> None:
            self.spent += evaluations
            tick(evaluations)

        return count

    @property
    def images(self) -> int:
        """Images whose attacks are done."""
        return sum(len(part.ids) for part in self.parts)

    def samples(self) -> AttackSamples | None:
        """Everything so far; none before the first group is done."""
        if not self.parts:
            return None
        whole = join_attacks(self.parts)
        scored = (*whole.scored, *self.others)
        columns = {name: getattr(whole, name) for name in AttackSamples.__dataclass_fields__}
        tables = {"caps": self.caps, "portraits": self.portraits}
        return AttackSamples(**columns | {"scored": scored} | tables)
