"""Independent work units of a run; no locks; a worker drops a unit another has finished.

A unit's numbers do not depend on which process computes it, nor on what else is computed: random
numbers are addressed, and micro-batches all have one size. So any process may take any unit, and a
unit that is computed twice has the same bytes.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from purify_audit.audit.store import RunStore, Unit
from purify_audit.models.runner import Stopped
from purify_audit.spec.shard import Shard

PHASES = ("preflight", "compression", "gradients", "attack", "comparison")
"""Of a run, in order."""

_LOOK_SECONDS = 0.25  # between looks at what others have finished: each reads the writers' files
_LOOK_SHARE = 0.02  # of the time is spent on looks at most, however slow the disk


class Overtaken(Exception):
    """Another process has finished the unit that this one computes."""


@dataclass(slots=True)
class SharedRun:
    """A run that several processes work on, seen from one of them.

    Attributes:
        store: where all of them store their units.
        ended: whether the run has come to an end for all, as `store` shows.
        unit: phase and place of what this process computes.
    """

    store: RunStore
    ended: Callable[[], bool] = lambda: False
    unit: tuple[str, int] | None = None
    _next: float = field(default_factory=lambda: time.monotonic() + _LOOK_SECONDS, repr=False)

    def check(self) -> None:
        """Check now and then what other processes have finished; to be called often.

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
    """A stage of a run, divided into independent units.

    Attributes:
        name: its name in the store.
        count: how many units it has.
        make: computes one.
    """

    name: str
    count: int
    make: Callable[[int], Unit]

    def units(self, store: RunStore | None) -> Iterator[Unit]:
        """Every unit in order; those already stored are not computed again."""
        for place in range(self.count):
            if store is None:
                yield self.make(place)
            elif place in store.done(self.name):
                yield store.get(self.name, place)
            else:
                unit = self.make(place)
                store.put(self.name, place, unit.arrays, unit.facts)
                yield unit

    def share(self, run: SharedRun, shard: Shard, *, alone: bool) -> None:
        """Compute and store a part of the units.

        Args:
            run: where, and which other processes are at it.
            shard: which part is this process's.
            alone: leave the others' units alone; otherwise, after its own, a process computes what
                no other has finished, so that a process that died blocks none.

        Raises:
            Stopped: from `make`; or the run has come to an end.
        """
        store, own = run.store, range(shard.index, self.count, shard.count)
        for place in own if alone else shard.order(self.count):
            if place in store.done(self.name):
                continue
            run.unit = (self.name, place)
            try:
                unit = self.make(place)
                store.put(self.name, place, unit.arrays, unit.facts)
            except Overtaken:
                continue
            finally:
                run.unit = None
