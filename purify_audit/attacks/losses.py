"""Per-row losses on logits that an attack maximises."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["ce", "dlr", "margin"]


def loss_rows(logits: Tensor, labels: Tensor, loss: Loss, targets: Tensor | None = None) -> Tensor:
    """The loss of each row.

    Args:
        logits: [n, classes].
        labels: int64 [n], the true classes.
        loss: `ce`: cross-entropy; `margin`: max_{i≠y} z_i − z_y (Carlini and Wagner 2017);
            `dlr`: that margin over z_π1 − z_π3, invariant to rescaling of the logits (Croce and
            Hein, "Reliable evaluation of adversarial robustness", ICML 2020, eq. 6; at least
            three classes).
        targets: int64 [n], the classes to be predicted instead, for a targeted attack: `margin` is
            then z_t − z_y, `dlr` that over z_π1 − (z_π3 + z_π4) / 2 (eq. 7; at least four
            classes), `ce` the log-probability of t against y, log σ(z_t − z_y). None: any.

    Returns:
        [n].

    Raises:
        ValueError: `dlr` with fewer than three classes; targeted, with fewer than four.
    """
    if targets is not None:
        return _targeted(logits, labels, targets, loss)
    match loss:
        case "ce":
            # −log softmax as log(1 + Σ_{i≠y} exp(z_i − z_y)): for a confident classifier the
            # gradient of the usual form vanishes by rounding in float32.
            others = logits.scatter(1, labels[:, None], -torch.inf)
            return F.softplus(others.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0])
        case "margin":
            return -margins(logits, labels)
        case "dlr":
            if logits.shape[1] < 3:
                raise ValueError("the DLR loss needs at least three classes")
            top = logits.topk(3, 1).values
            return -margins(logits, labels) / (top[:, 0] - top[:, 2]).clamp(min=1e-12)


def _targeted(logits: Tensor, labels: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    wanted, own = (logits.gather(1, classes[:, None])[:, 0] for classes in (targets, labels))
    match loss:
        case "ce":
            return F.logsigmoid(wanted - own)
        case "margin":
            return wanted - own
        case "dlr":
            if logits.shape[1] < 4:
                raise ValueError("the targeted DLR loss needs at least four classes")
            top = logits.topk(4, 1).values
            return (wanted - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp(min=1e-12)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y − max_{i≠y} z_i of each row [n]: positive where the classifier is correct."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.max(1).values
