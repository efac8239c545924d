"""The command line in this process: a second less than a process of its own."""

import contextlib
import io
import sys
from typing import NamedTuple

import pytest

from purify_audit import cli


class Ended(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run_in(folder, *arguments, columns="10000"):
    """Run a command in a folder."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(folder)
        patch.setenv("COLUMNS", columns)
        patch.setattr(sys, "argv", ["purify-audit", *map(str, arguments)])
        patch.setattr(sys, "path", [*sys.path])
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())
