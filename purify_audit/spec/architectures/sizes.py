"""Bounded numeric types of network sizes.

Levels count from 0 at full resolution; each level after the first halves the resolution.
"""

from typing import Annotated

from pydantic import Field

Channels = Annotated[int, Field(ge=1, le=4096)]
"""Bounded, so that a hostile card cannot ask for a network that never finishes building."""

Multipliers = Annotated[
    tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8)
]
Blocks = Annotated[int, Field(ge=1, le=16)]
Levels = Annotated[tuple[Annotated[int, Field(ge=0, le=7)], ...], Field(max_length=8)]


def levels_exist(attention: tuple[int, ...], multipliers: tuple[int, ...]) -> None:
    """Raise ValueError if attention is requested at a level that does not exist."""
    if any(level >= len(multipliers) for level in attention):
        raise ValueError(f"attention {attention} names a level that is not there")
