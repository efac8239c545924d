"""The change of one number against a baseline, image by image under the same draws."""

from dataclasses import dataclass

from purify_audit.estimates import Estimate


@dataclass(frozen=True, slots=True)
class Pairing:
    """A paired difference.

    Attributes:
        change: new minus baseline, with its interval.
        baseline: the baseline's mean over the same images.
        p_value: two-sided exact McNemar p value; none where values are no verdicts.
        surely_differs: whether that test rejects equality at the interval's level; true where
            there is no such test.
    """

    change: Estimate
    baseline: float
    p_value: float | None
    surely_differs: bool
