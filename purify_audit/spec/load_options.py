"""Options for reading checkpoints without a card, and the assumptions made while reading."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from purify_audit.core.records import Record

FORMER_FIELDS = {"clock": "time_conditioning"}
"""Former names of a card's fields, which are still accepted."""


class LoadOptions(Record):
    """The user's answers for a checkpoint, graph or code that does not describe itself.

    Attributes:
        preset: a published configuration (`purify_audit.models.formats.presets`).
        weights: which of two sets of weights, where a file holds both.
        allow_pickle: allow pickles, which can execute code.
        assume: fields of the card that nothing else determines, by dotted name, as text
            (`t_star=100`, `data_range=-1,1`, `schedule.kind=cosine`).
        arguments: of a factory.
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
    """A value that the checkpoint does not contain, and its source.

    Attributes:
        what: a field of the card, or another property.
        value: the assumed value.
        source: a preset, the user, or a convention of the format.
    """

    what: str
    value: str
    source: str


class Recognised(Record):
    """How a file without a card was recognised.

    Attributes:
        format: its layout.
        container: how it is stored: `zip pickle`, `legacy pickle`, `safetensors`, `directory`, ...
        unpickled: whether `allow_pickle` was needed, so that code in it may have been executed.
        assumptions: values that it does not contain.
    """

    format: str
    container: Annotated[str, Field(max_length=100)]
    unpickled: bool = False
    assumptions: tuple[Assumption, ...] = ()
