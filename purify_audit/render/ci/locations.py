"""Where a result lies in a repository, and how services know it again in the next run."""

import hashlib
import os
from pathlib import PurePath
from urllib.parse import quote

from purify_audit.gate.judgement import RuleResult


def uri(path: str) -> str:
    """A path as a URI reference, relative where the path is; RFC 3986."""
    place = PurePath(path)
    if place.is_absolute():
        return place.as_uri()
    return quote(os.fsencode(place.as_posix()))


def fingerprint(result: RuleResult, model: str) -> str:
    """What identifies a result over runs: the rule and the model's name, not the numbers."""
    return hashlib.sha256(f"{result.rule}\0{model}".encode()).hexdigest()


def line(result: RuleResult) -> int:
    """The rule's line in the policy file; the first where it is not known."""
    return max(1, result.line or 1)
