"""Freed memory is held, not given back to the system and asked for again at every layer."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_NEVER = 2**31 - 1
_LARGEST_BLOCK = 32 * 2**20  # glibc allows no more; larger blocks come from the system each time


def hold_freed_memory() -> bool:
    """Tell glibc's allocator; a network's layers free and allocate the same blocks over and over.

    By default the heap's end goes back to the system whenever enough of it is free, and comes again
    page by page: a quarter of the time of a small network on a CPU (`docs/results.md`, section
    12). No number depends on it.

    Returns:
        Whether it was told: not on other systems, nor where the environment sets the allocator.
    """
    theirs = [name for name in os.environ if name.startswith("MALLOC_")]
    if sys.platform != "linux" or theirs or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_TRIM_THRESHOLD, _NEVER))
