"""How many rows are computed together: found beforehand, since numbers depend on it.

Kernels are chosen by batch size, so a run has one size throughout (`runtime`). What it is best is a
matter of time, of memory, and of the rows that pad the last micro-batches.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from purify_audit.attack.run import objective, targets
from purify_audit.compression import padded_rows
from purify_audit.defended import attack_of, defence_of
from purify_audit.errors import AuditError, OutOfMemoryError
from purify_audit.noise import Noise, Stream
from purify_audit.purifier import Chained
from purify_audit.runtime import deterministic
from purify_audit.settled import Tried
from purify_audit.subject import Subject

_STEPS = 3  # of a chain: to the network's scale, the noise, and one evaluation of the network
_ROUNDS = 3  # of timing; the quickest counts, since whatever else runs only delays
_WORSE = 2  # sizes in a row that are no quicker for a row: no larger one is tried
_SECONDS = 2.0  # for one call, which no larger size is tried after
_LARGEST = 4096


def measured(subject: Subject) -> tuple[Subject, tuple[Tried, ...]]:
    """The size of micro-batches that takes the least time for all rows of the plan, padding too.

    Raises:
        AuditError: there is no memory for a single row.
    """
    plan, images = subject.plan, len(subject.images)
    tried, times = list[Tried](), dict[int, float]()
    for size in _sizes():
        ms = _milliseconds(subject, size)
        tried.append(Tried(microbatch=size, ms_per_row=ms))
        if ms is None:
            break
        times[size] = ms
        best = min(times, key=times.__getitem__)
        enough = size >= images * plan.draws or ms * size > 1e3 * _SECONDS
        if enough or size >= best << _WORSE:
            break
    if not times:
        raise AuditError(f"{subject.device} has no memory for one image; free some of it")

    def whole(size: int) -> float:
        changed = plan.model_copy(update={"microbatch": size})
        return padded_rows(changed, images) * times[size]

    return _with(subject, microbatch=min(times, key=whole)), tuple(tried)


def within_memory(subject: Subject) -> tuple[Subject, tuple[Tried, ...]]:
    """The plan with micro-batches that the device has memory for: halved until they fit.

    Raises:
        AuditError: there is no memory for a single row.
    """
    plan, tried = subject.plan, list[Tried]()
    size = _halved(plan.microbatch, lambda n: _fits(lambda: _some_steps(subject, n)), tried)
    fitted = _with(subject, microbatch=size)
    if plan.attack is not None and not plan.attack.predict_only:
        of = plan.attack

        def fits(n: int) -> bool:
            changed = _with(fitted, attack=of.model_copy(update={"microbatch": n}))
            return _fits(lambda: _one_gradient(changed))

        size = _halved(of.microbatch, fits, tried)
        fitted = _with(fitted, attack=of.model_copy(update={"microbatch": size}))
    return fitted, tuple(tried)


def _halved(size: int, fits: Callable[[int], bool], tried: list[Tried]) -> int:
    while not fits(size):
        tried.append(Tried(microbatch=size, ms_per_row=None))
        if size == 1:
            raise AuditError("the device has no memory for one image; free some of it")
        size //= 2
    return size


def _with(subject: Subject, **changes: object) -> Subject:
    return replace(subject, plan=subject.plan.model_copy(update=changes))


def _sizes() -> Iterator[int]:
    size = 1
    while size <= _LARGEST:
        yield size
        size *= 2


def _fits(compute: Callable[[], None]) -> bool:
    try:
        compute()
    except (torch.OutOfMemoryError, OutOfMemoryError):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False
    return True


def _milliseconds(subject: Subject, size: int) -> float | None:
    """Of a row, or none where the device has no memory for so many; once more to warm up."""
    if not _fits(lambda: _some_steps(subject, size)):
        return None
    times = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        _some_steps(subject, size)
        times.append(time.perf_counter() - begun)
    return 1e3 * min(times) / size


def _some_steps(subject: Subject, size: int) -> None:
    """The beginning of a purification of `size` rows, up to one evaluation of a network."""
    place = np.arange(size) % len(subject.images)
    some = subject.images.select(list(range(min(size, len(subject.images)))))
    x = torch.from_numpy(some.pixels[place % len(some)]).to(subject.device)
    ids = tuple(some.ids[place % len(some)].tolist())
    noise = Noise(subject.plan.seed, ids, (0,) * size, Stream.PURIFY, subject.device)
    with deterministic():
        if isinstance(subject.purifier, Chained):
            for step in itertools.islice(subject.purifier.chain(noise), _STEPS):
                x = step(x)
        else:
            x = subject.purifier(x, noise)
        x.sum().item()  # waits for the device


def _one_gradient(subject: Subject) -> None:
    """One step of the attack on a whole micro-batch."""
    how = attack_of(subject.plan)
    rows = list(range(min(len(subject.images), max(1, how.microbatch // how.draws))))
    on = targets(subject.images.select(rows), subject.device)
    defence = defence_of(subject, subject.purifier, lambda evaluations: None)
    aim = objective(defence, on, how, how.norm, how.eps[0])
    with deterministic(gradients=True):
        if how.optimiser == "square":
            aim.look(on.x, 0)
        else:
            aim.climb(on.x, 0)
