"""Classifiers given as user code."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from purify_audit.core.records import printable
from purify_audit.models.protocols import ClassifierFromCard
from purify_audit.models.user_code.errors import UserCodeError, user_code_errors
from purify_audit.models.user_code.modules import precision_of
from purify_audit.models.user_code.purifier import Code
from purify_audit.spec.card import ClassifierCard


@dataclass(frozen=True, slots=True)
class UserClassifier(ClassifierFromCard):
    """Somebody's own classifier, behind the normalisation on its card.

    Attributes:
        card: what is known of it.
        code: normalised images to logits [n, classes].
        any_precision: it runs in float64 when given float64.
    """

    card: ClassifierCard
    code: Code
    any_precision: bool = field(default=True, init=False)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images float32 [n, channels, height, width] in [0, 1].

        Raises:
            UserCodeError: the code raised an exception, or did not return logits.
        """
        assert self.card.network.arch == "code", "the factory's card"
        factory = self.card.network.factory
        mean, std = (
            torch.tensor(v, dtype=x.dtype, device=x.device).reshape(1, -1, 1, 1)
            for v in (self.card.mean, self.card.std)
        )
        with precision_of(x, self.code), user_code_errors(factory):
            logits = self.code((x - mean) / std)
        if not isinstance(logits, Tensor) or logits.shape != (len(x), self.classes):
            shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserCodeError(
                f"{factory}: returned {printable(str(shape))}, not logits of shape"
                f" {[len(x), self.classes]}"
            )
        return logits.to(x.dtype)
