"""Unaligned and aligned rates of user code: its randomness captured, and not captured.

    python benchmarks/capture_study.py [--images 16] [--out benchmarks/capture_study.json]

The code is that of the tests: loops over diffusers' schedulers and its pipeline, torchsde's solver
as DiffPure calls it, torchdiffeq's, a Langevin purifier, dropout left on, and a toy whose rate is
0.9 cubed. Their networks are small and untrained: it is the randomness that is looked at.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import ROOT, interval, parser, provenance, torch_machine, write

sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/models/user_code")]

import user_code_samples as code  # noqa: E402
from subjects import grey_images, pick, run  # noqa: E402
from test_third_party_code import CODE, user_purifier  # noqa: E402
from test_user_code import Unaligned  # noqa: E402

PURIFIERS: dict[str, Callable[[], Any]] = {
    "toy: x ← 0.9 x + 0.05 `torch.randn_like(x)`, three times": lambda: code.three_steps,
    "Langevin on an energy (autograd inside)": code.Langevin,
    "a network with dropout left on": code.Dropout,
    **CODE,
}


class Uncaptured(Unaligned):
    """As a script calls it: gradients on, as code that differentiates inside needs them."""

    def __call__(self, x: torch.Tensor, noise: object) -> torch.Tensor:
        """Purify with whatever randomness comes."""
        with torch.inference_mode(False), torch.enable_grad():
            out: torch.Tensor = self.call(x.clone())
            return out.detach()


DRAWS, DIRECTIONS, EPS = 2, 4, 0.05


def main() -> None:
    """Measure and write."""
    flags = parser(__doc__, "capture_study.json")
    flags.add_argument("--images", type=int, default=16)
    options = flags.parse_args()
    images, start, rows = grey_images(options.images), time.monotonic(), []
    for name, make in PURIFIERS.items():
        settings = {"draws": DRAWS, "directions": DIRECTIONS, "eps": (EPS,)}
        captured, uncaptured, other = (
            pick(run(purifier, images, True, **settings, microbatch=size), "compression_rate", "l2")
            for purifier, size in (
                (user_purifier(make()), 16),
                (Uncaptured(make()), 16),
                (user_purifier(make()), 5),
            )
        )
        row = {"code": name}
        for label, e in (("captured", captured), ("uncaptured", uncaptured)):
            row[label] = interval(e)
        rows.append(row | {"same": abs(other.value / captured.value - 1) < 1e-4})
        print(rows[-1], flush=True)
    command = f"python benchmarks/capture_study.py --images {options.images}"
    result = {
        **provenance(command, torch_machine(), start),
        "images": options.images,
        "draws": DRAWS,
        "rows": rows,
    }
    write(options.out, result)


if __name__ == "__main__":
    main()
