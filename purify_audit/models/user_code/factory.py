"""Purifiers and classifiers from factories: importable functions that return them.

A factory is named `package.module:function`, `path/to/file.py:function`, or by the name under which
an installed package registers it (entry points of the groups `purify_audit.purifiers` and
`purify_audit.classifiers`). Naming one runs its code. An existing object (a module's `model`) may
be named instead.

The result is called with images [n, channels, height, width] in [0, 1] and returns as many images
(or logits). Optional attributes of a purifier describe it: `image_shape` (channels, height, width),
`data_range` (the values that pixels 0 and 1 are mapped to before it is called), `evaluations` (of a
network in one purification), `randomised`.
"""

from dataclasses import replace

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from purify_audit.core.noise import Noise
from purify_audit.core.records import first_fault, printable
from purify_audit.models.checkpoint import Checkpoint
from purify_audit.models.user_code.arguments import CLASSIFIERS, PURIFIERS, FactoryError
from purify_audit.models.user_code.capture import Capture
from purify_audit.models.user_code.classifier import UserClassifier
from purify_audit.models.user_code.draws import UnalignedRandomnessError
from purify_audit.models.user_code.errors import UserCodeError, user_code_errors
from purify_audit.models.user_code.importing import code_sha256, load_factory
from purify_audit.models.user_code.modules import modules_of
from purify_audit.models.user_code.purifier import Code, UserPurifier
from purify_audit.spec.architectures import CodeArgs
from purify_audit.spec.card import ClassifierCard, CodeCard, DataRange, ImageSpec, Provenance

_NOT_TOLD = "not told"
_CPU = torch.device("cpu")


def code_checkpoint(
    source: str,
    arguments: dict[str, str],
    image: ImageSpec | None,
    classifier: bool = False,
    device: torch.device = _CPU,
) -> Checkpoint:
    """A factory as a checkpoint without tensors; its code is run to complete the card.

    The factory's result is cached for `load_code_purifier` and `load_code_classifier`.

    Args:
        source: the factory's name.
        arguments: of the factory, as text.
        image: shape of the images it will receive, if known.
        classifier: whether it returns a classifier.
        device: where its code is run.

    Raises:
        FactoryError: see `purifier_from_factory`.
        UserCodeError: importing it, calling it or running its result raised an exception.
    """
    network = CodeArgs(factory=source, arguments=arguments)
    card: CodeCard | ClassifierCard
    if classifier:
        card, _ = classifier_from_factory(network, device, image)
    else:
        card, _ = purifier_from_factory(network, device, image)
    group = CLASSIFIERS if classifier else PURIFIERS
    return Checkpoint(source, card, {}, code_sha256(network, group), None)


def purifier_from_factory(
    network: CodeArgs, device: torch.device, image: ImageSpec | None = None
) -> tuple[CodeCard, UserPurifier]:
    """The purifier that a factory returns, and its card.

    Args:
        network: the factory and its arguments.
        device: where it will run; the networks in it are moved there.
        image: shape of the images it will receive, if it does not declare one.

    Raises:
        FactoryError: the factory cannot be found or called; its result contradicts itself or the
            images; or the shape of its images is unknown.
        UserCodeError: its code raised an exception. It is run on a few grey images, unless it
            declares whether it is `randomised`.
    """
    source = network.factory
    code = load_factory(source, network.arguments, device=device)
    try:
        card = CodeCard(
            name=source[-200:],
            image=_image(source, code, image),
            provenance=_provenance(network),
            network=network,
            randomised=getattr(code, "randomised", True),
            evaluations=getattr(code, "evaluations", 1),
        )
    except ValidationError as error:
        raise FactoryError(f"{source}: {first_fault(error)}") from None
    purifier = load_code_purifier(card, device)
    if not hasattr(code, "randomised"):
        try:
            randomised = purifier.handling(_grey(card.image, device)).randomised
        except UnalignedRandomnessError:  # reported by preflight
            randomised = True
        purifier = replace(purifier, card=card.model_copy(update={"randomised": randomised}))
    return purifier.card, purifier


