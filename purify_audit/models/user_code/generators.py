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
    """The states of the global generators: torch's (CPU, then every CUDA device) and others'."""

    torch: tuple[Tensor, ...]
    numpy: dict[str, Any]
    python: Any

    @property
    def states(self) -> dict[str, object]:
        """Each as something that can be compared."""
        inner = self.numpy["state"]
        normals = self.numpy["has_gauss"], self.numpy["gauss"]
        return {
            "torch": tuple(state.numpy().tobytes() for state in self.torch),
            "numpy.random": (inner["key"].tobytes(), inner["pos"], normals),
            "random": self.python,
        }

    @classmethod
    def now(cls) -> "GlobalGenerators":
        """The states at this moment."""
        states = tuple(generator.get_state() for generator in _torch_generators())
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002, TID251 - put aside
        return cls(states, numpy_state, random.getstate())

    def restore(self) -> None:
        """Put them back."""
        # A device that was first used within has no state to go back to.
        for generator, state in zip(_torch_generators(), self.torch, strict=False):
            generator.set_state(state)
        np.random.set_state(self.numpy)  # noqa: NPY002, TID251 - put back
        random.setstate(self.python)


def seed_all(words: list[int]) -> None:
    """Seed the global generators, from eight words of 32 bits."""
    for generator in _torch_generators():
        generator.manual_seed(words[0] * 2**31 + words[1])
    np.random.seed(words[2:5])  # noqa: NPY002, TID251 - user code draws from it
    random.seed(words[5] * 2**64 + words[6] * 2**32 + words[7])


def _torch_generators() -> list[Any]:
    found: list[Any] = [torch.default_generator]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found.extend(torch.cuda.default_generators)
    return found


def default_generator(device: torch.device) -> Any:
    """A device's own global generator; the CPU's for devices that keep none of this kind."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator


def state_digest(generator: Any) -> bytes:
    """16 bytes that tell a generator's state apart from others."""
    state = cast(Tensor, generator.get_state())
    device = str(generator.device).encode()  # two devices may have equal states
    return hashlib.blake2b(state.numpy().data, digest_size=16, key=device).digest()


def advance(generator: Any) -> None:
    """The state after a draw: another one, and always the same after the same."""
    if generator.device.type == "cuda":  # Philox: no kernel is needed to move on
        generator.set_offset(generator.get_offset() + 4)
    else:
        torch.empty((), dtype=torch.int64, device=generator.device).random_(generator=generator)
