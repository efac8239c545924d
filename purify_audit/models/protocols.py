"""Interfaces of purifiers and classifiers, as estimators and attacks use them."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from purify_audit.core.noise import Noise
from purify_audit.spec.card import ImageSpec


@runtime_checkable
class Purifier(Protocol):
    """A pure function of an image and a draw.

    Attributes:
        image: the images it takes and returns.
        randomised: whether the output depends on the draw.
        evaluations: network evaluations in one purification of one image (its cost).
    """

    @property
    def image(self) -> ImageSpec: ...  # noqa: D102 - described above

    @property
    def randomised(self) -> bool: ...  # noqa: D102

    @property
    def evaluations(self) -> int: ...  # noqa: D102

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Purify images.

        Args:
            x: float32 [n, channels, height, width], pixels in [0, 1], on the purifier's device.
            noise: n addresses on the same device; the only source of randomness.

        Returns:
            Purified images of the same shape, dtype and range. Row i depends on x[i] and on
            noise row i alone.
        """
        ...


Step = Callable[[Tensor], Tensor]
"""A part of a purification: images of one shape to images of the same shape."""


@runtime_checkable
class Chained(Protocol):
    """A purifier given step by step, so that a gradient needs the memory of one step only."""

    def chain(self, noise: Noise) -> Iterator[Step]:
        """Steps whose composition, first to last, is exactly the purification under `noise`.

        A step that is called again returns the same bits: its random numbers are addressed.
        """
        ...


@runtime_checkable
class Classifier(Protocol):
    """Logits of images.

    Attributes:
        image: the images it takes.
        classes: the number of logits.
    """

    @property
    def image(self) -> ImageSpec: ...  # noqa: D102

    @property
    def classes(self) -> int: ...  # noqa: D102

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images float32 [n, channels, height, width] in [0, 1]."""
        ...


class FromCard:
    """Properties that every model reads from its card."""

    __slots__ = ()
    card: Any

    @property
    def image(self) -> ImageSpec:
        """The images it takes; a purifier returns such images too."""
        spec: ImageSpec = self.card.image
        return spec


class PurifierFromCard(FromCard):
    """Properties that a purifier reads from its card."""

    __slots__ = ()

    @property
    def randomised(self) -> bool:
        """Whether the output depends on the draw."""
        return bool(self.card.randomised)

    @property
    def evaluations(self) -> int:
        """Network evaluations in one purification of one image."""
        return int(self.card.evaluations)


class ClassifierFromCard(FromCard):
    """Properties that a classifier reads from its card."""

    __slots__ = ()

    @property
    def classes(self) -> int:
        """The number of logits."""
        return int(self.card.classes)


def is_differentiable(model: Purifier | Classifier) -> bool:
    """Whether a gradient can be taken through a model; an exported ONNX graph has none."""
    return bool(getattr(model, "differentiable", True))
