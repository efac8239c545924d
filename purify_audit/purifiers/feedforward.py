"""Feed-forward purifiers: one pass of a network, with noise added first or not."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from purify_audit.card import FeedforwardCard, ImageSpec
from purify_audit.noise import Noise


@dataclass(frozen=True, slots=True)
class FeedforwardPurifier:
    """A denoising autoencoder (Meng and Chen 2017), or noise-then-denoise when sigma > 0.

    Attributes:
        card: every choice that was made.
        network: images in the card's data range to images in it; in eval mode.
    """

    card: FeedforwardCard
    network: nn.Module

    @property
    def image(self) -> ImageSpec:
        """The images it takes and returns."""
        return self.card.image

    @property
    def randomised(self) -> bool:
        """Whether noise is added before the network."""
        return self.card.randomised

    @property
    def evaluations(self) -> int:
        """One network evaluation."""
        return 1

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Purify images float32 [n, c, h, w] in [0, 1] under their draws."""
        if self.card.sigma > 0.0:
            x = x + self.card.sigma * noise.normal(0, self.card.image.shape).to(x.dtype)
        low, high = self.card.data_range
        image = (self.network(x * (high - low) + low) - low) / (high - low)
        return cast(Tensor, image.clamp(0.0, 1.0) if self.card.clamp else image)
