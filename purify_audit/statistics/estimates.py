"""Records of the numbers in a report. No numpy, no torch."""

from typing import Literal

from purify_audit.core.records import Record
from purify_audit.spec.norms import Norm

Kind = Literal["spearman", "kendall", "pearson"]


class Estimate(Record):
    """One number of a report, with its interval.

    Attributes:
        metric: one of `metrics.METRICS` (`docs/method.md`, section 2).
        norm: l2, linf, or none.
        probe: name of the probe, or none.
        eps: radius of the probe in pixel units, or none.
        value: the estimate.
        lower: lower end of the interval; none when there are too few images to estimate the spread.
        upper: upper end.
        level: confidence of the interval, over all looks together.
        method: how the interval was computed.
        n_images: images, the clusters of the interval.
        n_draws: draws per image; none where the value has no randomness, or no fixed number.
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
    """Quantiles of a metric over images.

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
    """Per-image fooling rate: the share of scoring draws under which an image is misclassified.

    Attributes:
        attack: whose images; `clean` for the images themselves.
        eps: radius, or none for `clean`.
        quantiles: 5, 25, 50, 75 and 95% of the rate over images.
        fool_none: images misclassified under no draw.
        fool_some: images misclassified under some draws.
        fool_all: images misclassified under every draw.
    """

    attack: str
    eps: float | None
    quantiles: tuple[float, float, float, float, float]
    fool_none: int
    fool_some: int
    fool_all: int


class CapPoint(Record):
    """Share of random directions at one radius (l2) that change the predicted label.

    Attributes:
        radius: length of the directions.
        bare: for the classifier alone: share, and the ends of its interval.
        purified: the same with the purifier in front of the classifier.
    """

    radius: float
    bare: tuple[float, float | None, float | None]
    purified: tuple[float, float | None, float | None]


class Convergence(Record):
    """What an independent continuation of the main attack still breaks (`docs/method.md`, 11).

    It starts at other random points, and its runs are twice as long.

    Attributes:
        images: on which both attacks were run.
        standing: of them, those that the main attack leaves correct under some aligned draw.
        broken: of these, those on which the continuation fools more draws.
        upper: one-sided 95% upper limit of the share of standing images that it breaks
            (Clopper and Pearson 1934); 1 where none stand.
        robust_accuracy: aligned, of the main attack alone.
        continued: aligned, of the continuation alone; the difference is what seeds make.
    """

    images: int
    standing: int
    broken: int
    upper: float
    robust_accuracy: float
    continued: float


class ImageVerdict(Record):
    """Compression rates and attack outcome of one image.

    Attributes:
        image: image id.
        label: true label.
        margin: z_y − max_{i≠y} z_i of P(x; ξ), mean over aligned draws.
        robust: share of aligned draws classified correctly at the first radius.
        fooling_radius: smallest radius tried at which half of the aligned draws are fooled; none:
            there was none.
        rates: compression rates (l2) by probe, and `attack` along the attack's own direction.
        broken_by: the run that fooled at least half of the aligned draws (`RUNS` of
            `statistics.attack_rows`); none: no run did, or it is unknown.
    """

    image: int
    label: int
    margin: float
    robust: float
    fooling_radius: float | None
    rates: dict[str, float]
    broken_by: str | None = None


class Correlation(Record):
    """One correlation coefficient of n pairs.

    Attributes:
        kind: which.
        value: the coefficient; none when x or y does not vary, or for fewer than two pairs.
        lower: lower end of the BCa interval; none for fewer than 4 pairs, for resamples that all
            agree, or for a coefficient that depends on a single pair.
        upper: upper end.
        level: confidence of the interval.
        p: two-sided permutation p value; none for fewer than 4 pairs.
        leave_one_out: smallest and largest value with one pair left out; none when one of these
            is undefined.
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
        p_value: two-sided exact McNemar p value; none where values are not 0 or 1.
        surely_differs: whether the difference is significant: the test rejects equality at the
            interval's level; true where there is no such test.
    """

    change: Estimate
    baseline: float
    p_value: float | None
    surely_differs: bool
