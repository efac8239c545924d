"""Capture of the randomness of user code while it runs.

Code that was not written for an audit draws from generators. PyTorch marks each operator that does
(`torch.Tag.nondeterministic_seeded`), and a dispatch mode sees them all, whatever called them. Here
such an operator is answered with addressed numbers (`purify_audit.core.noise`).

**The address of a draw is the state of its generator.** The first state that is seen gets step 0
of the purification, the next new one step 1, and so on; the operator then advances its generator.
So numbers depend on nothing but the order of draws, and repeat wherever code repeats
them on purpose: gradient checkpointing puts a saved state back before it recomputes, and
Brownian intervals (torchsde) seed a new generator with an old seed.

The global generators of torch, NumPy and Python are put aside meanwhile, seeded from the rows'
address, and put back after. What draws elsewhere is not seen: an unseeded `numpy.random.Generator`,
the operating system, the clock. Preflight sees that the output does not repeat.
"""

import contextlib
import os
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from purify_audit.core.noise import Noise
from purify_audit.models.user_code.draws import (
    UNSTUDIED,
    CapturedDraw,
    Draw,
    DrawSite,
    NeedsFewerRows,
    Sharing,
    UnalignedRandomnessError,
)
from purify_audit.models.user_code.generators import (
    GlobalGenerators,
    advance,
    default_generator,
    seed_all,
    state_digest,
)
from purify_audit.models.user_code.random_ops import (
    Call,
    Numbers,
    UnknownOperatorError,
    answer,
    bind,
    distribution_of,
    has_rows,
    is_inert,
    result_device,
    result_shape,
)

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_SEED_STEP = 2**24 - 1
"""The last step of a purification seeds NumPy's and Python's generators; draws have the others."""

TORCH = os.path.dirname(str(torch.__file__)) + os.sep
PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(__file__))) + os.sep
_CAPTURE = os.path.splitext(__file__)[0]


