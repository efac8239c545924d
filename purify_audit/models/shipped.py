"""The models bundled with the source tree."""

from pathlib import Path

from purify_audit.core.errors import PlanError

_MODELS = Path(__file__).parents[2] / "models"
_CLASSIFIERS = {(1, 8, 8): "digits-classifier"}


def shipped_purifier() -> str:
    """The path of the shipped diffusion purifier.

    Raises:
        PlanError: this installation has no models.
    """
    path = _MODELS / "digits-ddpm.safetensors"
    if not path.is_file():
        raise PlanError("no checkpoint is named, and this installation has no shipped models")
    return str(path)


def shipped_classifier(shape: tuple[int, int, int]) -> str | None:
    """The path of the shipped classifier for images of this shape, if any."""
    path = _MODELS / f"{_CLASSIFIERS.get(shape, '')}.safetensors"
    return str(path) if path.is_file() else None
