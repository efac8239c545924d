"""Purifiers and classifiers from factories: importable functions that make them.

A factory is named `package.module:function`, `path/to/file.py:function`, or by the name under which
an installed package registered it (entry points of the groups `purify_audit.purifiers` and
`purify_audit.classifiers`). Naming one runs its code.

What it returns is called with images [n, channels, height, width] and returns as many images (or
logits). Attributes of the object say more about it, where it has them: `image_shape` (channels,
height, width), `data_range` (what pixels 0 and 1 are mapped to first), `evaluations` (of a network
in one purification), `randomised`; of a classifier `mean` and `std`.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from purify_audit.architectures import CodeArgs
from purify_audit.card import ClassifierCard, CodeCard, ImageSpec, Provenance
from purify_audit.errors import InputError
from purify_audit.purifiers.capture import Capture
from purify_audit.purifiers.foreign import ForeignClassifier, ForeignPurifier
from purify_audit.purifiers.foreign_errors import ForeignCodeError, told
from purify_audit.purifiers.foreign_modules import modules_of
from purify_audit.record import first_fault, printable

PURIFIERS, CLASSIFIERS = "purify_audit.purifiers", "purify_audit.classifiers"
"""Groups of entry points."""

_PLAIN = (int, float, bool, str, Path)


class FactoryError(InputError):
    """A factory cannot be found, or not be called with the arguments that were given."""


def is_factory(text: str) -> bool:
    """Whether a name is a factory's (`a.b:c`, `a.py:c` or a registered name), and not a file's."""
    if Path(text).exists():
        return False
    module, colon, attribute = text.partition(":")
    if colon:
        dotted = all(part.isidentifier() for part in module.split("."))
        return attribute.isidentifier() and (dotted or module.endswith(".py"))
    return any(text in entry_points(group=group).names for group in (PURIFIERS, CLASSIFIERS))
