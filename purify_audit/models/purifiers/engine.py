"""Running a purifier's network in lower precision, compiled, or in channels-last layout."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from purify_audit.core.errors import PlanError
from purify_audit.core.records import printable
from purify_audit.models.protocols import Purifier
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.purifiers.feedforward import FeedforwardPurifier
from purify_audit.spec.engine import PLAIN, Engine

_PROGRAMS = 64  # of one kind of network: one for each size of batch, with gradients and without
_REDUCED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class EngineNetwork(nn.Module):
    """A network behind an engine; float32 goes in and comes out.

    Given float64 it is the plain network, which gives the reference for gradient checks.

    Attributes:
        network: the plain one.
        engine: how it is run.
    """

    def __init__(self, network: nn.Module, engine: Engine, device: torch.device) -> None:
        """Wrap a network; for `channels_last` its weights are reordered in place.

        Raises:
            PlanError: the device cannot compute in this precision.
        """
        super().__init__()
        _check_precision(engine, device)
        if engine.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network, self.engine, self._kind = network, engine, device.type
        # Partly compiled, or not for some batch size, it would have other last digits.
        self._compiled = (
            torch.compile(network.forward, dynamic=False, fullgraph=True)
            if engine.compile
            else None
        )

    def forward(self, x: Tensor, *conditioning: Tensor | float) -> Tensor:
        """The network's output for x [n, c, h, w] and its conditioning.

        Raises:
            PlanError: PyTorch cannot compile the network.
        """
        y: Tensor
        if x.dtype == torch.float64:
            y = self.network(x, *conditioning)
            return y
        order = torch.channels_last if self.engine.channels_last else torch.contiguous_format
        x = x.contiguous(memory_format=order)
        with self._arithmetic():
            y = (
                self.network(x, *conditioning)
                if self._compiled is None
                else self._fast(x, *conditioning)
            )
        return y.to(x.dtype).contiguous()

    def _fast(self, x: Tensor, *conditioning: Tensor | float) -> Tensor:
        from torch._dynamo import config

        assert self._compiled is not None, "the caller has checked"
        try:
            with warnings.catch_warnings(), config.patch(cache_size_limit=_PROGRAMS):
                warnings.simplefilter("ignore")  # of torch.compile about itself
                y: Tensor = self._compiled(x, *conditioning)
        except Exception as error:  # torch documents no list of what compiling raises
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            fault = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise PlanError(
                f"PyTorch {torch.__version__} cannot compile the network here, so leave out"
                f" --compile: {printable(fault)}"
            ) from None
        return y

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """The engine's precision within."""
        precision = self.engine.precision
        if precision in _REDUCED:
            with torch.autocast(self._kind, _REDUCED[precision]):
                yield
        elif precision == "tf32":
            with _tf32():
                yield
        else:
            yield


def run_by(engine: Engine, network: nn.Module, device: torch.device) -> nn.Module:
    """The network behind an engine; itself behind the default one.

    Raises:
        PlanError: the device cannot compute in this precision.
    """
    return network if engine == PLAIN else EngineNetwork(network, engine, device)


def in_float32(purifier: Purifier) -> Purifier | None:
    """The same purifier with its network in float32; none if it is, or has no network."""
    if not isinstance(purifier, DiffusionPurifier | FeedforwardPurifier):
        return None
    network = purifier.network
    if not isinstance(network, EngineNetwork) or network.engine.precision == "float32":
        return None
    return replace(purifier, network=network.network)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    """TF32 within, for the forward pass: products of a backward pass stay in float32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def _check_precision(engine: Engine, device: torch.device) -> None:
    """Raise PlanError unless the device computes in the engine's precision."""
    precision = engine.precision
    if precision == "tf32" and device.type != "cuda":
        raise PlanError(
            f"precision tf32 exists on CUDA devices only, not on {device}, which has bfloat16"
        )
    if precision not in _REDUCED:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # autocast warns, and then does nothing
            torch.autocast(device.type, _REDUCED[precision])
    except (RuntimeError, UserWarning):
        raise PlanError(
            f"precision {precision}: {device} with PyTorch {torch.__version__} has none;"
            " leave out --precision"
        ) from None
