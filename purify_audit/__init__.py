"""purify-audit: is an adversarial purifier robust, or does its randomness hide the gradient?

The public functions are imported when they are first used, so that `import purify_audit` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purify_audit.audit.api import (
        attack,
        compare,
        compress,
        load_classifier,
        load_purifier,
        sweep,
        verify,
    )
    from purify_audit.images.image_set import load_images
    from purify_audit.report.schema import Report

__version__ = "0.1.0"
__all__ = [
    "Report",
    "attack",
    "compare",
    "compress",
    "load_classifier",
    "load_images",
    "load_purifier",
    "sweep",
    "verify",
]

_ELSEWHERE = {
    "Report": "purify_audit.report.schema",
    "load_images": "purify_audit.images.image_set",
}


def __getattr__(name: str) -> Any:
    """A public function, from where it is defined."""
    if name not in __all__:
        raise AttributeError(f"module 'purify_audit' has no attribute '{name}'")
    return getattr(import_module(_ELSEWHERE.get(name, "purify_audit.audit.api")), name)
