"""The metrics of a report: their stage, kind and default probe."""

from dataclasses import dataclass
from typing import Literal, get_args

Stage = Literal["compress", "predict", "attack"]
Kind = Literal["mean", "root", "share", "difference"]

MetricName = Literal[
    "compression_rate",
    "rms_gain",
    "unaligned_ratio",
    "randomness_share",
    "distance_anchor",
    "distance_purified",
    "distance_delta",
    "clean_accuracy",
    "anchor_accuracy",
    "predicted_robust_accuracy",
    "aligned_robust_accuracy",
    "aligned_robust_accuracy_control",
    "aligned_robust_accuracy_excess",
    "heldout_robust_accuracy",
    "heldout_robust_accuracy_control",
    "heldout_robust_accuracy_excess",
    "mean_robust_accuracy",
    "mean_robust_accuracy_control",
    "mean_robust_accuracy_excess",
    "worst_of_k_robust_accuracy",
    "worst_of_k_robust_accuracy_control",
    "worst_of_k_robust_accuracy_excess",
    "vote_robust_accuracy",
    "vote_robust_accuracy_control",
    "vote_robust_accuracy_excess",
    "bare_robust_accuracy",
    "bare_robust_accuracy_control",
    "randomness_inflation",
]
METRICS: tuple[MetricName, ...] = get_args(MetricName)


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """Properties of a metric.

    Attributes:
        stage: the stage of an audit that measures it.
        kind: `mean` of any numbers over images, `root` of a mean, `share` in [0, 1],
            `difference` of two shares in [−1, 1].
        probe: the default probe (or attack); none: every probe.
        upper_bound: whether it is an upper bound, which a stronger attack could lower.
    """

    stage: Stage
    kind: Kind
    probe: str | None = None
    upper_bound: bool = False


def metric_info(metric: str) -> MetricInfo:
    """Properties of a metric of `METRICS`."""
    if metric == "predicted_robust_accuracy":
        return MetricInfo("predict", "share")
    if metric == "randomness_inflation":
        return MetricInfo("attack", "difference", "fresh")
    if "robust_accuracy" in metric:
        probe = "bare" if metric.startswith("bare") else "aligned"
        kind: Kind = "difference" if metric.endswith("_excess") else "share"
        return MetricInfo("attack", kind, probe, upper_bound=metric.endswith("_accuracy"))
    if metric.endswith("_accuracy"):
        return MetricInfo("compress", "share")
    return MetricInfo("compress", "root" if metric == "rms_gain" else "mean")