class Capture:
    """Answers every random operator within, as a context; entered again it goes on where it was.

    Args:
        noise: the address of each row.
        sharing: what is known of draws that are not indexed by row.
        salt: another value gives other numbers to whatever rows share, and other seeds.

    Attributes:
        draws: in the order in which they were seen.
        used: `numpy.random` and `random`, if the code drew from them.

    Raises:
        UnalignedRandomnessError: a random operator that is not answered, even if the code within
            swallowed that.
        NeedsFewerRows: a draw that rows would share, and may not.
    """

    def __init__(self, noise: Noise, sharing: Sharing = UNSTUDIED, salt: int = 0) -> None:
        """Nothing happens before the context is entered."""
        self.noise, self.sharing, self.salt = noise, sharing, salt
        self.draws: list[Draw] = []
        self.used: set[str] = set()
        self._steps: dict[bytes, int] = {}
        self._fault: Exception | None = None
        self._inner: GlobalGenerators | None = None
        self._tap = _Tap(self)
        self._stack = contextlib.ExitStack()

    @property
    def states(self) -> dict[str, object]:
        """The states of the global generators when the context was left."""
        assert self._inner is not None, "asked after the context"
        return self._inner.states

    def __enter__(self) -> Self:
        """Put the global generators aside."""
        outer = GlobalGenerators.now()
        if self._inner is None:
            self._seed()
        else:
            self._inner.restore()
        self._stack.callback(outer.restore)
        self._stack.enter_context(self._tap)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the global generators back, and tell what the code may have swallowed."""
        self._inner = GlobalGenerators.now()
        self._stack.close()
        seeded, now = self._seeded.states, self._inner.states
        self.used |= {name for name in ("numpy.random", "random") if now[name] != seeded[name]}
        if self._fault is not None and error is not self._fault:
            raise self._fault from None

    def restart(self) -> None:
        """Forget what happened: the next time it is entered is the first."""
        self.draws.clear()
        self.used.clear()
        self._steps.clear()
        self._fault = self._inner = None

    def summary(self) -> tuple[CapturedDraw, ...]:
        """Draws by kind, in the order in which each was first seen."""
        kinds: Counter[CapturedDraw] = Counter()
        for draw in self.draws:
            per_row = self._counts_rows(draw)
            shape = draw.shape[1:] if per_row else draw.shape
            constant = draw.state in self.sharing.constant
            site = draw.site
            one = (site.operator, draw.distribution, shape, site.where, 1, per_row, constant)
            kinds[CapturedDraw(*one)] += 1
        made = [replace(kind, count=count) for kind, count in kinds.items()]
        return (*made, *(CapturedDraw(n, "", (), "", 1, False) for n in sorted(self.used)))

    def result(self, func: Any, args: tuple[Any, ...], kwargs: Call) -> Any:
        """What a random operator gives."""
        name, call = func._schema.name.removeprefix("aten::"), bind(func, args, kwargs)
        if is_inert(name, call):
            return func(*args, **kwargs)
        where = _caller()
        try:
            return self._answer(name, call, where)
        except UnknownOperatorError as error:
            fault = UnalignedRandomnessError(f"aten::{name}", where, f"{error} cannot be aligned")
        self._fault = fault
        raise fault

    def _answer(self, name: str, call: Call, where: str) -> Any:
        distribution = distribution_of(name)
        if distribution is None:
            raise UnknownOperatorError("this operator")
        shape = result_shape(name, call)
        device = result_device(call)
        generator = call.get("generator") or default_generator(device)
        draw = Draw(
            DrawSite(f"aten::{name}", where, shape[1:]),
            distribution,
            shape,
            state_digest(generator),
            has_rows(name, call),
        )
        self.draws.append(draw)
        step = self._steps.setdefault(draw.state, len(self._steps))
        if step >= _SEED_STEP:
            raise UnknownOperatorError(f"more than {_SEED_STEP} draws in one purification")
        advance(generator)
        return answer(name, call, self._numbers(draw, step, device))

    def _counts_rows(self, draw: Draw) -> bool:
        """Whether the first axis of a draw is that of the images."""
        known = draw.site in self.sharing.shared
        return draw.has_rows and draw.shape[:1] == (len(self.noise),) and not known

    def _numbers(self, draw: Draw, step: int, device: torch.device) -> Numbers:
        noise = replace(self.noise, device=device)
        per_row = self._counts_rows(draw)
        if draw.state in self.sharing.constant:
            return Numbers(_nowhere(device, 0, len(noise)), step, per_row)
        if per_row or len(noise) == 1:
            return Numbers(noise, step, per_row)
        expected = draw.site in self.sharing.shared or not self.sharing.studied
        if expected and self.sharing.harmless:
            return Numbers(_nowhere(device, self.salt, 1), step, False)
        if expected and _one_address(noise):
            return Numbers(noise, step, False)
        self._fault = NeedsFewerRows()
        raise self._fault

    def _seed(self) -> None:
        """Seeds that belong to the rows' address where they have one in common."""
        noise = replace(self.noise, device=torch.device("cpu"))
        if self.sharing.harmless or not _one_address(noise):
            noise = _nowhere(noise.device, self.salt, 1)
        seed_all(noise.integers(_SEED_STEP, (8,), 2**32)[0].tolist())
        self._seeded = GlobalGenerators.now()


class _Tap(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands random operators to a capture."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capture = capture

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Call | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _is_random(func):
            return func(*args, **kwargs)
        if _is_composite(func):  # under inference_mode these arrive whole
            with self:  # by its own kernel: `decompose` has one in Python that forgets dropout
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        return self.capture.result(func, args, kwargs)


@cache
def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


@cache
def _is_composite(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE))


def _one_address(noise: Noise) -> bool:
    return len(set(zip(noise.images, noise.draws, strict=True))) == 1


def _nowhere(device: torch.device, seed: int, rows: int) -> Noise:
    """Addresses that belong to no image and no draw."""
    return Noise(seed, (0,) * rows, (0,) * rows, device=device)


def _caller() -> str:
    """`file:line` of the innermost frame of the code that is neither torch nor this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE) and not file.startswith(_CAPTURE):
            break  # whatever called the code
        if not file.startswith((TORCH, _CAPTURE)):
            return located(file, frame.f_lineno)
        frame = frame.f_back
    return "a line that is not known"


def located(file: str, line: int) -> str:
    """`file:line`, without the part of the path that every reader knows."""
    packages, here = "site-packages" + os.sep, os.getcwd() + os.sep
    return f"{file.rpartition(packages)[2].removeprefix(here)}:{line}"
