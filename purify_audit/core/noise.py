"""Addressed randomness: every random number is a pure function of its address.

The full specification ("noise spec v1", with worked numbers) is `docs/noise.md`. In short:
Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is keyed by
the seed and counts over (block, stream and step, image id, draw id). The map from address to
number is injective, so nothing depends on batch, order, chunk, process or device.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

NOISE_SPEC = "noise spec v1"

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al. 2011, table 2
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, the key schedule
_ROUNDS = 10
_STEP_BITS = 24
_NORMAL_GRID = 2.0**16
_CPU = torch.device("cpu")


class Stream(IntEnum):
    """The purpose of a number. Streams never overlap: they are part of the address."""

    PURIFY = 0
    DIRECTION = 1
    CHOICE = 2
    PREFLIGHT = 3
    POWER = 4
    ATTACK = 5
    START = 6


def philox4x32(counter: tuple[Any, Any, Any, Any], seed: int) -> tuple[Any, Any, Any, Any]:
    """Four random 32-bit words for each counter (Philox4x32-10, Salmon et al. 2011, section 3.3).

    Args:
        counter: four int64 arrays or tensors of one shape, values in [0, 2**32); numpy or torch.
        seed: the 64-bit key, in [0, 2**64).

    Returns:
        Four int64 arrays or tensors of the same shape and library, values in [0, 2**32).

    The 32x32 -> 64 bit products wrap in int64; shifting and masking recovers both halves exactly.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK32, seed >> 32
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK32) ^ c1 ^ k0,
            p1 & _MASK32,
            ((p0 >> 32) & _MASK32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


@dataclass(frozen=True, slots=True)
class Noise:
    """The addresses of one batch: row n is image `images[n]` under draw `draws[n]`.

    Attributes:
        seed: 64-bit key, in [0, 2**64).
        images: image id of each row, in [0, 2**32).
        draws: draw id of each row, in [0, 2**32); equal ids give equal numbers.
        stream: the purpose of the numbers.
        device: of the tensors; the numbers do not depend on it.

    Every method returns a tensor of shape [rows, *shape] on `device`. `step` (in [0, 2**24))
    distinguishes the numbers within one purification.
    """

    seed: int
    images: tuple[int, ...]
    draws: tuple[int, ...]
    stream: Stream = Stream.PURIFY
    device: torch.device = _CPU

    def __post_init__(self) -> None:
        """Reject addresses that would wrap around.

        Raises:
            ValueError: an id, the seed or the number of rows is out of range.
        """
        if len(self.images) != len(self.draws):
            raise ValueError(f"{len(self.images)} image ids but {len(self.draws)} draw ids")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"the seed must be in [0, 2**64), not {self.seed}")
        for name, ids in (("image", self.images), ("draw", self.draws)):
            if ids and not (min(ids) >= 0 and max(ids) <= _MASK32):
                raise ValueError(f"{name} ids must be in [0, 2**32), not {min(ids)}..{max(ids)}")

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.images)

    def __getitem__(self, rows: slice) -> "Noise":
        """The same addresses for a slice of the batch."""
        return replace(self, images=self.images[rows], draws=self.draws[rows])

    def normal(self, step: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, float32, on the grid of multiples of 2**-16 (|z| < 6.8).

        Box-Muller in float64; the grid makes devices whose logarithms differ in the last bit
        agree in float32 (`docs/noise.md`, section 4).
        """
        return self.normals(step, 1, shape)[0]

    def normals(self, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
        """The normals of steps first … first + count − 1, [count, rows, *shape], in one call."""
        return self._per_address(range(first, first + count), shape, _to_normal)

    def uniform(self, step: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers strictly inside (0, 1): float32, odd multiples of 2**-24."""
        return self._per_address(range(step, step + 1), shape, _to_uniform)[0]

    def signs(self, step: int, shape: tuple[int, ...]) -> Tensor:
        """Rademacher signs, float32, -1 or +1 with equal probability."""
        return self._per_address(range(step, step + 1), shape, _to_signs)[0]

    def integers(self, step: int, shape: tuple[int, ...], high: int) -> Tensor:
        """Integers in [0, high), int64, from the top bits (bias at most high / 2**32).

        Raises:
            ValueError: `high` is not in [1, 2**32].
        """
        if not 1 <= high <= 2**32:
            raise ValueError(f"high must be in [1, 2**32], not {high}")

        def to_integers(words: Any) -> Any:
            top, bottom = words >> 16, words & 0xFFFF  # words * high would overflow int64
            return (top * high + ((bottom * high) >> 16)) >> 16

        return self._per_address(range(step, step + 1), shape, to_integers)[0]

    def _per_address(self, steps: range, shape: tuple[int, ...], convert: Any) -> Tensor:
        """Numbers for each row, computed once per distinct (image, draw).

        An anchor and its probes share an address.
        """
        if not 0 <= steps.start < steps.stop <= 2**_STEP_BITS:
            raise ValueError(f"the step must be in [0, 2**{_STEP_BITS}), not {steps.start}")
        addresses = list(zip(self.images, self.draws, strict=True))
        index = {address: n for n, address in enumerate(dict.fromkeys(addresses))}
        count = int(np.prod(shape, dtype=np.int64))
        rows = np.array([(*a, k) for k in steps for a in index], np.int64).reshape(-1, 3)
        if self.device.type == "cpu":  # numpy: the same integers with less overhead per operation
            values = convert(_words(rows, self, count))
            numbers = torch.from_numpy(np.ascontiguousarray(values[:, :count]))
        else:
            numbers = convert(_words(torch.from_numpy(rows).to(self.device), self, count))
            numbers = numbers[:, :count]
        numbers = numbers.reshape(len(steps), len(index), *shape)
        if len(index) == len(addresses):
            return numbers
        return numbers[:, torch.tensor([index[a] for a in addresses], device=self.device)]


def _words(rows: Any, noise: Noise, count: int) -> Any:
    """Words [rows, 4 * blocks], int64, covering at least `count` numbers a row.

    `rows` is an int64 array or tensor [rows, 3] of (image id, draw id, step).
    """
    blocks = -(-count // 4)
    if isinstance(rows, Tensor):
        block: Any = torch.arange(blocks, dtype=torch.int64, device=rows.device)[None, :]
        stack: Any = torch.stack
    else:
        block, stack = np.arange(blocks, dtype=np.int64)[None, :], np.stack
    spread = 0 * block  # to the shape [rows, blocks]
    image, draw, step = (rows[:, n : n + 1] + spread for n in range(3))
    counter = (block + 0 * image, (int(noise.stream) << _STEP_BITS) + step, image, draw)
    return stack(philox4x32(counter, noise.seed), -1).reshape(len(rows), 4 * blocks)


def _to_normal(words: Any) -> Any:
    """Box and Muller (1958): words 2i and 2i+1 become normals 2i (cosine) and 2i+1 (sine)."""
    if isinstance(words, Tensor):
        u = (words.to(torch.float64) + 0.5) * 2.0**-32
        radius, angle = torch.sqrt(-2.0 * torch.log(u[:, 0::2])), (2.0 * torch.pi) * u[:, 1::2]
        z = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), -1)
        grid = torch.round(z.reshape(words.shape) * _NORMAL_GRID) / _NORMAL_GRID
        return (grid + 0.0).to(torch.float32)  # + 0.0 turns -0.0 into 0.0
    v = (words.astype(np.float64) + 0.5) * 2.0**-32
    length, turn = np.sqrt(-2.0 * np.log(v[:, 0::2])), (2.0 * np.pi) * v[:, 1::2]
    pair = np.stack((length * np.cos(turn), length * np.sin(turn)), -1).reshape(words.shape)
    return (np.round(pair * _NORMAL_GRID) / _NORMAL_GRID + 0.0).astype(np.float32)


def _to_uniform(words: Any) -> Any:
    """(top 23 bits + 1/2) / 2**23: symmetric about 1/2, exact in float32, never 0 or 1."""
    top = words >> 9
    if isinstance(words, Tensor):
        return (top.to(torch.float32) + 0.5) * 2.0**-23
    return (top.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def _to_signs(words: Any) -> Any:
    """The top bit: 0 becomes -1, 1 becomes +1."""
    sign = (words >> 31) * 2 - 1
    return sign.to(torch.float32) if isinstance(words, Tensor) else sign.astype(np.float32)
