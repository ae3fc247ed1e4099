"""The C allocator's settings: memory that was freed goes back to the system.

glibc keeps freed memory in per-thread arenas and raises its own mmap threshold after the first large free, so that a burst of 1 MB values
can leave a process tens of megabytes larger for good. Two arenas, a fixed mmap threshold and a trim threshold keep what is resident close
to what is used; the price is page faults on large values (docs/memory.md has the figures).
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

MMAP_THRESHOLD_BYTES: Final = 256 * 1024
TRIM_THRESHOLD_BYTES: Final = 4 * 1024 * 1024
ARENAS: Final = 2


def tune_allocator() -> bool:
    """Apply the settings; False where the C library has no mallopt (musl, macOS), which then keeps its own ways."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES), (_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))
    return all(mallopt(key, value) == 1 for key, value in settings)
