"""Norms, radii and other shared numeric types."""

from typing import Annotated, Literal

from pydantic import Field

Norm = Literal["l2", "linf"]


NORMS: tuple[Norm, ...] = ("l2", "linf")


Radius = Annotated[float, Field(gt=0)]


Positive = Annotated[int, Field(ge=1)]
