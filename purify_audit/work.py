"""Units of a run: groups of images, each computed once, by whoever comes to it first.

A unit's numbers do not depend on who computes it, nor on what else is computed: rows are addressed,
and micro-batches all have one size. So any process may take any unit, and one that is computed
twice is the same bytes. Nobody waits for anybody, and who is overtaken lets go.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from purify_audit.runtime import Stopped
from purify_audit.shard import Shard
from purify_audit.store import RunStore, Unit

PHASES = ("preflight", "compression", "gradients", "attack", "certify")
"""Of a run, in order."""

_LOOK_SECONDS = 0.25  # between looks at what others have finished: each reads the writers' files
_LOOK_SHARE = 0.02  # of the time is spent on looks at most, however slow the disk


class Overtaken(Exception):
    """Another process has finished the unit that this one computes."""


@dataclass(slots=True)
class Race:
    """Several processes at one run, seen from one of them.

    Attributes:
        store: where all of them keep their units.
        ended: whether the run has come to an end for all, as `store` shows.
        unit: phase and place of what this process computes.
    """

    store: RunStore
    ended: Callable[[], bool] = lambda: False
    unit: tuple[str, int] | None = None
    _next: float = field(default_factory=lambda: time.monotonic() + _LOOK_SECONDS, repr=False)

    def look(self) -> None:
        """Look at what others have done, now and then; to be called often.

        Raises:
            Overtaken: the unit in hand is done.
            Stopped: the run has come to an end.
        """
        begun = time.monotonic()
        if self.unit is None or begun < self._next:
            return
        phase, place = self.unit
        if place in self.store.done(phase):
            raise Overtaken
        if self.ended():
            raise Stopped
        now = time.monotonic()
        self._next = now + max(_LOOK_SECONDS, (now - begun) / _LOOK_SHARE)


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

    def share(self, race: Race, shard: Shard, alone: bool) -> None:
        """Compute and keep a part of the units.

        Args:
            race: where, and who else is at it.
            shard: which part is this process's.
            alone: leave the others' units alone; otherwise, after its own, a process computes what
                nobody has finished, so that a process that died holds nobody up.

        Raises:
            Stopped: from `make`; or the run has come to an end.
        """
        store, own = race.store, range(shard.index, self.count, shard.count)
        for place in own if alone else shard.order(self.count):
            if place in store.done(self.name):
                continue
            race.unit = (self.name, place)
            try:
                unit = self.make(place)
                store.put(self.name, place, unit.arrays, unit.facts)
            except Overtaken:
                continue
            finally:
                race.unit = None
