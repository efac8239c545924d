"""Feed-forward purifiers: one pass of a network, with noise added first or not."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from purify_audit.core.noise import Noise
from purify_audit.models.protocols import PurifierFromCard
from purify_audit.spec.card import FeedforwardCard


@dataclass(frozen=True, slots=True)
class FeedforwardPurifier(PurifierFromCard):
    """A denoising autoencoder (Meng and Chen 2017), or noise-then-denoise when sigma > 0.

    Attributes:
        card: its settings.
        network: images in the card's data range to images in it; in eval mode. Where the card has
            a level of noise, the network takes it as a second argument, in units of that range:
            level × (high − low). Where it says `per_channel`, the images have one channel.
    """

    card: FeedforwardCard
    network: nn.Module

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Purify images float32 [n, c, h, w] in [0, 1] under their draws."""
        if self.card.sigma > 0.0:
            x = x + self.card.sigma * noise.normal(0, self.card.image.shape).to(x.dtype)
        low, high = self.card.data_range
        image = (self._restore(x * (high - low) + low) - low) / (high - low)
        return image.clamp(0.0, 1.0) if self.card.clamp else image

    def _restore(self, x: Tensor) -> Tensor:
        """The network's output for images in its data range."""
        low, high = self.card.data_range
        level = () if self.card.level is None else (self.card.level * (high - low),)
        if not self.card.per_channel:
            return cast(Tensor, self.network(x, *level))
        channels = x.reshape(-1, 1, *x.shape[2:])
        return cast(Tensor, self.network(channels, *level)).reshape(x.shape)
