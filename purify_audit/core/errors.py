"""Exceptions. Each message names the cause, the place and a remedy.

A fault of the *audited purifier* is never an exception but a finding (`core.findings`).
"""


class PurifyAuditError(Exception):
    """The audit could not be run. Exit code 4, unless a subclass sets another."""

    exit_code = 4


class InputError(PurifyAuditError):
    """User input that cannot be used."""

    exit_code = 2


class CheckpointError(InputError):
    """A checkpoint is unreadable, damaged, or contradicts its card."""


class CardError(InputError):
    """A card (the description of a checkpoint) is missing, malformed or inconsistent."""


class ImageError(InputError):
    """An image source is unreadable, or has the wrong shape, range or number of labels."""


class PlanError(InputError):
    """Audit settings contradict each other or the checkpoint."""


class ReportError(InputError):
    """A saved report is unreadable or incomplete."""


class RunError(InputError):
    """A run folder belongs to another run, is in use, or is damaged."""


class AuditError(PurifyAuditError):
    """The audit failed for a reason other than the purifier."""


class OutOfMemoryError(AuditError):
    """The device lacks memory for a micro-batch."""
