"""Models of the Hugging Face Hub, by name: `hub:owner/name` or `hub:owner/name@revision`."""

import re
from pathlib import Path

from purify_audit.core.errors import CheckpointError
from purify_audit.core.records import printable
from purify_audit.models.formats.diffusers_folder import MODEL, SCHEDULER

HUB = "hub:"
_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FILES = [*SCHEDULER, *(f"{folder}{name}" for folder in ("", "unet/") for name in MODEL)]


def download(text: str) -> Path:
    """Download a model; the name of the folder is its revision, a commit.

    Only configurations and weights are downloaded, no code. With `HF_HUB_OFFLINE`, only files in
    the cache are used.

    Raises:
        CheckpointError: not such a name, no `huggingface_hub`, no network, or no such model.
    """
    match = _NAME.fullmatch(text)
    if match is None:
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
        return Path(snapshot_download(match[1], revision=match[2], allow_patterns=_FILES))
    except Exception as error:  # errors of huggingface_hub have no common base class
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{text}: cannot be downloaded: {printable(lines[0])}") from None
