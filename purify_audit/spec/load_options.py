"""How a file that is not ours is to be read: what the user answers, and what was concluded."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from purify_audit.core.records import Record

FORMER_FIELDS = {"clock": "time_conditioning"}
"""Former names of a card's fields, which are still accepted."""


class LoadOptions(Record):
    """The user's answers to what a checkpoint, a graph or code does not say of itself.

    Attributes:
        preset: a published way of running it (`purify_audit.models.formats.presets`).
        weights: which of two sets of weights, where a file holds both.
        allow_pickle: unpickle what may run code.
        assume: fields of a card that nothing else gives, by dotted name, as text
            (`t_star=100`, `data_range=-1,1`, `schedule.kind=cosine`).
        arguments: given to a factory.
    """

    preset: str | None = None
    weights: Literal["ema", "raw"] | None = None
    allow_pickle: bool = False
    assume: dict[str, str] = Field(default_factory=dict)
    arguments: dict[str, str] = Field(default_factory=dict)

    @field_validator("assume")
    @classmethod
    def _current_names(cls, assume: dict[str, str]) -> dict[str, str]:
        """Answers under a card field's former name count as answers under its present one."""
        return {FORMER_FIELDS.get(name, name): text for name, text in assume.items()}


class Assumption(Record):
    """One thing that a checkpoint does not say, and what was taken for it.

    Attributes:
        what: a field of the card, or what else had to be known.
        value: what was taken.
        source: on whose word: a preset, the user, or a convention of the format.
    """

    what: str
    value: str
    source: str


class Recognised(Record):
    """What a foreign file was taken for.

    Attributes:
        format: whose layout it has.
        container: how it is stored: `zip pickle`, `legacy pickle`, `safetensors`, `directory`, ...
        unpickled: whether `allow_pickle` was needed, so that code in it may have run.
        assumptions: what it does not say itself.
    """

    format: str
    container: Annotated[str, Field(max_length=100)]
    unpickled: bool = False
    assumptions: tuple[Assumption, ...] = ()
