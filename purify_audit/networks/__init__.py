"""Plain networks, and building the one that a card asks for."""

from torch import nn

from purify_audit.architectures import AutoencoderArgs, CifarResNetArgs, CnnArgs, UNetArgs
from purify_audit.card import ClassifierCard, DiffusionCard, FeedforwardCard
from purify_audit.networks.autoencoder import Autoencoder
from purify_audit.networks.classifiers import CifarResNet, Cnn
from purify_audit.networks.unet import UNet


def build_network(card: DiffusionCard | FeedforwardCard | ClassifierCard) -> nn.Module:
    """The network of a card, with untrained weights, on the current default device."""
    match card:
        case DiffusionCard():
            return _diffusion_network(card)
        case FeedforwardCard():
            return _restoration_network(card)
        case ClassifierCard():
            return _classifier(card)


def _diffusion_network(card: DiffusionCard) -> nn.Module:
    """(noisy images, times) to a prediction."""
    channels = card.image.channels
    out = channels * (2 if card.learned_variance else 1)
    match card.network:
        case UNetArgs() as a:
            layout = a.width, a.multipliers, a.blocks, a.attention, a.groups, a.patch
            return UNet(channels, out, *layout)
    raise AssertionError(f"no network for {card.network}")


def _restoration_network(card: FeedforwardCard) -> nn.Module:
    """Images to images; those told a level of noise take it as a second argument."""
    channels = 1 if card.per_channel else card.image.channels
    match card.network:
        case AutoencoderArgs(widths=widths):
            return Autoencoder(channels, widths)
    raise AssertionError(f"no network for {card.network}")


def _classifier(card: ClassifierCard) -> nn.Module:
    """Normalised images to logits."""
    match card.network:
        case CnnArgs(widths=widths, hidden=hidden):
            return Cnn(card.image.shape, widths, hidden, card.classes)
        case CifarResNetArgs(depth=depth):
            return CifarResNet(card.image.channels, depth, card.classes)
    raise AssertionError(f"no network for {card.network}")
