"""The Typer application that every command joins, and its exit codes."""

import typer

EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_BROKEN = 1, 3, 4

EXIT_CODES: dict[int, str] = {
    0: "Done; of a gate: every rule that counts passes.",
    EXIT_FAIL: "Failed: at least one rule of the policy; of `fresh`: the report is stale.",
    2: "What was given cannot be used: an option, a file, a setting, or the policy.",
    EXIT_INCONCLUSIVE: "Inconclusive: a finding is an error, a replayed cell differs, the audit"
    " ended early, or no rule fails and at least one is undecided.",
    EXIT_BROKEN: "The audit itself broke down: a fault of the program, or of the machine.",
    130: "Interrupted by Ctrl-C; what was measured is written, as partial.",
    138: "Interrupted by SIGUSR1, as SLURM sends it before the end; the same.",
    143: "Interrupted by SIGTERM, as batch systems send it; the same.",
}
"""What every exit code means; `docs/exit-codes.md` is generated from here."""

app = typer.Typer(
    name="purify-audit",
    help="Does an adversarial purifier make a classifier robust, or does its randomness hide the"
    " gradient?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
