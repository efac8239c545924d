"""Results of the attacks so far: what is reported if the run is stopped."""

from dataclasses import dataclass, field

from purify_audit.attacks.pgd import AttackOutput
from purify_audit.core.findings import Finding
from purify_audit.models.runner import Tick
from purify_audit.statistics.attack_rows import (
    AttackSamples,
    CapRows,
    ExampleImages,
    Scored,
    join_attacks,
)
from purify_audit.statistics.estimates import Convergence


@dataclass(slots=True)
class AttackResults:
    """Results of the attacks so far.

    Attributes:
        parts: rows of every finished group of images.
        outputs: the main attack's output on each group.
        comparisons: the comparison attacks, scored.
        strongest: the main attack by radius, with the images of comparison attacks that are
            stronger; empty before these were run.
        caps: flips by random directions.
        example_images: the least and the most robust images.
        findings: of the gradient checks and sanity checks.
        gradients: what the gradient checks measured.
        convergence: what an independent continuation still breaks.
        predictable: whether there is a gradient that can predict the attack.
        evaluations: network evaluations, a backward pass counted as one.
        short_of_memory: whether gradients recomputed activations for lack of memory.
        complete: whether everything planned was done.
    """

    parts: list[AttackSamples] = field(default_factory=list)
    outputs: list[AttackOutput] = field(default_factory=list)
    comparisons: list[Scored] = field(default_factory=list)
    strongest: dict[float, Scored] = field(default_factory=dict)
    caps: CapRows | None = None
    example_images: ExampleImages | None = None
    findings: list[Finding] = field(default_factory=list)
    gradients: dict[str, float] = field(default_factory=dict)
    convergence: Convergence | None = None
    predictable: bool = True
    evaluations: int = 0
    short_of_memory: bool = False
    complete: bool = False

    def counting(self, tick: Tick) -> Tick:
        """A tick that also counts the evaluations here."""

        def count(evaluations: int) -> None:
            self.evaluations += evaluations
            tick(evaluations)

        return count

    @property
    def images(self) -> int:
        """Images whose attacks are finished."""
        return sum(len(part.ids) for part in self.parts)

    def samples(self) -> AttackSamples | None:
        """All rows so far; none before the first group is finished.

        The main attack's images are the best over everything that was run on them, comparison
        attacks included.
        """
        if not self.parts:
            return None
        whole = join_attacks(self.parts)
        scored = [*whole.scored, *self.comparisons]
        scored = [
            self.strongest.get(attack.eps, attack) if attack.name == "aligned" else attack
            for attack in scored
        ]
        columns = {name: getattr(whole, name) for name in AttackSamples.__dataclass_fields__}
        tables = {"caps": self.caps, "example_images": self.example_images}
        return AttackSamples(**columns | {"scored": tuple(scored)} | tables)
