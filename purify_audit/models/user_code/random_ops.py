"""Random ATen operators, evaluated with addressed random numbers.

An operator keeps its distribution (PyTorch's documentation of each; inverse CDFs after Devroye
1986, chapter II.2), but its numbers come from `Noise`, row by row, instead of a generator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import torch
from torch import Tensor

from purify_audit.core.noise import Noise

Call = dict[str, Any]
"""The arguments of one call, by the names of the operator's schema, defaults included."""

_WORD = 2**32
_POISSON_TAIL = 8.0  # standard deviations; a uniform number of 24 bits reaches 5.4


class UnknownOperatorError(Exception):
    """A random operator, or a way of calling it, that is not supported."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The random numbers of one call of an operator.

    Attributes:
        noise: addresses, on the device of the operator's result.
        step: index within the purification.
        per_row: the first axis of the result counts the rows of `noise`; else the whole result
            belongs to its first row.
    """

    noise: Noise
    step: int
    per_row: bool

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, float32, of the shape of a result."""
        return self._draw(lambda noise, rest: noise.normal(self.step, rest), shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform numbers strictly inside (0, 1), float32."""
        return self._draw(lambda noise, rest: noise.uniform(self.step, rest), shape)

    def integers(self, shape: Sequence[int], span: int) -> Tensor:
        """Integers in [0, span), int64.

        Raises:
            RuntimeError: the span is not positive, as PyTorch's own operators raise.
            UnknownOperatorError: it is beyond 2**63.
        """
        if span <= 0:
            raise RuntimeError(f"random integers from an empty range of {span}")
        if span <= _WORD:
            return self._draw(lambda noise, rest: noise.integers(self.step, rest, span), shape)
        if span > 2**63:
            raise UnknownOperatorError(f"integers of more than 63 bits (a range of {span})")
        words = self._draw(lambda n, rest: n.integers(self.step, rest, _WORD), (*shape, 2))
        value = (words[..., 0] >> 1) * _WORD + words[..., 1]
        return value if span == 2**63 else value % span

    def _draw(
        self, sample: Callable[[Noise, tuple[int, ...]], Tensor], shape: Sequence[int]
    ) -> Tensor:
        if self.per_row:
            return sample(self.noise, tuple(shape[1:]))
        return sample(self.noise[:1], tuple(shape))[0]


def bind(func: Any, args: tuple[Any, ...], kwargs: Call) -> Call:
    """The arguments of a call by name."""
    schema = func._schema.arguments
    call = {a.name: a.default_value for a in schema if a.has_default_value()}
    if isinstance(call.get("dtype"), int):  # the schema's code of int64, in `randint`
        call["dtype"] = torch.int64
    return call | {a.name: value for a, value in zip(schema, args, strict=False)} | kwargs


def is_inert(name: str, call: Call) -> bool:
    """Whether this call of a random operator is deterministic (dropout with probability 0)."""
    if name == "_fused_sdp_choice":  # selects a kernel; only reads the dropout probability
        return True
    evaluation = call.get("train", True) is False or call.get("training", True) is False
    return evaluation or call.get("dropout_p", call.get("dropout")) == 0.0


def result_shape(name: str, call: Call) -> tuple[int, ...]:
    """The shape of an operator's random numbers."""
    match name:
        case "randperm":
            return (int(call["n"]),)
        case "multinomial":
            return (*call["self"].shape[:-1], int(call["num_samples"]))
        case "native_dropout":
            return tuple(call["input"].shape)
    if "size" in call:
        return tuple(int(n) for n in call["size"])
    tensors = [call[n].shape for n in ("self", "mean", "std") if isinstance(call.get(n), Tensor)]
    if not tensors:
        raise UnknownOperatorError("a result of unknown shape")
    return tuple(torch.broadcast_shapes(*tensors))  # type: ignore[no-untyped-call]


def has_rows(name: str, call: Call) -> bool:
    """Whether the first axis of the result can count rows; one permutation has none."""
    return name != "randperm" and not (name == "multinomial" and call["self"].dim() < 2)


