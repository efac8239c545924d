"""Records of the random draws of user code, and of draws that cannot be aligned."""

from dataclasses import dataclass


class UnalignedRandomnessError(Exception):
    """A draw that addressed numbers cannot stand in for: a fault of the audited code.

    Attributes:
        operator: what draws.
        where: the line that called it.
    """

    def __init__(self, operator: str, where: str, why: str) -> None:
        """Say what cannot be aligned, and where it is drawn."""
        super().__init__(f"{operator} at {where}: {why}")
        self.operator, self.where = operator, where


class NeedsFewerRows(Exception):
    """Rows of this batch share numbers that they should each have of their own."""


@dataclass(frozen=True, slots=True)
class DrawSite:
    """A kind of draw: what tells draws that count rows from draws that do not.

    Attributes:
        operator: `aten::randn_like`.
        where: `file:line` of the innermost frame outside of torch and this package.
        rest: the shape behind the first axis.
    """

    operator: str
    where: str
    rest: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw as it was seen.

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
        distribution: of its numbers; empty where it is not known.
        shape: of one image's numbers, or of the whole result where rows share it.
        where: the line that drew; empty where it is not known.
        count: draws in one purification.
        per_row: whether each row has its own numbers; else the rows of a batch share them.
        constant: whether the generator had been seeded with a constant, so that the numbers are
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
    """What is known of draws that rows share.

    Attributes:
        shared: kinds of draws whose first axis does not count rows.
        constant: states of generators that had been seeded with a constant.
        harmless: whether a batch may share its shared draws because no output depends on them
            (they seed other generators, as torchsde does).
        studied: whether the three are known; else a draw is judged by its shape alone.
    """

    shared: frozenset[DrawSite] = frozenset()
    constant: frozenset[bytes] = frozenset()
    harmless: bool = False
    studied: bool = True


UNSTUDIED = Sharing(harmless=True, studied=False)
