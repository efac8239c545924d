"""Plain networks, and building the one that a card asks for."""

from torch import nn

from purify_audit.card import ClassifierCard, DiffusionCard, FeedforwardCard
from purify_audit.choices import CifarResNetArgs, CnnArgs
from purify_audit.networks.autoencoder import Autoencoder
from purify_audit.networks.classifiers import CifarResNet, Cnn
from purify_audit.networks.unet import UNet


def build_network(card: DiffusionCard | FeedforwardCard | ClassifierCard) -> nn.Module:
    """The network of a card, with untrained weights, on the current default device."""
    channels = card.image.channels
    match card:
        case DiffusionCard():
            a = card.network
            out = channels * (2 if card.learned_variance else 1)
            return UNet(channels, out, a.width, a.multipliers, a.blocks, a.attention, a.groups)
        case FeedforwardCard():
            return Autoencoder(channels, card.network.widths)
        case ClassifierCard(network=CnnArgs(widths=widths, hidden=hidden)):
            return Cnn(card.image.shape, widths, hidden, card.classes)
        case ClassifierCard(network=CifarResNetArgs(depth=depth)):
            return CifarResNet(channels, depth, card.classes)
    raise AssertionError(f"no network for {card}")
