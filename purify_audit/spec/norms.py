"""Norms, radii and other shared numeric types."""

from typing import Annotated, Literal

from pydantic import Field

Norm = Literal["l2", "linf"]


NORMS: tuple[Norm, ...] = ("l2", "linf")


Radius = Annotated[float, Field(gt=0)]


Positive = Annotated[int, Field(ge=1)]


def check_radii(norm: Norm, eps: tuple[float, ...]) -> None:
    """Raise ValueError for a repeated radius, or an l-inf radius beyond the pixel range."""
    if len(set(eps)) != len(eps):
        raise ValueError("a radius is given twice")
    if norm == "linf" and max(eps) > 1:
        raise ValueError(f"an l-inf radius of {max(eps)} is more than the pixel range")
