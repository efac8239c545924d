"""Purifiers and classifiers from factories: importable functions that make them.

A factory is named `package.module:function`, `path/to/file.py:function`, or by the name under which
an installed package registered it (entry points of the groups `purify_audit.purifiers` and
`purify_audit.classifiers`). Naming one runs its code. An object that is there already (a module's
`model`) may be named instead.

What it returns is called with images [n, channels, height, width] in [0, 1] and returns as many
images (or logits). A purifier's own attributes say more, where it has them: `image_shape`
(channels, height, width), `data_range` (what pixels 0 and 1 are mapped to before it is called),
`evaluations` (of a network in one purification), `randomised`.
"""

from dataclasses import replace

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from purify_audit.core.noise import Noise
from purify_audit.core.records import first_fault, printable
from purify_audit.models.checkpoint import Checkpoint
from purify_audit.models.user_code.arguments import CLASSIFIERS, FactoryError
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
    """A factory as a checkpoint: no tensors, and a card that its code was run for.

    What the factory makes is kept for `load_code_purifier` and `load_code_classifier`.

    Args:
        source: the factory's name.
        arguments: for it, as text.
        image: the images it will get, if they are known.
        classifier: whether it makes a classifier.
        device: where its code is run.

    Raises:
        FactoryError: see `purifier_from_factory`.
        UserCodeError: importing it, calling it or running what it made raised an exception.
    """
    network = CodeArgs(factory=source, arguments=arguments)
    card: CodeCard | ClassifierCard
    if classifier:
        card, _ = classifier_from_factory(network, device, image)
        return Checkpoint(source, card, {}, code_sha256(network, CLASSIFIERS), None)
    card, _ = purifier_from_factory(network, device, image)
    return Checkpoint(source, card, {}, code_sha256(network), None)


def purifier_from_factory(
    network: CodeArgs, device: torch.device, image: ImageSpec | None = None
) -> tuple[CodeCard, UserPurifier]:
    """The purifier that a factory makes, and what is known of it.

    Args:
        network: the factory and its arguments.
        device: where it will run; networks that are found in it are moved there.
        image: the images it will get, if it does not say itself.

    Raises:
        FactoryError: the factory cannot be found or called; or what it made contradicts itself or
            the images, or nobody says which images it takes.
        UserCodeError: its code raised an exception. It is run on a few grey images, unless it
            says whether it is `randomised`.
    """
    code = load_factory(network.factory, network.arguments, device=device)
    card = _purifier_card(network, code, _image(network.factory, code, image))
    purifier = load_code_purifier(card, device)
    if not hasattr(code, "randomised"):
        try:
            randomised = purifier.handling(_grey(card.image, device)).randomised
        except UnalignedRandomnessError:  # preflight tells
            randomised = True
        purifier = replace(purifier, card=card.model_copy(update={"randomised": randomised}))
    return purifier.card, purifier


def load_code_purifier(card: CodeCard, device: torch.device) -> UserPurifier:
    """The purifier of a card that was made before.

    Raises:
        FactoryError: see `load_factory`; or its `data_range` is none.
        UserCodeError: importing or calling the factory raised an exception.
    """
    network = card.network
    code = load_factory(network.factory, network.arguments, device=device)
    _move(network.factory, code, device)
    return UserPurifier(card, code, _data_range(network.factory, code))


def classifier_from_factory(
    network: CodeArgs, device: torch.device, image: ImageSpec | None = None
) -> tuple[ClassifierCard, UserClassifier]:
    """The classifier that a factory makes, in eval mode, and what is known of it.

    It takes images in [0, 1]: normalisation is its own affair. Its logits are counted by running
    it on a few grey images.

    Raises:
        FactoryError: see `purifier_from_factory`; or it is random.
        UserCodeError: its code raised an exception, or returned no logits.
    """
    source = network.factory
    code = load_factory(source, network.arguments, group=CLASSIFIERS, device=device)
    spec = _image(source, code, image)
    try:
        card = ClassifierCard(
            name=_name(source),
            image=spec,
            provenance=_provenance(network),
            network=network,
            classes=_classes(source, code, _grey(spec, device)),
            mean=(0.0,) * spec.channels,
            std=(1.0,) * spec.channels,
        )
    except ValidationError as error:
        raise FactoryError(f"{source}: {first_fault(error)}") from None
    return card, load_code_classifier(card, device)


def load_code_classifier(card: ClassifierCard, device: torch.device) -> UserClassifier:
    """The classifier of a card that was made before, in eval mode.

    Raises:
        FactoryError: see `load_factory`.
        UserCodeError: importing or calling the factory raised an exception.
    """
    assert isinstance(card.network, CodeArgs), "the caller picks cards of code"
    source = card.network.factory
    code = load_factory(source, card.network.arguments, group=CLASSIFIERS, device=device)
    _to_use(source, code, device)
    return UserClassifier(card, code)


def _image(source: str, code: object, given: ImageSpec | None) -> ImageSpec:
    """Which images an object takes: what it says, else what it is given."""
    shape = getattr(code, "image_shape", None)
    if shape is None:
        if given is None:
            raise FactoryError(
                f"{source}: does not say which images it takes; name some with --data, or give the"
                " object an attribute image_shape = (channels, height, width)"
            )
        return given
    try:
        channels, height, width = shape
        own = ImageSpec(channels=channels, height=height, width=width)
    except (TypeError, ValueError) as error:
        fault = first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise FactoryError(f"{source}: image_shape: {printable(fault)}") from None
    if given is not None and own != given:
        raise FactoryError(
            f"{source}: takes images of shape {list(own.shape)} (channels, height, width), not"
            f" {list(given.shape)}"
        )
    return own


def _purifier_card(network: CodeArgs, code: object, image: ImageSpec) -> CodeCard:
    try:
        return CodeCard(
            name=_name(network.factory),
            image=image,
            provenance=_provenance(network),
            network=network,
            randomised=getattr(code, "randomised", True),
            evaluations=getattr(code, "evaluations", 1),
        )
    except ValidationError as error:
        raise FactoryError(f"{network.factory}: {first_fault(error)}") from None


def _data_range(source: str, code: object) -> tuple[float, float]:
    try:
        found: tuple[float, float] = TypeAdapter(DataRange).validate_python(
            getattr(code, "data_range", (0.0, 1.0))
        )
    except ValidationError as error:
        raise FactoryError(f"{source}: data_range: {first_fault(error)}") from None
    return found


def _move(source: str, code: object, device: torch.device) -> None:
    with user_code_errors(source):
        for module in modules_of(code):
            module.to(device)


def _to_use(source: str, code: object, device: torch.device) -> None:
    """A classifier is a function of the image alone."""
    _move(source, code, device)
    for module in modules_of(code):
        module.eval()


def _classes(source: str, code: Code, x: Tensor) -> int:
    """The number of logits."""
    _to_use(source, code, x.device)
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


def _name(source: str) -> str:
    return source[-200:]


def _provenance(network: CodeArgs) -> Provenance:
    arguments = ", ".join(f"{name}={value}" for name, value in network.arguments.items())
    return Provenance(data=_NOT_TOLD, command=f"{network.factory}({arguments})", licence=_NOT_TOLD)
