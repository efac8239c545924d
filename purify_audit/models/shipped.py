"""The models that come with the project's source tree, found by the images they take."""

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
    """The path of a shipped classifier of images of a shape, if there is one."""
    path = _MODELS / f"{_CLASSIFIERS.get(shape, '')}.safetensors"
    return str(path) if path.is_file() else None
