"""The numbers of a report, as frozen data that needs neither numpy nor torch to be read."""

from typing import Literal

from purify_audit.core.records import Record
from purify_audit.spec.norms import Norm

Kind = Literal["spearman", "kendall", "pearson"]


class Estimate(Record):
    """One number of a report, with its interval.

    Attributes:
        metric: what it is; the names are fixed (`docs/method.md`, section 2).
        norm: l2, linf, or none.
        probe: name of the probe, or none.
        eps: radius of the probe in pixel units, or none.
        value: the estimate.
        lower: end of the interval; none when too few images tell nothing about the spread.
        upper: the other end.
        level: confidence of the interval, over all looks together.
        method: how the interval was made.
        n_images: clusters.
        n_draws: draws of each image.
    """

    metric: str
    norm: Norm | None = None
    probe: str | None = None
    eps: float | None = None
    value: float
    lower: float | None
    upper: float | None
    level: float
    method: str
    n_images: int
    n_draws: int | None = None


class Quantiles(Record):
    """How per-image values spread over images.

    Attributes:
        metric: see `Estimate`, as for norm, probe and eps.
        norm: see `metric`.
        probe: see `metric`.
        eps: see `metric`.
        quantiles: 5, 25, 50, 75 and 95%.
        n_images: how many images.
    """

    metric: str
    norm: Norm | None = None
    probe: str | None = None
    eps: float | None = None
    quantiles: tuple[float, float, float, float, float]
    n_images: int


class Fuzziness(Record):
    """How an attack's images fare over scoring draws: the share of draws that misclassify each.

    Attributes:
        attack: whose images; `clean` for the images themselves.
        eps: radius, or none for `clean`.
        quantiles: 5, 25, 50, 75 and 95% over images of that share.
        fool_none: images that no draw misclassifies.
        fool_some: images that some draws do, not all.
        fool_all: images that every draw does.
    """

    attack: str
    eps: float | None
    quantiles: tuple[float, float, float, float, float]
    fool_none: int
    fool_some: int
    fool_all: int


class CapPoint(Record):
    """Share of random directions at one radius (l2) that flip a decision.

    Attributes:
        radius: length of the directions.
        bare: of the classifier alone: share, and the ends of its interval.
        purified: the same of the classifier behind the purifier.
    """

    radius: float
    bare: tuple[float, float | None, float | None]
    purified: tuple[float, float | None, float | None]


class ImageVerdict(Record):
    """One image: what compression says of it, and what the attack did.

    Attributes:
        image: image id.
        label: true label.
        margin: z_y − max_{i≠y} z_i of its anchors, mean over aligned draws.
        robust: share of aligned draws that stand at the first radius.
        fooling_radius: smallest radius seen at which half of the aligned draws fall; none: it stands.
        rates: compression rates (l2) by probe, and `attack` along the attack's own direction.
    """

    image: int
    label: int
    margin: float
    robust: float
    fooling_radius: float | None
    rates: dict[str, float]


class Correlation(Record):
    """One coefficient of n pairs.

    Attributes:
        kind: which.
        value: the coefficient; none when x or y does not vary, or for fewer than two pairs.
        lower: end of the BCa interval; none when the data do not give one: fewer than 4 pairs,
            resamples that all agree, or a coefficient that hangs on a single pair.
        upper: the other end.
        level: confidence of the interval.
        p: two-sided permutation p value; none for fewer than 4 pairs.
        leave_one_out: smallest and largest value with one pair left out; none when leaving one of
            them out leaves no coefficient.
        n: pairs.
    """

    kind: Kind
    value: float | None
    lower: float | None = None
    upper: float | None = None
    level: float
    p: float | None = None
    leave_one_out: tuple[float, float] | None = None
    n: int


class Pairing(Record):
    """The change of an estimate against a baseline, paired by image.

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
