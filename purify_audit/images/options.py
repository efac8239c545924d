"""Options after a path: `:train`, `:validation`, `:coarse`, `:label=NAME`, `:image=NAME`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from purify_audit.core.errors import ImageError

_WORD = r"(?:train|validation|coarse|(?:label|image)=[^,:/]+)"
_ENDING = re.compile(rf"(.+?):({_WORD}(?:,{_WORD})*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Options:
    """The part of a source to read, and the kind of its labels.

    Attributes:
        part: the split; default: the test set, or everything.
        coarse: use CIFAR-100's 20 coarse classes.
        label: name of the column of labels.
        image: name of the column of pictures.
    """

    part: Literal["train", "validation"] | None = None
    coarse: bool = False
    label: str | None = None
    image: str | None = None

    @property
    def words(self) -> list[str]:
        """The options that were given, without column names."""
        named = [name for name in ("label", "image") if getattr(self, name) is not None]
        return [*filter(None, (self.part, "coarse" if self.coarse else "")), *named]


def split_source(source: str) -> tuple[Path, Options]:
    """A path and the options after it, separated by commas: `cifar-100-python:train,coarse`.

    A path that exists as written has no options, whatever its ending.

    Raises:
        ImageError: an option is repeated.
    """
    match = None if Path(source).exists() else _ENDING.fullmatch(source)
    if match is None:
        return Path(source), Options()
    given: dict[str, str] = {}
    for word in match[2].split(","):
        name, _, value = word.partition("=")
        name, value = ("part", word) if word in ("train", "validation") else (name, value)
        if name in given:
            raise ImageError(f"{source}: '{word}' repeats or contradicts an option before it")
        given[name] = value
    part = cast(Literal["train", "validation"] | None, given.get("part"))
    return Path(match[1]), Options(part, "coarse" in given, given.get("label"), given.get("image"))
