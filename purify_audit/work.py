"""Units of a run: groups of images, each computed once, by whoever comes to it first.

A unit's numbers do not depend on who computes it, nor on what else is computed: rows are addressed,
and micro-batches all have one size. So any process may take any unit, and one that is computed
twice is the same bytes. Nobody waits for anybody.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from purify_audit.shard import Shard
from purify_audit.store import RunStore, Unit


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run whose units need nothing of one another.

    Attributes:
        name: its name in the store.
        count: how many units it has.
        make: computes one.
    """

    name: str
    count: int
    make: Callable[[int], Unit]

    def units(self, store: RunStore | None) -> Iterator[Unit]:
        """Every unit in order; those that are kept already are not computed again."""
        for place in range(self.count):
            if store is None:
                yield self.make(place)
            elif place in store.done(self.name):
                yield store.get(self.name, place)
            else:
                unit = self.make(place)
                store.put(self.name, place, unit.arrays, unit.facts)
                yield unit

    def share(self, store: RunStore, shard: Shard, alone: bool) -> None:
        """Compute and keep a part of the units.

        Args:
            store: where.
            shard: which part is this process's.
            alone: leave the others' units alone; otherwise, after its own, a process computes what
                nobody has finished, so that a process that died holds nobody up.
        """
        own = range(shard.index, self.count, shard.count)
        for place in own if alone else shard.order(self.count):
            if place not in store.done(self.name):
                unit = self.make(place)
                store.put(self.name, place, unit.arrays, unit.facts)
