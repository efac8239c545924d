"""What an attack sees: purifier and classifier as one function of (image, draw), row by row."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from purify_audit.attack.activation_memory import ActivationMemory
from purify_audit.attack.gradients import Gradient, GradientKind, bpda, secant, steps_of
from purify_audit.attack.losses import Loss, loss_rows, margins
from purify_audit.core.noise import Noise, Stream
from purify_audit.models.protocols import Classifier, Purifier
from purify_audit.models.runner import Tick, ignore_ticks, memory_advice

Draws = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Defence:
    """A purifier and the classifier behind it, run in micro-batches of one size.

    Attributes:
        purifier: what is attacked.
        classifier: judges its output.
        device: where both are.
        seed: the key of all randomness.
        microbatch: rows (image, draw) of every call; the last is padded.
        tick: called with the network evaluations of every micro-batch; may raise `Stopped`.
        activations: takes exact gradients in the memory that there is; their bits do not depend on it.
    """

    purifier: Purifier
    classifier: Classifier
    device: torch.device
    seed: int
    microbatch: int
    tick: Tick = ignore_ticks
    activations: ActivationMemory = field(
        default_factory=ActivationMemory, repr=False, compare=False
    )

    def logits(self, x: Tensor, ids: tuple[int, ...], draws: Draws) -> Tensor:
        """Logits [n, k, classes] of images x [n, c, h, w] under k draws each."""

        def classify(rows: Tensor, noise: Noise, labels: Tensor) -> tuple[Tensor]:
            with torch.no_grad():
                return (self.classifier(self.purifier(rows, noise)),)

        labels = torch.zeros(len(x), dtype=torch.int64, device=self.device)
        (logits,) = self.rows(classify, (x, ids, labels), draws, self.purifier.evaluations)
        return logits

    def rows(
        self,
        compute: Callable[[Tensor, Noise, Tensor], tuple[Tensor, ...]],
        images: tuple[Tensor, tuple[int, ...], Tensor],
        draws: Draws,
        evaluations: int,
    ) -> tuple[Tensor, ...]:
        """What `compute` makes of every (image, draw), each result [n, k, …].

        Args:
            compute: rows [m, c, h, w], their noise and labels [m] to tensors [m, …].
            images: pixels [n, c, h, w], ids and labels [n].
            draws: k draw ids.
            evaluations: of the network, for each row; told to `tick`.

        Raises:
            Stopped: from `tick`.
            AuditError: out of memory.
        """
        x, ids, labels = images
        k, size = len(draws), self.microbatch
        total, parts = len(x) * k, list[tuple[Tensor, ...]]()
        for first in range(0, total, size):
            place = [n if n < total else first for n in range(first, first + size)]
            row = torch.tensor([n // k for n in place], device=self.device)
            noise = Noise(
                self.seed,
                tuple(ids[n // k] for n in place),
                tuple(draws[n % k] for n in place),
                Stream.PURIFY,
                self.device,
            )
            with memory_advice(self.device, size):
                made = compute(x[row], noise, labels[row])
            parts.append(tuple(t[: total - first] for t in made))
            self.tick(evaluations * min(size, total - first))
        whole = [torch.cat(column) for column in zip(*parts, strict=True)]
        return tuple(t.reshape(len(x), k, *t.shape[1:]) for t in whole)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an attack learns of images at one step.

    Attributes:
        losses: mean over draws [n].
        margins: z_y − max_{i≠y} z_i, [n, k]; not positive where the draw is fooled.
        gradient: of `losses`, [n, c, h, w]; none when it was not asked for.
    """

    losses: Tensor
    margins: Tensor
    gradient: Tensor | None


@dataclass(frozen=True, slots=True)
class Objective:
    """The mean over draws of a loss of some images, to be raised (EOT; Athalye et al. 2018).

    The mean is of losses, not of logits or probabilities.

    Attributes:
        defence: what is attacked.
        ids: image ids; their noise.
        labels: int64 [n], on the device.
        draws: step -> draws of that step; constant when aligned.
        loss: what is raised.
        gradient: how gradients are had.
        surrogate: the purifier of the shorter chain, for `surrogate`.
        reach: of the finite difference, for `none`; l2, pixel units.
    """

    defence: Defence
    ids: tuple[int, ...]
    labels: Tensor
    draws: Callable[[int], Draws]
    loss: Loss = "margin"
    gradient: GradientKind = "exact"
    surrogate: Purifier | None = None
    reach: float = 0.25

    @property
    def gradient_evaluations(self) -> int:
        """Network evaluations of one gradient, a backward pass counted as one."""
        whole = self.defence.purifier.evaluations
        short = 0 if self.surrogate is None else self.surrogate.evaluations
        return {"exact": 3 * whole, "bpda": whole, "none": 2 * whole}.get(
            self.gradient, whole + 3 * short
        )

    def evaluate(self, x: Tensor, step: int) -> Evaluation:
        """Losses and margins of images x [n, c, h, w] under the draws of a step."""
        draws = self.draws(step)
        logits = self.defence.logits(x, self.ids, draws).flatten(0, 1)
        labels = self.labels.repeat_interleave(len(draws))
        return self._view(loss_rows(logits, labels, self.loss), logits, labels, None)

    def loss_and_grad(self, x: Tensor, step: int) -> Evaluation:
        """The same with the gradient."""
        draws, images = self.draws(step), (x, self.ids, self.labels)
        losses, logits, gradient = self.defence.rows(
            self._gradient, images, draws, self.gradient_evaluations
        )
        labels = self.labels.repeat_interleave(len(draws))
        return self._view(losses.flatten(), logits.flatten(0, 1), labels, gradient.mean(1))

    def row_gradients(self, x: Tensor, step: int) -> Tensor:
        """The gradient of every draw by itself, [n, k, c, h, w]."""
        draws, images = self.draws(step), (x, self.ids, self.labels)
        return self.defence.rows(self._gradient, images, draws, self.gradient_evaluations)[2]

    def _view(
        self, losses: Tensor, logits: Tensor, labels: Tensor, gradient: Tensor | None
    ) -> Evaluation:
        n = len(self.ids)
        return Evaluation(
            losses.reshape(n, -1).mean(1), margins(logits, labels).reshape(n, -1), gradient
        )

    def _gradient(self, x: Tensor, noise: Noise, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def head(y: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.defence.classifier(y)
            return loss_rows(logits, labels, self.loss), logits

        purifier, graphs = self.defence.purifier, self.defence.activations
        found: Gradient
        match self.gradient:
            case "exact":
                found = graphs.exact(purifier, noise, head, x)
            case "bpda":
                found = bpda(steps_of(purifier, noise), head, x)
            case "none":
                found = secant(lambda z: purifier(z, noise), head, x, self.reach)
            case "surrogate":
                assert self.surrogate is not None, "the caller brings the shorter chain"
                own = bpda(steps_of(purifier, noise), head, x)
                short = graphs.exact(self.surrogate, noise, head, x)
                found = Gradient(own.losses, own.logits, short.at_input)
        return found.losses, found.logits, found.at_input