def result_device(call: Call) -> torch.device:
    """The device of the result of a call."""
    for value in call.values():
        if isinstance(value, Tensor):
            return value.device
    return torch.device(call.get("device") or torch.get_default_device())


def distribution_of(name: str) -> str | None:
    """The name of an operator's distribution; None if it is not supported."""
    entry = _SEVERAL.get(name) or _DISTRIBUTIONS.get(_family(name))
    return entry[0] if entry else None


def answer(name: str, call: Call, numbers: Numbers) -> Any:
    """The result of a random operator, from addressed numbers.

    Raises:
        UnknownOperatorError: see `distribution_of`; or a result of complex numbers.
    """
    if name in _SEVERAL:
        if any(argument.startswith("out") for argument in call):
            raise UnknownOperatorError("a call with out=")
        return _SEVERAL[name][1](call, numbers)
    result = _destination(name, call)
    if result.is_complex():
        raise UnknownOperatorError("complex random numbers")
    return result.copy_(_DISTRIBUTIONS[_family(name)][1](call, result, numbers))


def _family(name: str) -> str:
    return name.removesuffix("_functional").removesuffix("_like").removesuffix("_")


def _destination(name: str, call: Call) -> Tensor:
    """The tensor that a call writes to: `self`, `out`, or a new one."""
    shape, own = result_shape(name, call), call.get("self")
    if name.endswith("_"):
        return _tensor(own)
    if "out" in call:
        out = _tensor(call["out"])
        return out if out.shape == shape else out.resize_(shape)
    options = {n: call.get(n) for n in ("dtype", "layout", "device", "pin_memory")}
    if "size" in call or name == "randperm":
        return torch.empty(shape, **options)
    if name.endswith("_like"):
        return torch.empty_like(_tensor(own), memory_format=call.get("memory_format"), **options)
    if name == "multinomial":
        return torch.empty(shape, dtype=torch.int64, device=result_device(call))
    like = next(t for t in (own, call.get("mean"), call.get("std")) if isinstance(t, Tensor))
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor), "the schema says so"
    return value


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _normal(call: Call, result: Tensor, numbers: Numbers) -> Tensor:
    z = numbers.normal(result.shape).to(_wide(result.dtype))
    return _tensor(z * call["std"] + call["mean"]) if "std" in call else z


def _uniform(call: Call, result: Tensor, numbers: Numbers) -> Tensor:
    """In [from, to); rounded down to the type's grid, since half precision would reach 1."""
    u = numbers.uniform(result.shape).to(_wide(result.dtype))
    if result.dtype in (torch.float16, torch.bfloat16):
        grid = 2.0 / torch.finfo(result.dtype).eps
        u = torch.floor(u * grid) / grid
    low, high = float(call.get("from", 0.0)), float(call.get("to", 1.0))
    return low + (high - low) * u


def _integers(call: Call, result: Tensor, numbers: Numbers) -> Tensor:
    """`randint`: in [low, high); `random`: in [from, to), to the end of the type by default."""
    if "high" in call:
        low, high = int(call.get("low", 0)), int(call["high"])
    else:
        low, to = int(call.get("from") or 0), call.get("to")
        high = _type_limit(result.dtype) if to is None else int(to)
    return low + numbers.integers(result.shape, high - low)


def _type_limit(dtype: torch.dtype) -> int:
    """One more than the largest integer that `Tensor.random_` gives in a type."""
    if dtype == torch.bool:
        return 2
    if dtype.is_floating_point:
        return int(2.0 / torch.finfo(dtype).eps) + 1
    return int(torch.iinfo(dtype).max) + 1


def _permutation(call: Call, result: Tensor, numbers: Numbers) -> Tensor:
    return numbers.uniform(result.shape).argsort(stable=True)


def _bernoulli(call: Call, result: Tensor, numbers: Numbers) -> Tensor:
    p: Any = call.get("p", call["self"])
    return torch.lt(numbers.uniform(result.shape), p)


def _exponential(call: Call, result: Tensor, numbers: Numbers) -> Tensor:
    return -torch.log(numbers.uniform(result.shape).to(_wide(result.dtype))) / float(call["lambd"])


