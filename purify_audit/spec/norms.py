"""Norms, radii and other shared numeric types."""

from typing import Annotated, Literal

from pydantic import Field

Norm = Literal["l1", "l2", "linf"]
"""Of a ball: of the probes, or of the attack."""


NORMS: tuple[Norm, ...] = ("l2", "linf")
"""In which rates and distances are measured, whatever the ball."""


Radius = Annotated[float, Field(gt=0)]


Positive = Annotated[int, Field(ge=1)]


def check_radii(norm: Norm, eps: tuple[float, ...]) -> None:
    """Raise ValueError for a repeated radius, or an l-inf radius beyond the pixel range."""
    if len(set(eps)) != len(eps):
        raise ValueError("a radius is given twice")
    if norm == "linf" and max(eps) > 1:
        raise ValueError(f"an l-inf radius of {max(eps)} is more than the pixel range")
