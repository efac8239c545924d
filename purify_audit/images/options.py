"""What may follow a path: `:train`, `:validation`, `:coarse`, `:label=NAME`, `:image=NAME`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from purify_audit.core.errors import ImageError

_WORD = r"(?:train|validation|coarse|(?:label|image)=[^,:/]+)"
_ENDING = re.compile(rf"(.+?):({_WORD}(?:,{_WORD})*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Options:
    """Which part of a source, and which of its labels.

    Attributes:
        part: the split; none is the test set, or all there is.
        coarse: CIFAR-100's 20 coarse classes.
        label: the column of labels.
        image: the column of pictures.
    """

    part: Literal["train", "validation"] | None = None
    coarse: bool = False
    label: str | None = None
    image: str | None = None

    @property
    def words(self) -> list[str]:
        """How the user wrote them, without the columns' names."""
        named = [name for name in ("label", "image") if getattr(self, name) is not None]
        return [*filter(None, (self.part, "coarse" if self.coarse else "")), *named]


def split_source(source: str) -> tuple[Path, Options]:
    """A path and the options after it, separated by commas: `cifar-100-python:train,coarse`.

    A path that exists as it is written has no options, whatever it ends in.

    Raises:
        ImageError: an option is given twice.
    """
    match = None if Path(source).exists() else _ENDING.fullmatch(source)
    if match is None:
        return Path(source), Options()
    given: dict[str, str] = {}
    for word in match[2].split(","):
        name, _, value = word.partition("=")
        name, value = ("part", word) if word in ("train", "validation") else (name, value)
        if name in given:
            raise ImageError(f"{source}: '{word}' repeats or contradicts what is before it")
        given[name] = value
    return Path(match[1]), Options(
        part=_part(given.get("part")),
        coarse="coarse" in given,
        label=given.get("label"),
        image=given.get("image"),
    )


def _part(word: str | None) -> Literal["train", "validation"] | None:
    return "train" if word == "train" else "validation" if word == "validation" else None
