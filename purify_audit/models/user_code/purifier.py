"""Purifiers given as user code: any callable from images to images.

The code is run as it was given. It is not put into eval mode: a module in training mode draws
dropout masks, which are captured like all its randomness, and takes batch statistics, which
preflight finds. Inference mode is off while it runs; gradients are recorded if one is wanted
through it, or if it takes one itself.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from purify_audit.core.findings import Finding, finding
from purify_audit.core.noise import Noise
from purify_audit.core.records import printable
from purify_audit.models.protocols import PurifierFromCard
from purify_audit.models.user_code.batching import ONE_ROW, Handling, study
from purify_audit.models.user_code.capture import Capture
from purify_audit.models.user_code.draws import (
    CapturedDraw,
    NeedsFewerRows,
    UnalignedRandomnessError,
)
from purify_audit.models.user_code.errors import NoGraphError, UserCodeError, user_code_errors
from purify_audit.models.user_code.modules import in_training_mode, precision_of
from purify_audit.spec.card import CodeCard, DataRange

Code = Callable[[Tensor], Any]
"""Images to images, or to logits; nothing holds it to its word."""


@dataclass
class Learnt:
    """What running the code has shown so far.

    Attributes:
        handling: which rows may be purified together; none before the first call.
        takes_gradients: whether it needs autograd to run.
        refused: what could not be aligned.
    """

    handling: Handling | None = None
    takes_gradients: bool = False
    refused: UnalignedRandomnessError | None = None


@dataclass(frozen=True)
class UserPurifier(PurifierFromCard):
    """Somebody's own code as a pure function of (image, draw).

    The first call purifies a dozen rows more than requested, to learn which rows may be
    purified together (`purify_audit.models.user_code.batching`).

    A gradient through it keeps the graph of the forward pass, as autograd does, and runs the
    backward pass inside the same capture: what is drawn there again (by gradient checkpointing, of
    either kind, or by an adjoint solver) is the number that the forward pass drew.

    Attributes:
        card: what is known of it.
        code: images in its data range, [n, c, h, w], to images in it.
        data_range: what pixels 0 and 1 are mapped to before the code sees them.
        learnt: what running it has shown so far.
        any_precision: it runs in float64 when given float64.
    """

    card: CodeCard
    code: Code
    data_range: DataRange = (0.0, 1.0)
    learnt: Learnt = field(default_factory=Learnt, repr=False, compare=False)
    any_precision: bool = field(default=True, init=False)

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Purify images float32 [n, c, h, w] in [0, 1] under their draws.

        NaN if the code draws what cannot be aligned; `findings` tells what that is.

        Raises:
            UserCodeError: the code raised an exception, or returned what is no tensor.
        """
        try:
            handling = self.handling(x)
            while True:
                try:
                    return self._in_groups(x, noise, handling)
                except NeedsFewerRows:
                    handling = self.learnt.handling = handling.stricter()
        except UnalignedRandomnessError as fault:
            self.learnt.refused = fault
            return torch.full_like(x, torch.nan)

    def handling(self, x: Tensor) -> Handling:
        """How the code must be called, learnt from some images [n, c, h, w] the first time.

        Raises:
            UnalignedRandomnessError: the code draws what cannot be aligned.
            UserCodeError: the code does not run.
        """
        if self.learnt.handling is None:
            self.learnt.handling = self._studied(x.detach())
        return self.learnt.handling

    def capture_report(self, x: Tensor) -> tuple[CapturedDraw, ...]:
        """What the code draws while it purifies images [n, c, h, w].

        Raises:
            UnalignedRandomnessError: something that cannot be aligned.
            UserCodeError: the code raised an exception.
        """
        handling = self.handling(x)
        everything = Noise(0, tuple(range(len(x))), (0,) * len(x), device=x.device)
        rows = handling.groups(everything)[0]
        noise = Noise(0, tuple(rows), (0,) * len(rows), device=x.device)
        capture = Capture(noise, handling.sharing)
        self._run(x[rows], capture)
        return capture.summary()

    def findings(self) -> list[Finding]:
        """What running the code has shown to be wrong with it, or worth knowing."""
        fault, handling = self.learnt.refused, self.learnt.handling
        found = []
        if fault is not None:
            sentence = f"The code draws what cannot be aligned: {printable(str(fault))}."
            evidence = {"operator": fault.operator, "line": fault.where}
            found.append(finding("PA111", sentence, dict(evidence)))
        if handling is not None and handling.together != "batch":
            rows = {"address": "of one image and draw together", "row": "one by one"}
            sentence = "Rows of a batch would share random numbers, so they are purified "
            sentence += f"{rows[handling.together]}."
            lines = sorted({site.where for site in handling.sharing.shared})
            found.append(finding("PA112", sentence, {"lines": lines}))
        if training := in_training_mode(self.code):
            sentence = f"{len(training)} modules of the code are in training mode, among them"
            sentence += f" {printable(training[0])}."
            found.append(finding("PA113", sentence, {"modules": training[:20]}))
        return found

    def _studied(self, x: Tensor) -> Handling:
        try:
            return study(self._run, x)
        except UserCodeError as fault:
            alone = Capture(Noise(0, (0,), (0,), device=x.device))
            try:  # some code takes one image at a time, and no more
                self._run(x[:1], alone)
            except UserCodeError:
                raise fault from None
            return replace(ONE_ROW, randomised=bool(alone.draws or alone.used))

    def _in_groups(self, x: Tensor, noise: Noise, handling: Handling) -> Tensor:
        groups = handling.groups(noise)
        if len(groups) == 1:
            return self._one_call(x, noise, handling)
        parts, place = [], torch.empty(len(x), dtype=torch.int64)
        place[torch.tensor([n for rows in groups for n in rows])] = torch.arange(len(x))
        for rows in groups:
            images, draws = ([ids[n] for n in rows] for ids in (noise.images, noise.draws))
            some = Noise(noise.seed, tuple(images), tuple(draws), noise.stream, noise.device)
            parts.append(self._one_call(x[rows], some, handling))
        if any(len(part) != len(rows) for part, rows in zip(parts, groups, strict=True)):
            return parts[0]  # of the wrong shape, which is a finding
        return torch.cat(parts)[place.to(x.device)]

    def _one_call(self, x: Tensor, noise: Noise, handling: Handling) -> Tensor:
        capture = Capture(noise, handling.sharing)
        if torch.is_grad_enabled() and x.requires_grad:
            purified: Tensor = _Differentiable.apply(x, self, capture)  # type: ignore[no-untyped-call]
            return purified
        return self._run(x, capture)

    def _run(self, x: Tensor, capture: Capture) -> Tensor:
        """Without a gradient with respect to x, and with autograd only if the code needs it."""
        if not self.learnt.takes_gradients:
            try:
                with torch.inference_mode(False), torch.no_grad(), capture:
                    return self._purify(x.clone())
            except NoGraphError:
                self.learnt.takes_gradients = True
                capture.restart()
        with torch.inference_mode(False), torch.enable_grad(), capture:
            return self._purify(x.clone()).detach()

    def _purify(self, x: Tensor) -> Tensor:
        low, high = self.data_range
        with precision_of(x, self.code):
            if (low, high) != (0.0, 1.0):
                x = x * (high - low) + low
            with user_code_errors(self.card.network.factory):
                y = self.code(x)
            if not isinstance(y, Tensor):
                raise UserCodeError(
                    f"{self.card.network.factory}: returned {printable(type(y).__name__)}, not a"
                    " tensor of images"
                )
            if not y.is_floating_point():
                return y
            y = y.to(x.device, x.dtype)
            if (low, high) != (0.0, 1.0):
                y = (y - low) / (high - low)
            y = y.clone() if y.is_inference() else y  # or nobody could differentiate behind it
            return y.clamp(0.0, 1.0) if self.card.clamp else y


