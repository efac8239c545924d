"""ONNX graphs on ONNX Runtime: CPU, one thread, forward pass only."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.exported.signature import Signature


class OnnxNetwork:
    """Tensors, in the order of a signature, to one tensor on the device of the first.

    One thread, so that the order of summation is fixed. It has no gradient.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        """Start a session.

        Args:
            path: an ONNX file that `read_onnx` has checked.
            signature: its inputs and output.

        Raises:
            CheckpointError: ONNX Runtime is missing, or cannot run the file.
        """
        self._path = path
        self._names = [spec.name for spec in signature.inputs]
        self._output = signature.output.name
        try:
            import onnxruntime
        except ImportError:
            raise CheckpointError(
                f"{path}: running ONNX needs the package onnxruntime:"
                " pip install 'purify-audit[onnx]'"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # the exception reports it
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # which would print and retry
            )
        except Exception as error:  # its errors have no base class of their own
            fault = f"ONNX Runtime {onnxruntime.__version__} cannot run it: {_first_line(error)}"
            raise CheckpointError(f"{path}: {fault}") from None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The graph's output, detached.

        Raises:
            CheckpointError: ONNX Runtime cannot compute it.
        """
        arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in inputs]
        try:
            (out,) = self._session.run([self._output], dict(zip(self._names, arrays, strict=True)))
        except Exception as error:  # see above
            raise CheckpointError(
                f"{self._path}: ONNX Runtime cannot compute it: {_first_line(error)}"
            ) from None
        return torch.from_numpy(out).to(inputs[0].device)


def _first_line(error: Exception) -> str:
    return printable(str(error).strip().partition("\n")[0] or type(error).__name__)
