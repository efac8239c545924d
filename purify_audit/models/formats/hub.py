"""Models of the Hugging Face hub, by name: `hub:owner/name` or `hub:owner/name@revision`."""

import re
from pathlib import Path

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.formats.diffusers_folder import MODEL, SCHEDULER

HUB = "hub:"
_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FILES = [*SCHEDULER, *(f"{folder}{name}" for folder in ("", "unet/") for name in MODEL)]


def download(text: str) -> Path:
    """The folder of a model's files; the folder's name is the revision, a commit.

    Only configurations and weights are fetched, and no code. `HF_HUB_OFFLINE` is honoured: then
    only what was fetched before is used.

    Raises:
        CheckpointError: not such a name, no `huggingface_hub`, no network, or no such model.
    """
    named = _NAME.fullmatch(text)
    if named is None:
        raise CheckpointError(
            f"'{printable(text)}' is not hub:OWNER/NAME or hub:OWNER/NAME@REVISION"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{text}: needs huggingface_hub; install purify-audit[diffusers]"
        ) from None
    try:
        return Path(snapshot_download(named[1], revision=named[2], allow_patterns=_FILES))
    except Exception as error:  # the hub library's errors have no common base
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{text}: cannot be fetched: {printable(told[0])}") from None
