"""Keep freed memory in the process, instead of returning it to the system after every layer."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_NEVER = 2**31 - 1
_LARGEST_BLOCK = 32 * 2**20  # glibc allows no more; larger blocks come from the system each time


def hold_freed_memory() -> bool:
    """Configure glibc's allocator: a network's layers free and allocate the same blocks again.

    By default the end of the heap returns to the system when enough of it is free, and its pages
    are then faulted in again: a quarter of the time of a small network on a CPU
    (`docs/results.md`, section 12). No number depends on it.

    Returns:
        Whether it was configured: not on other systems, nor where the environment does it.
    """
    theirs = [name for name in os.environ if name.startswith("MALLOC_")]
    if sys.platform != "linux" or theirs or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_TRIM_THRESHOLD, _NEVER))
