"""What a file of weights holds once it is read: nested plain Python, and state dicts in it."""

from collections.abc import Callable, Iterator, Mapping
from itertools import starmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from purify_audit.errors import CheckpointError
from purify_audit.record import printable

MAX_DEPTH = 64
"""Levels of dictionaries and lists in each other."""

MAX_PARTS = 2_000_000
"""Of a file, each counted as often as it is referred to: what is shared may look endless."""

MAX_REPEAT = 4
"""How many times the file's size its tensors may have, each counted as often as it is named.

Raw and averaged weights in one storage make 2; a consumer that copies each gets no more than this.
"""

_SMALL = 2**20  # bytes that are allowed in any case

type_of_plain = str | int | float | complex | None
