"""Classifiers with input normalisation."""

from dataclasses import dataclass

from torch import Tensor, nn

from purify_audit.models.protocols import ClassifierFromCard
from purify_audit.spec.card import ClassifierCard


@dataclass(frozen=True, slots=True)
class NormalisedClassifier(ClassifierFromCard):
    """A network preceded by its normalisation.

    Attributes:
        card: its settings.
        network: normalised images to logits; in eval mode.
        mean: [1, channels, 1, 1].
        std: [1, channels, 1, 1].
    """

    card: ClassifierCard
    network: nn.Module
    mean: Tensor
    std: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images float32 [n, channels, height, width] in [0, 1]."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits
