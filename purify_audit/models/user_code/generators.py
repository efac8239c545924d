"""Save, restore, seed and identify the states of the generators that user code draws from."""

import hashlib
import random  # noqa: TID251 - saved and restored; user code draws from it
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GlobalGenerators:
    """The states of the global generators of torch (CPU, then every CUDA device), NumPy, Python."""

    torch: tuple[Tensor, ...]
    numpy: dict[str, Any]
    python: Any

    @property
    def states(self) -> dict[str, object]:
        """Each in a form that supports ==."""
        inner = self.numpy["state"]
        normals = self.numpy["has_gauss"], self.numpy["gauss"]
        return {
            "torch": tuple(state.numpy().tobytes() for state in self.torch),
            "numpy.random": (inner["key"].tobytes(), inner["pos"], normals),
            "random": self.python,
        }

    @classmethod
    def now(cls) -> "GlobalGenerators":
        """The current states."""
        states = tuple(generator.get_state() for generator in _torch_generators())
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002, TID251 - saved
        return cls(states, numpy_state, random.getstate())

    def restore(self) -> None:
        """Set the global generators to these states."""
        # A device first used after `now` has no saved state.
        for generator, state in zip(_torch_generators(), self.torch, strict=False):
            generator.set_state(state)
        np.random.set_state(self.numpy)  # noqa: NPY002, TID251 - restored
        random.setstate(self.python)


def seed_all(words: list[int]) -> None:
    """Seed the global generators, from eight words of 32 bits."""
    for generator in _torch_generators():
        generator.manual_seed(words[0] * 2**31 + words[1])
    np.random.seed(words[2:5])  # noqa: NPY002, TID251 - user code draws from it
    random.seed(words[5] * 2**64 + words[6] * 2**32 + words[7])


def _torch_generators() -> list[Any]:
    generators: list[Any] = [torch.default_generator]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators.extend(torch.cuda.default_generators)
    return generators


def default_generator(device: torch.device) -> Any:
    """The global generator of a CUDA device; of the CPU for any other."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator


def state_digest(generator: Any) -> bytes:
    """A digest (16 bytes) of a generator's device and state."""
    state = cast(Tensor, generator.get_state())
    device = str(generator.device).encode()  # two devices may have equal states
    return hashlib.blake2b(state.numpy().data, digest_size=16, key=device).digest()


def advance(generator: Any) -> None:
    """Move a generator to another state, as a deterministic function of its present one."""
    if generator.device.type == "cuda":  # Philox: needs no kernel
        generator.set_offset(generator.get_offset() + 4)
    else:
        torch.empty((), dtype=torch.int64, device=generator.device).random_(generator=generator)
