"""Network architectures, and `build_network`, which builds that of a card."""

from torch import nn

from purify_audit.models.networks.adm import ADM
from purify_audit.models.networks.autoencoder import Autoencoder
from purify_audit.models.networks.classifiers import CifarResNet, Cnn
from purify_audit.models.networks.ddpm_unet import DDPMUNet
from purify_audit.models.networks.diffusers_unet import diffusers_unet
from purify_audit.models.networks.edm import EDM
from purify_audit.models.networks.lucidrains import LucidrainsUNet
from purify_audit.models.networks.ncsnpp import NCSNpp
from purify_audit.models.networks.restoration import DnCNN, DRUNet, FFDNet
from purify_audit.models.networks.sequential import build_sequential
from purify_audit.models.networks.unet import UNet
from purify_audit.models.networks.wideresnet import WideResNet
from purify_audit.spec import architectures as spec
from purify_audit.spec.card import ClassifierCard, DiffusionCard, FeedforwardCard


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
        case spec.UNetArgs() as a:
            return UNet(
                channels, out, a.width, a.multipliers, a.blocks, a.attention, a.groups, a.patch
            )
        case spec.NCSNppArgs() as a:
            return NCSNpp(card.image, a)
        case spec.EDMArgs() as a:
            return EDM(card.image, a)
        case spec.ADMArgs() as a:
            return ADM(card.image, out, a)
        case spec.DDPMUNetArgs() as a:
            return DDPMUNet(card.image, a, out)
        case spec.LucidrainsArgs() as a:
            return LucidrainsUNet(card.image, out, a)
        case spec.DiffusersArgs() as a:
            return diffusers_unet(a)
    raise AssertionError(f"no network for {card.network}")


def _restoration_network(card: FeedforwardCard) -> nn.Module:
    """Images to images; conditioned on a noise level where that is the second argument."""
    channels = 1 if card.per_channel else card.image.channels
    match card.network:
        case spec.AutoencoderArgs(widths=widths):
            return Autoencoder(channels, widths)
        case spec.SequentialArgs() as chain:
            shape = (channels, card.image.height, card.image.width)
            return build_sequential(chain, shape, shape)
        case spec.DnCNNArgs() as dncnn:
            return DnCNN(channels, dncnn)
        case spec.FFDNetArgs() as ffdnet:
            return FFDNet(channels, ffdnet)
        case spec.DRUNetArgs() as drunet:
            return DRUNet(channels, drunet)
        case spec.SpandrelArgs():  # see `spandrel_model`
            raise ValueError("spandrel finds this network in its tensors; a card cannot build it")


def _classifier(card: ClassifierCard) -> nn.Module:
    """Normalised images to logits."""
    match card.network:
        case spec.CnnArgs(widths=widths, hidden=hidden):
            return Cnn(card.image.shape, widths, hidden, card.classes)
        case spec.CifarResNetArgs(depth=depth):
            return CifarResNet(card.image.channels, depth, card.classes)
        case spec.SequentialArgs() as chain:
            return build_sequential(chain, card.image.shape, (card.classes,))
        case spec.WideResNetArgs() as wide:
            return WideResNet(card.image.channels, card.classes, wide)
    raise AssertionError(f"no network for {card.network}")