def load_code_purifier(card: CodeCard, device: torch.device) -> UserPurifier:
    """The purifier of an existing card.

    Raises:
        FactoryError: see `load_factory`; or its `data_range` is invalid.
        UserCodeError: importing or calling the factory raised an exception.
    """
    code = _load_code(card.network, PURIFIERS, device)
    try:
        data_range: DataRange = TypeAdapter(DataRange).validate_python(
            getattr(code, "data_range", (0.0, 1.0))
        )
    except ValidationError as error:
        fault = first_fault(error)
        raise FactoryError(f"{card.network.factory}: data_range: {fault}") from None
    return UserPurifier(card, code, data_range)


def classifier_from_factory(
    network: CodeArgs, device: torch.device, image: ImageSpec | None = None
) -> tuple[ClassifierCard, UserClassifier]:
    """The classifier that a factory returns, in eval mode, and its card.

    It takes images in [0, 1] and normalises them itself. The number of classes is that of its
    logits on a few grey images.

    Raises:
        FactoryError: see `purifier_from_factory`; or it is random.
        UserCodeError: its code raised an exception, or did not return logits.
    """
    source = network.factory
    code = _load_code(network, CLASSIFIERS, device)
    spec = _image(source, code, image)
    try:
        card = ClassifierCard(
            name=source[-200:],
            image=spec,
            provenance=_provenance(network),
            network=network,
            classes=_classes(source, code, _grey(spec, device)),
            mean=(0.0,) * spec.channels,
            std=(1.0,) * spec.channels,
        )
    except ValidationError as error:
        raise FactoryError(f"{source}: {first_fault(error)}") from None
    return card, UserClassifier(card, code)


def load_code_classifier(card: ClassifierCard, device: torch.device) -> UserClassifier:
    """The classifier of an existing card, in eval mode.

    Raises:
        FactoryError: see `load_factory`.
        UserCodeError: importing or calling the factory raised an exception.
    """
    assert isinstance(card.network, CodeArgs), "the caller selects cards of code"
    return UserClassifier(card, _load_code(card.network, CLASSIFIERS, device))


def _load_code(network: CodeArgs, group: str, device: torch.device) -> Code:
    """The result of a factory on a device; a classifier in eval mode."""
    code = load_factory(network.factory, network.arguments, group=group, device=device)
    with user_code_errors(network.factory):
        for module in modules_of(code):
            module.to(device)
            if group == CLASSIFIERS:  # a function of the image alone
                module.eval()
    return code


def _image(source: str, code: object, expected: ImageSpec | None) -> ImageSpec:
    """The images that an object declares (`image_shape`), else those that are expected."""
    shape = getattr(code, "image_shape", None)
    if shape is None:
        if expected is None:
            raise FactoryError(
                f"{source}: does not say which images it takes; give a dataset with --data, or"
                " give the object an attribute image_shape = (channels, height, width)"
            )
        return expected
    try:
        channels, height, width = shape
        own = ImageSpec(channels=channels, height=height, width=width)
    except (TypeError, ValueError) as error:
        fault = first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise FactoryError(f"{source}: image_shape: {printable(fault)}") from None
    if expected is not None and own != expected:
        raise FactoryError(
            f"{source}: takes images of shape {list(own.shape)} (channels, height, width), not"
            f" {list(expected.shape)}"
        )
    return own


def _classes(source: str, code: Code, x: Tensor) -> int:
    """The number of logits."""
    capture = Capture(Noise(0, tuple(range(len(x))), (0,) * len(x), device=x.device))
    with torch.no_grad(), capture, user_code_errors(source):
        logits = code(x)
    if not (isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(x)):
        raise UserCodeError(f"{source}: does not return logits [n, classes] of {len(x)} images")
    if capture.draws:
        line = capture.draws[0].site.where
        raise FactoryError(f"{source}: is random (at {line}), and a classifier must not be")
    return logits.shape[1]


def _grey(image: ImageSpec, device: torch.device) -> Tensor:
    """Two grey ramps, one brighter than the other."""
    ramp = torch.linspace(0.3, 0.7, image.height * image.width, device=device)
    plane = ramp.reshape(1, 1, image.height, image.width).expand(2, image.channels, -1, -1)
    return plane + torch.tensor((0.0, 0.1), device=device).reshape(2, 1, 1, 1)


def _provenance(network: CodeArgs) -> Provenance:
    arguments = ", ".join(f"{name}={value}" for name, value in network.arguments.items())
    return Provenance(data=_NOT_TOLD, command=f"{network.factory}({arguments})", licence=_NOT_TOLD)
