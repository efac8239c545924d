"""What can go wrong with an audit, each as a sentence that says what, where, and what next.

A fault of the *audited purifier* is never an exception: it is a finding (`purify_audit.core.findings`).
"""


class PurifyAuditError(Exception):
    """The audit itself could not be carried out. Exit code 4 unless a subclass says otherwise."""

    exit_code = 4


class InputError(PurifyAuditError):
    """What the user gave cannot be used."""

    exit_code = 2


class CheckpointError(InputError):
    """A checkpoint file is unreadable, damaged, or not what its card says."""


class CardError(InputError):
    """A card (what a checkpoint says of itself) is missing, malformed or inconsistent."""


class ImageError(InputError):
    """A source of images is unreadable, or has the wrong shape, range or number of labels."""


class PlanError(InputError):
    """The settings of an audit contradict each other or the checkpoint."""


class ReportError(InputError):
    """A saved report is unreadable or lacks what was asked of it."""


class RunError(InputError):
    """A run folder is another run's, is in use, or is damaged."""


class AuditError(PurifyAuditError):
    """The audit broke down for a reason that is not the purifier's."""


class OutOfMemoryError(AuditError):
    """The device has no memory for a micro-batch."""
