"""The attacked model (purifier and classifier) and the objective that attacks maximise."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from purify_audit.attacks.activation_memory import ActivationMemory
from purify_audit.attacks.gradients import Gradient, GradientKind, bpda, secant, steps_of
from purify_audit.attacks.losses import Loss, loss_rows, margins
from purify_audit.core.noise import Noise, Stream
from purify_audit.models.microbatches import microbatches
from purify_audit.models.protocols import Classifier, Purifier
from purify_audit.models.runner import Tick, ignore_ticks, memory_advice

Draws = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Defence:
    """A classifier behind a purifier, run in micro-batches of a fixed size.

    Attributes:
        purifier: the purifier.
        classifier: classifies its output.
        device: of both.
        seed: the key of all randomness.
        microbatch: rows (image, draw) of every call.
        tick: called with the network evaluations of every micro-batch; may raise `Stopped`.
        activations: computes exact gradients within a memory budget, which does not change them.
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
        evaluations = self.purifier.evaluations
        return self.rows(classify, x, ids, labels, draws, evaluations)[0]

    def rows(
        self,
        compute: Callable[[Tensor, Noise, Tensor], tuple[Tensor, ...]],
        x: Tensor,
        ids: tuple[int, ...],
        labels: Tensor,
        draws: Draws,
        evaluations: int,
    ) -> tuple[Tensor, ...]:
        """Results of `compute` for every (image, draw), each [n, k, …].

        Args:
            compute: maps rows [m, c, h, w], their noise and labels [m] to tensors [m, …].
            x: pixels [n, c, h, w].
            ids: image ids [n].
            labels: int64 [n].
            draws: k draw ids.
            evaluations: network evaluations per row, reported to `tick`.

        Raises:
            Stopped: from `tick`.
            AuditError: out of memory.
        """
        k, parts = len(draws), list[tuple[Tensor, ...]]()
        for batch in microbatches(len(x) * k, self.microbatch):
            image = [row // k for row in batch.rows]
            index = torch.tensor(image, device=self.device)
            noise = Noise(
                self.seed,
                tuple(ids[n] for n in image),
                tuple(draws[row % k] for row in batch.rows),
                Stream.PURIFY,
                self.device,
            )
            with memory_advice(self.device, self.microbatch):
                outputs = compute(x[index], noise, labels[index])
            parts.append(tuple(t[: batch.count] for t in outputs))
            self.tick(evaluations * batch.count)
        whole = [torch.cat(column) for column in zip(*parts, strict=True)]
        return tuple(t.reshape(len(x), k, *t.shape[1:]) for t in whole)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Losses, margins and gradient of images at one step of an attack.

    Attributes:
        losses: mean over draws [n].
        margins: z_y − max_{i≠y} z_i, [n, k]; not positive where a draw is fooled.
        gradient: of `losses`, [n, c, h, w]; none from `evaluate`.
    """

    losses: Tensor
    margins: Tensor
    gradient: Tensor | None


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of images, averaged over draws, to be maximised (EOT; Athalye et al. 2018).

    Losses are averaged, not logits or probabilities.

    Attributes:
        defence: the attacked model.
        ids: image ids [n], which address their noise.
        labels: int64 [n], on the device.
        draws: maps a step to its draws; constant when aligned.
        loss: the loss.
        targets: int64 [n], on the device: the classes that a targeted attack wants; none: any.
        gradient: how gradients are computed.
        surrogate: for the gradient `surrogate`: the purifier with the shorter chain.
        reach: for the gradient `none`: step of the finite difference, l2, pixel units.
    """

    defence: Defence
    ids: tuple[int, ...]
    labels: Tensor
    draws: Callable[[int], Draws]
    loss: Loss = "margin"
    targets: Tensor | None = None
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

    def select(self, rows: Tensor) -> "Objective":
        """The objective of some of the images, by their rows int64 [m]."""
        ids = tuple(self.ids[row] for row in rows.tolist())
        targets = None if self.targets is None else self.targets[rows]
        return replace(self, ids=ids, labels=self.labels[rows], targets=targets)

    def towards(self, targets: Tensor | None) -> "Objective":
        """The objective of an attack that wants these classes int64 [n], or any."""
        return replace(self, targets=targets)

    def evaluate(self, x: Tensor, step: int) -> Evaluation:
        """Losses and margins of images x [n, c, h, w] under the draws of a step."""
        draws = self.draws(step)
        logits = self.defence.logits(x, self.ids, draws).flatten(0, 1)
        goals = self._goals().repeat_interleave(len(draws), 0)
        return self._evaluation(self._losses(logits, goals), logits, goals[:, 0], None)

    def loss_and_grad(self, x: Tensor, step: int) -> Evaluation:
        """Losses, margins and gradient of images x [n, c, h, w] under the draws of a step."""
        losses, logits, gradient = self._row_results(x, step)
        labels = self.labels.repeat_interleave(gradient.shape[1])
        return self._evaluation(losses.flatten(), logits.flatten(0, 1), labels, gradient.mean(1))

    def row_gradients(self, x: Tensor, step: int) -> Tensor:
        """The gradient under each draw, [n, k, c, h, w]."""
        return self._row_results(x, step)[2]

    def _row_results(self, x: Tensor, step: int) -> tuple[Tensor, ...]:
        cost = self.gradient_evaluations
        draws, goals = self.draws(step), self._goals()
        return self.defence.rows(self._gradient, x, self.ids, goals, draws, cost)

    def _evaluation(
        self, losses: Tensor, logits: Tensor, labels: Tensor, gradient: Tensor | None
    ) -> Evaluation:
        n = len(self.ids)
        return Evaluation(
            losses.reshape(n, -1).mean(1), margins(logits, labels).reshape(n, -1), gradient
        )

    def _goals(self) -> Tensor:
        """Labels, and targets if any, int64 [n, 1 or 2]."""
        columns = [self.labels] if self.targets is None else [self.labels, self.targets]
        return torch.stack(columns, 1)

    def _losses(self, logits: Tensor, goals: Tensor) -> Tensor:
        """The loss of rows with these goals [m, 1 or 2]."""
        return loss_rows(
            logits, goals[:, 0], self.loss, goals[:, 1] if goals.shape[1] > 1 else None
        )

    def _gradient(self, x: Tensor, noise: Noise, goals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def head(y: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.defence.classifier(y)
            return self._losses(logits, goals), logits

        purifier, activations = self.defence.purifier, self.defence.activations
        result: Gradient
        match self.gradient:
            case "exact":
                result = activations.exact(purifier, noise, head, x)
            case "bpda":
                result = bpda(steps_of(purifier, noise), head, x)
            case "none":
                result = secant(lambda z: purifier(z, noise), head, x, self.reach)
            case "surrogate":
                assert self.surrogate is not None, "the caller gives the shorter chain"
                own = bpda(steps_of(purifier, noise), head, x)
                short = activations.exact(self.surrogate, noise, head, x)
                result = Gradient(own.losses, own.logits, short.at_input)
        return result.losses, result.logits, result.at_input