def _cauchy(call: Call, result: Tensor, numbers: Numbers) -> Tensor:
    angle = torch.pi * (numbers.uniform(result.shape).to(_wide(result.dtype)) - 0.5)
    return _tensor(call["median"] + call["sigma"] * torch.tan(angle))


def _log_normal(call: Call, result: Tensor, numbers: Numbers) -> Tensor:
    return torch.exp(_normal(call, result, numbers))


def _geometric(call: Call, result: Tensor, numbers: Numbers) -> Tensor:
    """Number of trials up to and including the first success."""
    u = numbers.uniform(result.shape).double()
    return torch.ceil(torch.log(u) / torch.log1p(-torch.tensor(call["p"], dtype=u.dtype))).clamp(1)


def _poisson(call: Call, result: Tensor, numbers: Numbers) -> Tensor:
    """The smallest k with P(X ≤ k) = Q(k + 1, rate) ≥ u, by bisection."""
    rate, u = call["self"].double(), numbers.uniform(result.shape).double()
    high = torch.ceil(rate + _POISSON_TAIL * torch.sqrt(rate) + 40.0)
    low = torch.full_like(high, -1.0)
    for _ in range(ceil(log2(float(high.max()) + 2.0)) if high.numel() else 0):
        middle = torch.floor((low + high) / 2.0)
        enough = torch.special.gammaincc(middle + 1.0, rate) >= u
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


def _multinomial(call: Call, result: Tensor, numbers: Numbers) -> Tensor:
    """By inverse CDF; without replacement the largest log(u)/p (Efraimidis and Spirakis 2006)."""
    weights = call["self"].double()
    if not call["replacement"]:
        keys: Tensor = torch.log(numbers.uniform(weights.shape).double()) / weights
        return keys.topk(result.shape[-1], -1).indices
    ends = weights.cumsum(-1)
    positions = numbers.uniform(result.shape).double() * ends[..., -1:]
    return torch.searchsorted(ends, positions, right=True).clamp(max=weights.shape[-1] - 1)


def _native_dropout(call: Call, numbers: Numbers) -> tuple[Tensor, Tensor]:
    x, p = _tensor(call["input"]), float(call["p"])
    kept = numbers.uniform(x.shape) < 1.0 - p  # as bernoulli_, which other code paths use
    return x * kept * (1.0 / (1.0 - p) if p < 1.0 else 0.0), kept


def _rrelu(call: Call, numbers: Numbers) -> Tensor:
    """Slopes in [lower, upper) where x ≤ 0; they are also written to the argument `noise`."""
    x, lower = _tensor(call["self"]), float(call["lower"])
    slopes = lower + (float(call["upper"]) - lower) * numbers.uniform(x.shape).to(x.dtype)
    slopes = torch.where(x <= 0, slopes, torch.ones_like(x))
    _tensor(call["noise"]).copy_(slopes)
    return x * slopes


_DISTRIBUTIONS: dict[str, tuple[str, Callable[[Call, Tensor, Numbers], Tensor]]] = {
    "randn": ("normal", _normal),
    "normal": ("normal", _normal),
    "rand": ("uniform", _uniform),
    "uniform": ("uniform", _uniform),
    "randint": ("integers", _integers),
    "random": ("integers", _integers),
    "randperm": ("permutation", _permutation),
    "bernoulli": ("Bernoulli", _bernoulli),
    "exponential": ("exponential", _exponential),
    "cauchy": ("Cauchy", _cauchy),
    "log_normal": ("log-normal", _log_normal),
    "geometric": ("geometric", _geometric),
    "poisson": ("Poisson", _poisson),
    "multinomial": ("categories", _multinomial),
}

_SEVERAL: dict[str, tuple[str, Callable[[Call, Numbers], Any]]] = {
    "native_dropout": ("Bernoulli", _native_dropout),
    "rrelu_with_noise": ("uniform", _rrelu),
    "rrelu_with_noise_": ("uniform", lambda call, n: _tensor(call["self"]).copy_(_rrelu(call, n))),
}
