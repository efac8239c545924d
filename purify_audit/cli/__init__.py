"""The command line: parses, calls, prints and exits. Imports torch late."""

import os
import signal
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from purify_audit import __version__
from purify_audit.cli import (  # noqa: F401 - importing a command registers it
    baseline,
    compare,
    compress,
    convert,
    gate,
    inspect,
    report,
    resume,
    run,
    stale,
    sweep,
    verify,
)
from purify_audit.cli.app import EXIT_BROKEN, app
from purify_audit.core.errors import PurifyAuditError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; every failure gives one sentence and its own exit code."""
    if hasattr(signal, "SIGPIPE"):  # `… | head` ends quietly
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.path.append(os.getcwd())  # where user code is searched, after installed packages
    try:
        app()
    except PurifyAuditError as error:
        _fail(str(error), error.exit_code)
    except Exception as error:  # never exit code 1: that means "the purifier failed the gate"
        if "--debug" in sys.argv:
            raise
        kind = type(error).__name__
        _fail(
            f"unexpected {kind}: {error} (`purify-audit --debug …` shows the traceback)",
            EXIT_BROKEN,
        )


def _fail(message: str, code: int) -> NoReturn:
    Console(stderr=True).print(
        f"purify-audit: {message}", style="red", highlight=False, markup=False
    )
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"purify-audit {__version__}")
        raise typer.Exit


@app.callback()
def before_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options before the command."""
