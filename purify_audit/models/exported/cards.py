"""Cards of exported graphs: drafted from the signature, completed by the user, checked against it.

Nothing is guessed: the user states what the signature does not, and each answer is recorded.
"""

from pathlib import Path
from typing import Any

from purify_audit.core.errors import CardError, PlanError
from purify_audit.core.records import printable
from purify_audit.models.exported.signature import Signature, TensorSpec
from purify_audit.models.formats.complete_card import complete_card
from purify_audit.spec.card import ClassifierCard, GraphCard
from purify_audit.spec.load_options import Assumption, LoadOptions

_IMAGE_AXES = 4
_HOW = {
    "family": "family=graph for a purifier or family=classifier, and what that needs",
    "image": "image=CHANNELSxHEIGHTxWIDTH, such as 3x32x32",
    "data_range": "data_range=LOW,HIGH, its input values for pixels 0 and 1, such as -1,1",
    "noise": "noise=inputs if its inputs beside the image are standard normals, noise=seed if there"
    " is one integer that seeds it, noise=captured if it draws by itself, or noise=none",
    "classes": "classes=N, the number of its logits",
    "mean": "mean=[M,…] of its normalisation, for each channel; 0 where it has its own",
    "std": "std=[S,…] of its normalisation, for each channel; 1 where it has its own",
}
_NEEDED = {
    "graph": ("image", "data_range", "noise"),
    "classifier": ("image", "classes", "mean", "std"),
}


def assumed_card(
    path: Path, form: tuple[str, str], signature: Signature | None, options: LoadOptions
) -> tuple[GraphCard | ClassifierCard, tuple[Assumption, ...]]:
    """The card of a graph without one, and the assumptions in it.

    Args:
        path: the graph's file.
        form: its format, for messages, and its container.
        signature: its inputs and output, if the file has them.
        options: the user's answers.

    Raises:
        PlanError: a setting is missing; the message lists it.
        CardError: the answers contradict the graph.
    """
    network = {"arch": "graph", "container": form[1]}
    drafted = {"network": network} | _drafted(signature, options.assume)
    family = str(options.assume.get("family", drafted.get("family")))
    given = drafted.keys() | {name.partition(".")[0] for name in options.assume}
    missing = [name for name in _NEEDED.get(family, ()) if name not in given]
    if family not in _NEEDED:
        missing = ["family"]
    if missing:
        raise PlanError(
            f"{path}: has no card, and a graph does not determine all of one; give"
            f" {'; '.join(f'--assume {_HOW[name]}' for name in missing)}"
        )
    card, assumed = complete_card(path, form[0], drafted, options, None)
    assert isinstance(card, GraphCard | ClassifierCard), "the family was checked"
    unset = [n for n in ("evaluations", "clamp") if n not in options.assume]
    unset = unset if isinstance(card, GraphCard) else []
    defaults = [Assumption(what=n, value=str(getattr(card, n)), source="default") for n in unset]
    return card, (*assumed, *defaults)


def image_input(card: GraphCard | ClassifierCard, signature: Signature) -> TensorSpec:
    """The input that takes the images: the one that is neither noise nor a seed.

    Raises:
        CardError: there is none, or there are several.
    """
    noise = card.noise_inputs if isinstance(card, GraphCard) else {}
    seeded = isinstance(card, GraphCard) and card.noise == "seed"
    rest = [spec for spec in signature.inputs if spec.name not in noise]
    if seeded:
        rest = [spec for spec in rest if not spec.dtype.startswith("int")]
    if len(rest) != 1 or len(signature.inputs) != 1 + len(noise) + seeded:
        actual = "; ".join(str(spec) for spec in signature.inputs) or "nothing"
        expected = ", ".join(["the images", *noise, *(["an integer seed"] if seeded else [])])
        raise CardError(f"takes {actual}; by its card it takes {printable(expected)}")
    return rest[0]


def check_fit(path: Path, card: GraphCard | ClassifierCard, signature: Signature) -> None:
    """Raise CardError unless a graph's signature agrees with its card."""
    try:
        image = image_input(card, signature)
    except CardError as error:
        raise CardError(f"{path}: {error}") from None
    _check_tensor(path, image, card.image.shape, "images")
    drawn = ", ".join(signature.random or ())
    if isinstance(card, ClassifierCard):
        if drawn:
            raise CardError(f"{path}: draws random numbers ({drawn}); a classifier must not")
        return _check_tensor(path, signature.output, (card.classes,), "logits")
    _check_tensor(path, signature.output, card.image.shape, "purified images")
    for spec in signature.inputs:
        if spec.name in card.noise_inputs:
            _check_tensor(path, spec, card.noise_inputs[spec.name], "noise")
        elif spec is not image and not _is_seed(spec):
            raise CardError(f"{path}: has '{spec}' for a seed, which is one int64 or int32")
    if drawn and card.noise != "captured":
        raise CardError(
            f"{path}: draws random numbers ({drawn}), but by its card its noise is '{card.noise}',"
            " not 'captured'"
        )
    return None


def _drafted(signature: Signature | None, answers: dict[str, str]) -> dict[str, Any]:
    """Fields of a card that follow from a signature."""
    if signature is None:
        return {}
    image = next((s for s in signature.inputs if len(s.shape or ()) == _IMAGE_AXES), None)
    sizes = (image.shape or ())[1:] if image is not None else (None,)
    fields: dict[str, Any] = {}
    if None not in sizes:
        fields["image"] = dict(zip(("channels", "height", "width"), sizes, strict=True))
    out = signature.output.shape
    if out is not None:
        fields["family"] = "classifier" if len(out) == 2 else "graph"
    if answers.get("family", fields.get("family")) == "classifier":
        return fields | ({"classes": out[1]} if out and out[1:] and out[1] else {})
    if len(signature.inputs) == 1 and signature.random is not None:
        fields["noise"] = "captured" if signature.random else "none"
    if answers.get("noise") == "inputs":
        beside = [spec for spec in signature.inputs if spec is not image]
        fields["noise_inputs"] = {spec.name: (spec.shape or ())[1:] for spec in beside}
    return fields


def _is_seed(spec: TensorSpec) -> bool:
    sizes = set(spec.shape or ())
    return spec.dtype in ("int32", "int64") and len(spec.shape or ()) < 2 and sizes <= {1, None}


def _check_tensor(path: Path, spec: TensorSpec, wanted: tuple[int, ...], what: str) -> None:
    """Raise CardError for a tensor that is not float32 of this shape behind its first axis."""
    axes = ", ".join(str(size) for size in wanted)
    sentence = f"{path}: has '{spec}' for {what}, which are float32 [n, {axes}]"
    if spec.dtype != "float32":
        raise CardError(f"{sentence}: export it with this type")
    if spec.shape is None:
        return
    pairs = zip(spec.shape[1:], wanted, strict=False)
    if len(spec.shape) != 1 + len(wanted) or any(a not in (None, b) for a, b in pairs):
        raise CardError(f"{sentence}: another shape")
