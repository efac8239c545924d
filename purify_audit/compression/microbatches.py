"""Default micro-batch sizes, from the plan and the images alone.

The same command must give the same report, and last digits depend on the size, so nothing is timed
here; `audit.tuning` does that on request.
"""

import torch

from purify_audit.compression.measure import padded_rows
from purify_audit.spec.audit_plan import AuditPlan

# On a CPU a row of fewer pixels is no slower (docs/results.md, section 12). For CUDA, a guess.
_MOST_PIXELS = {"cpu": 2**15, "cuda": 2**18}
_MOST_ROWS = 256
# Small on a CPU: the rest of the last micro-batch is padding, and ever fewer images stand.
_PIXELS_ATTACKED = {"cpu": 2**10, "cuda": 2**18}
_ROWS_ATTACKED = {"cpu": (4, 16), "cuda": (1, 256)}  # fewest and most
# Overhead of a call, in pixels: measured, and a guess.
_CALL_PIXELS = {"cpu": 2**9, "cuda": 2**16}


def default_microbatch(plan: AuditPlan, shape: tuple[int, int, int], device: torch.device) -> int:
    """Micro-batch of a compression audit: a power of two with little padding and overhead.

    Args:
        plan: the plan; its own micro-batch is ignored.
        shape: of the images, (channels, height, width).
        device: of the purifier.
    """
    pixels, call = shape[1] * shape[2], _CALL_PIXELS[device.type]
    most = max(1, min(_MOST_ROWS, _MOST_PIXELS[device.type] // pixels))

    def cost(size: int) -> float:
        rows = padded_rows(plan.model_copy(update={"microbatch": size}), plan.images)
        return rows * (1 + call / (size * pixels))

    return min((1 << n for n in reversed(range(most.bit_length()))), key=cost)


def attack_microbatch(rows: int, shape: tuple[int, int, int], device: torch.device) -> int:
    """Micro-batch of an attack: small, to avoid padding when few images stand.

    Args:
        rows: images times draws.
        shape: of the images, (channels, height, width).
        device: of the attacked model.
    """
    fewest, most = _ROWS_ATTACKED[device.type]
    fitting = _PIXELS_ATTACKED[device.type] // (shape[1] * shape[2])
    return max(1, min(rows, most, max(fewest, fitting)))
