"""Exceptions of user code, reported as one sentence with the source line."""

import contextlib
import os
import traceback
from collections.abc import Iterator

import torch

from purify_audit.core.errors import InputError, PurifyAuditError
from purify_audit.core.records import printable
from purify_audit.models.user_code.capture import PACKAGE, TORCH, located
from purify_audit.models.user_code.draws import NeedsFewerRows, UnalignedRandomnessError

_LIBRARY = os.path.dirname(os.__file__) + os.sep
_PASSED_ON = (PurifyAuditError, NeedsFewerRows, UnalignedRandomnessError, torch.OutOfMemoryError)
_NO_GRAPH = "does not require grad"  # in autograd's message if no graph was recorded


class UserCodeError(InputError):
    """User code raised an exception, or returned something other than images."""


class NoGraphError(UserCodeError):
    """The code computes a gradient while autograd is off."""


@contextlib.contextmanager
def user_code_errors(what: str) -> Iterator[None]:
    """Raise exceptions of user code as errors that begin with `what`.

    Raises:
        UserCodeError: any exception, or an attempt to exit.
        NoGraphError: autograd recorded no graph.
    """
    try:
        yield
    except _PASSED_ON:
        raise
    except (Exception, SystemExit) as error:
        kind = NoGraphError if _NO_GRAPH in str(error) else UserCodeError
        message = printable(str(error)) or "no message"
        raise kind(f"{what}: {type(error).__name__} at {_line(error)}: {message}") from error


def _line(error: BaseException) -> str:
    """`file:line` of the innermost frame of user code; of any frame, if there is none."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return located(error.filename, error.lineno)
    frames = traceback.extract_tb(error.__traceback__)
    last = ([f for f in frames if _is_user_file(f.filename)] or frames)[-1]
    return located(last.filename, last.lineno or 0)


def _is_user_file(file: str) -> bool:
    """Whether a file is neither torch's, nor the standard library's, nor this package's."""
    if file.startswith((TORCH, PACKAGE, "<")):
        return False
    return "site-packages" in file or not file.startswith(_LIBRARY)
