"""Graphs that need PyTorch's own loaders, which can execute code in the file."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.containers.zip_checks import check_archive

_FAULTS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AssertionError)


class TorchNetwork:
    """A TorchScript archive, or an exported program beyond plain operators.

    Given float64 it uses widened weights, which fails where the graph names float32 explicitly.
    """

    def __init__(self, path: Path, device: torch.device, allowed: bool) -> None:
        """Load the file, which may execute any code in it.

        Args:
            path: the file.
            device: to run on.
            allowed: whether the user allows it.

        Raises:
            CheckpointError: it is not allowed, or it cannot be loaded.
        """
        self._path = path
        if not allowed:
            raise CheckpointError(f"{path}: loading it runs code in the file: give --allow-pickle")
        self._wide: Any = None
        script = check_archive(path).kind == "torchscript"
        try:
            self._module = _script(path, device) if script else _exported(path, device)
        except Exception as error:  # whatever the code in the file raises
            raise CheckpointError(f"{path}: PyTorch cannot load it: {_first_line(error)}") from None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output.

        Raises:
            CheckpointError: it fails, or does not return a tensor.
        """
        wide = any(tensor.dtype == torch.float64 for tensor in inputs)
        try:
            if wide and self._wide is None:
                self._wide = copy.deepcopy(self._module).double()
            out = (self._wide if wide else self._module)(*inputs)
        except torch.OutOfMemoryError:
            raise
        except _FAULTS as error:
            raise CheckpointError(f"{self._path}: cannot compute: {_first_line(error)}") from None
        if not isinstance(out, Tensor):
            kind = printable(type(out).__name__)
            raise CheckpointError(f"{self._path}: returned a {kind}, not a tensor")
        return out


def _exported(path: Path, device: torch.device) -> Any:
    from torch.export import load
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(load(path), device).module()  # its eval() is not implemented


def _script(path: Path, device: torch.device) -> Any:
    load: Any = torch.jit.load
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        module = load(path, map_location=device).eval()
    for weights in module.parameters():
        weights.requires_grad_(False)
    return module


def _first_line(error: Exception) -> str:
    return printable(str(error).strip().partition("\n")[0] or type(error).__name__)