class _Differentiable(torch.autograd.Function):
    """A purification whose backward pass runs inside its capture."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, purifier: UserPurifier, capture: Capture) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad(), capture:
            leaf = x.detach().clone().requires_grad_()
            y = purifier._purify(leaf.clone())  # the code may write to what it is given
        ctx.graph = leaf, y, capture, purifier
        out = y.detach()
        if not y.requires_grad:
            ctx.mark_non_differentiable(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None]:
        leaf, y, capture, purifier = ctx.graph
        precision = precision_of(leaf, purifier.code)
        try:
            with (
                capture,
                precision,
                _reentrant_checkpoints(),
                user_code_errors(purifier.card.network.factory),
            ):
                torch.autograd.backward(y, g, inputs=leaf)
        except UnalignedRandomnessError as fault:
            purifier.learnt.refused = fault
            return torch.full_like(leaf, torch.nan), None, None
        return leaf.grad, None, None


@contextlib.contextmanager
def _reentrant_checkpoints() -> Iterator[None]:
    """Lets `checkpoint(use_reentrant=True)` work where only the gradient at x is wanted.

    It refuses there because it would miss gradients of weights, which are not needed here; those
    of its inputs are right.
    """
    found = getattr(torch.autograd, "_is_checkpoint_valid", None)
    if found is None:
        yield
        return
    torch.autograd._is_checkpoint_valid = lambda: True
    try:
        yield
    finally:
        torch.autograd._is_checkpoint_valid = found
