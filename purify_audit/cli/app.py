"""The Typer application that every command joins, and its exit codes."""

import typer

EXIT_INCONCLUSIVE, EXIT_BROKEN = 3, 4

app = typer.Typer(
    name="purify-audit",
    help="Does an adversarial purifier make a classifier robust, or does its randomness hide the"
    " gradient?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
