"""Measure which size of micro-batches is fastest, or fits in memory.

Kernels are chosen by batch size, so a run has one size throughout (`models.runner`), chosen before
the first number is measured.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from purify_audit.attacks.attack import attack_objective, targets
from purify_audit.audit.defence import attack_of, defence_of
from purify_audit.audit.subject import Subject
from purify_audit.compression.measure import padded_rows, phases
from purify_audit.core.errors import OutOfMemoryError
from purify_audit.core.noise import Noise, Stream
from purify_audit.models.protocols import Chained
from purify_audit.models.runner import deterministic
from purify_audit.spec.tuning import MicrobatchTrial

_STEPS = 3  # of a chain: to the network's scale, the noise, and one evaluation of the network
_ROUNDS = 3  # of timing; the quickest counts, since whatever else runs only delays
_WORSE = 2  # sizes in a row that are no quicker for a row: no larger one is tried
_SECONDS = 2.0  # for one call, which no larger size is tried after
_LARGEST = 4096


def measured(subject: Subject) -> tuple[Subject, tuple[MicrobatchTrial, ...]]:
    """The size of micro-batches that takes the least time for all rows of the plan, padding too.

    Raises:
        OutOfMemoryError: there is no memory for a single row.
    """
    plan, images = subject.plan, len(subject.images)
    largest = images * plan.draws * max(phases(plan))
    tried, times = list[MicrobatchTrial](), dict[int, float]()
    for size in _sizes():
        ms = _milliseconds(subject, size)
        tried.append(MicrobatchTrial(microbatch=size, ms_per_row=ms))
        if ms is None:
            break
        times[size] = ms
        best = min(times, key=times.__getitem__)
        enough = size >= largest or ms * size > 1e3 * _SECONDS
        if enough or size >= best << _WORSE:
            break
    if not times:
        raise _no_memory(subject)

    def whole(size: int) -> float:
        changed = plan.model_copy(update={"microbatch": size})
        return padded_rows(changed, images) * times[size]

    return _with(subject, microbatch=min(times, key=whole)), tuple(tried)


def within_memory(subject: Subject) -> tuple[Subject, tuple[int, ...]]:
    """Micro-batches of compression that the device has memory for: halved until they fit.

    Returns:
        The subject with its plan changed, and the sizes that did not fit.

    Raises:
        OutOfMemoryError: there is no memory for a single row.
    """

    def changed(size: int) -> Subject:
        return _with(subject, microbatch=size)

    return _halved(subject.plan.microbatch, changed, lambda of: _steps(of, of.plan.microbatch)())


def attack_within_memory(subject: Subject) -> tuple[Subject, tuple[int, ...]]:
    """The same for the attack of a plan that has one, by one of its gradients."""
    plan = attack_of(subject.plan)

    def changed(size: int) -> Subject:
        return _with(subject, attack=plan.model_copy(update={"microbatch": size}))

    return _halved(plan.microbatch, changed, _one_gradient)


def seconds(subject: Subject) -> float:
    """What measuring compression will take about, by the time of one micro-batch.

    Raises:
        OutOfMemoryError: there is no memory for one.
    """
    plan, purifier = subject.plan, subject.purifier
    ms = _milliseconds(subject, plan.microbatch)
    if ms is None:
        raise OutOfMemoryError(f"{subject.device} has no memory for {plan.microbatch} rows")
    steps = purifier.evaluations if isinstance(purifier, Chained) else 1
    return 1e-3 * ms * steps * padded_rows(plan, len(subject.images))


def _halved(
    size: int, changed: Callable[[int], Subject], compute: Callable[[Subject], None]
) -> tuple[Subject, tuple[int, ...]]:
    refused = list[int]()
    while not _fits(partial(compute, changed(size))):
        if size == 1:
            raise _no_memory(changed(size))
        refused.append(size)
        size //= 2
    return changed(size), tuple(refused)


def _no_memory(subject: Subject) -> OutOfMemoryError:
    return OutOfMemoryError(f"{subject.device} has no memory for one image; free some of it")


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
    compute, times = _steps(subject, size), []
    if not _fits(compute):
        return None
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        compute()
        times.append(time.perf_counter() - begun)
    return 1e3 * min(times) / size


def _steps(subject: Subject, size: int) -> Callable[[], None]:
    """The beginning of a purification of `size` rows, up to one evaluation of a network."""
    place = np.arange(size) % len(subject.images)
    some = subject.images.select(list(range(min(size, len(subject.images)))))
    x = torch.from_numpy(some.pixels[place % len(some)]).to(subject.device)
    ids = tuple(some.ids[place % len(some)].tolist())
    noise = Noise(subject.plan.seed, ids, (0,) * size, Stream.PURIFY, subject.device)

    def compute() -> None:
        y, purifier = x, subject.purifier
        with deterministic():
            if isinstance(purifier, Chained):
                for step in itertools.islice(purifier.chain(noise), _STEPS):
                    y = step(y)
            else:
                y = purifier(y, noise)
            y.sum().item()  # waits for the device

    return compute


def _one_gradient(subject: Subject) -> None:
    """One step of the attack on a whole micro-batch."""
    plan = attack_of(subject.plan)
    rows = list(range(min(len(subject.images), max(1, plan.microbatch // plan.draws))))
    on = targets(subject.images.select(rows), subject.device)
    defence = defence_of(subject)
    objective = attack_objective(defence, on, plan, plan.norm, plan.eps[0])
    with deterministic(gradients=True):
        if plan.optimiser == "square":
            objective.evaluate(on.x, 0)
        else:
            objective.loss_and_grad(on.x, 0)
