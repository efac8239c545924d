"""Batched purification: deterministic kernels, micro-batches of one size, interruption."""

import contextlib
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from purify_audit.core.errors import AuditError, OutOfMemoryError, PlanError
from purify_audit.core.noise import Noise, Stream
from purify_audit.models.microbatches import microbatches
from purify_audit.models.protocols import Purifier
from purify_audit.spec.engine import PLAIN, Engine
from purify_audit.spec.shard import place_on_machine


@contextlib.contextmanager
def deterministic(gradients: bool = False) -> Iterator[None]:
    """A context with float32 arithmetic and deterministic kernels; restores the settings on exit.

    TF32, autocast and cuDNN benchmarking are off; an `EngineNetwork` sets its own precision.
    Without `gradients`, tensors are created in inference mode, which is faster.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32)
    cudnn.benchmark, cudnn.deterministic = False, True
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        with (
            torch.no_grad() if gradients else torch.inference_mode(),
            torch.autocast("cuda", enabled=False),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


def environment(device: torch.device, engine: Engine = PLAIN) -> dict[str, str | int]:
    """The hardware, versions and settings on which the last digits may depend."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "precision": engine.description,
    }


Tick = Callable[[int], None]
"""Progress callback: called with a count after every micro-batch; raises `Stopped` to end."""


def ignore_ticks(count: int) -> None:
    """Ignore progress."""


class Stopped(Exception):
    """The run was stopped between two micro-batches.

    Attributes:
        rows: purified rows that are finished, or none.
    """

    rows: np.ndarray | None = None


@contextlib.contextmanager
def memory_advice(device: torch.device, microbatch: int) -> Iterator[None]:
    """Advise a smaller micro-batch when the device runs out of memory.

    Raises:
        OutOfMemoryError: the device is out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(
            f"{device} is out of memory with micro-batches of {microbatch};"
            " give a smaller --microbatch"
        ) from None


@dataclass(frozen=True, slots=True)
class Runner:
    """Purifies any number of rows in micro-batches of a fixed size (`microbatches`).

    Attributes:
        purifier: the purifier.
        device: where it runs.
        seed: the key of all randomness.
        microbatch: rows of every call.
        tick: called with the number of rows after every micro-batch; may raise `Stopped`.
    """

    purifier: Purifier
    device: torch.device
    seed: int
    microbatch: int
    tick: Tick = ignore_ticks

    def __call__(self, x: np.ndarray, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Purify rows.

        Args:
            x: float32 [rows, c, h, w] in [0, 1].
            images: image id of each row [rows].
            draws: draw id of each row [rows].

        Returns:
            float32 [rows, c, h, w].

        Raises:
            Stopped: from `tick`, with the finished rows.
            AuditError: the output does not have the input's shape.
        """
        out = np.empty_like(x)
        for batch in microbatches(len(x), self.microbatch):
            rows = batch.rows[: batch.count]
            purified = self.batch(x[rows], images[rows], draws[rows])
            if purified.shape != x[rows].shape:
                raise AuditError(
                    f"the purifier makes {list(purified.shape)} of {list(x[rows].shape)}, though"
                    " not of fewer rows: it does not purify row by row"
                )
            out[rows] = purified
            try:
                self.tick(batch.count)
            except Stopped as stop:
                stop.rows = out[: rows[-1] + 1]
                raise
        return out

    def batch(self, x: np.ndarray, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Purify at most `microbatch` rows in one call, padded with copies of the first."""
        (batch,) = microbatches(len(x), self.microbatch)
        noise = Noise(
            self.seed,
            tuple(images[batch.rows].tolist()),
            tuple(draws[batch.rows].tolist()),
            Stream.PURIFY,
            self.device,
        )
        padded = torch.from_numpy(x[batch.rows]).to(self.device)
        with memory_advice(self.device, self.microbatch):
            purified: np.ndarray = self.purifier(padded, noise)[: batch.count].cpu().numpy()
        return purified


def choose_device(name: str) -> torch.device:
    """The device with a name: `auto` is CUDA if available, distributed over local processes.

    Raises:
        PlanError: this machine has no such device.
    """
    if name == "auto":
        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return (
            torch.device("cuda", place_on_machine() % devices) if devices else torch.device("cpu")
        )
    wanted = re.fullmatch("(cpu|cuda)(:[0-9]{1,4})?", name)
    if not wanted:
        raise PlanError(f"device '{name}' is not auto, cpu, cuda or cuda:N")
    kind, number = wanted[1], int((wanted[2] or ":0")[1:])
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if number >= count:
        raise PlanError(f"device '{name}': this machine has {count} {kind.upper()} devices")
    return torch.device(kind, number) if wanted[2] else torch.device(kind)
