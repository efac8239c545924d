"""Records of the random draws of user code, and of draws that cannot be aligned."""

from dataclasses import dataclass


class UnalignedRandomnessError(Exception):
    """A draw that cannot be replaced by addressed numbers: a fault of the audited code.

    Attributes:
        operator: that draws.
        where: `file:line` of the call.
    """

    def __init__(self, operator: str, where: str, reason: str) -> None:
        """The message names the operator, the line and the reason."""
        super().__init__(f"{operator} at {where}: {reason}")
        self.operator, self.where = operator, where


class NeedsFewerRows(Exception):
    """Rows of this batch would share random numbers that must differ between them."""


@dataclass(frozen=True, slots=True)
class DrawSite:
    """A kind of draw; draws of one kind are either all indexed by row or all shared.

    Attributes:
        operator: `aten::randn_like`.
        where: `file:line` of the innermost frame outside of torch and this package.
        rest: the shape without the first axis.
    """

    operator: str
    where: str
    rest: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """One captured draw.

    Attributes:
        site: its kind.
        distribution: of its numbers.
        shape: of its result.
        state: digest of its generator's state, which is its address.
        has_rows: whether the first axis can count rows.
    """

    site: DrawSite
    distribution: str
    shape: tuple[int, ...]
    state: bytes
    has_rows: bool


@dataclass(frozen=True, slots=True)
class CapturedDraw:
    """Draws of one kind in a purification, for a report.

    Attributes:
        operator: `aten::randn_like`, `numpy.random` or `random`.
        distribution: of its numbers; empty where unknown.
        shape: of one image's numbers, or of the whole result where rows share it.
        where: `file:line` of the call; empty where unknown.
        count: draws in one purification.
        per_row: whether each row has separate numbers; else the rows of a batch share them.
        constant: whether the generator was seeded with a constant, so that the numbers are
            always the same.
    """

    operator: str
    distribution: str
    shape: tuple[int, ...]
    where: str
    count: int
    per_row: bool
    constant: bool = False


@dataclass(frozen=True, slots=True)
class Sharing:
    """Knowledge about draws that rows share.

    Attributes:
        shared: kinds of draws whose first axis does not count rows.
        constant: states of generators that were seeded with a constant.
        harmless: whether a batch may share its shared draws because no output depends on them
            (they seed other generators, as torchsde does).
        studied: whether the three are known; else a draw is classified by its shape alone.
    """

    shared: frozenset[DrawSite] = frozenset()
    constant: frozenset[bytes] = frozenset()
    harmless: bool = False
    studied: bool = True


UNSTUDIED = Sharing(harmless=True, studied=False)
