"""Locations of results in a repository, and their fingerprints across runs."""

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
    """Identifies a result across runs: the rule and the model's name, not the numbers."""
    return hashlib.sha256(f"{result.rule}\0{model}".encode()).hexdigest()


def line(result: RuleResult) -> int:
    """The rule's line in the policy file; 1 if it is not known."""
    return max(1, result.line or 1)
