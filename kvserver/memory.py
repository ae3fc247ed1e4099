"""The C allocator: fast for large values, and what was freed goes back to the system.

Purpose: `tune_allocator` sets glibc's malloc up, `HeapTrimmer` returns what bursts leave behind. Values of megabytes are copied several
times on their way; where the memory for a copy comes from decides what that costs, and what the process weighs afterwards.

Rules
- Blocks up to `MMAP_THRESHOLD_BYTES` come from the heap. glibc's way for large ones is a mapping each, and touching its fresh pages takes
  ten to twenty times as long as the copy itself, on the event loop (docs/performance.md has the figures).
- One heap for all threads: what one thread frees, another can use. With an arena per thread each keeps its own peak.
- The heap returns its top by itself, and its holes only when asked: `HeapTrimmer` asks, off the loop, when the process has grown since it
  did last. That locks the heap for tens of milliseconds, so a busy process is left alone: what it frees it is about to use again.

Source: mallopt(3), malloc_trim(3), mallinfo(3).
Caveat: a C library without these (musl, macOS) keeps its own ways.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

MMAP_THRESHOLD_BYTES: Final = 4 * 1024 * 1024
TRIM_THRESHOLD_BYTES: Final = 4 * 1024 * 1024
ARENAS: Final = 1
WORTH_BYTES: Final = 4 * 1024 * 1024
"""The heap is trimmed when the process has grown by this much since the last time, and as much of the heap is free."""

QUIET_CPU_SHARE: Final = 0.2
"""Below this share of one CPU since the last look, nobody is hurt by a pause."""
BUSY_INTERVAL_S: Final = 60.0
"""A process that is never quiet is trimmed this often."""

_STATM: Final = Path("/proc/self/statm")


class _MallInfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )
    fordblks: int


def tune_allocator() -> bool:
    """Apply the settings; False where the C library has no mallopt."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES), (_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))
    return all(mallopt(key, value) == 1 for key, value in settings)


class HeapTrimmer:
    """Returns the heap's holes to the system, when that is worth it. For one thread at a time; not for the event loop's."""

    def __init__(self) -> None:
        self._anonymous_bytes = 0
        self._looked_s = self._trimmed_s = time.monotonic()
        self._cpu_s = time.process_time()
        self._trim: Callable[[int], int] | None = None
        self._info: Callable[[], _MallInfo2] = _MallInfo2
        try:
            library = ctypes.CDLL(None)
            trim, info = library.malloc_trim, library.mallinfo2
        except (OSError, AttributeError):
            return
        trim.argtypes = (ctypes.c_size_t,)
        info.restype = _MallInfo2
        self._trim, self._info = trim, info

    @property
    def is_possible(self) -> bool:
        """Whether this system has what is needed: glibc 2.33 or later, and /proc."""
        return self._trim is not None and _STATM.exists()

    def trim_if_worth(self) -> bool:
        """Trim if there is much to be had, and nobody is hurt by it (see the module); whether it did. To be called about once a second."""
        now_s, cpu_s = time.monotonic(), time.process_time()
        is_quiet = cpu_s - self._cpu_s < QUIET_CPU_SHARE * (now_s - self._looked_s)
        self._looked_s, self._cpu_s = now_s, cpu_s
        if self._trim is None or not (is_quiet or now_s - self._trimmed_s >= BUSY_INTERVAL_S):
            return False
        size_bytes = self._measure()
        if size_bytes is None:
            return False
        grown_bytes = size_bytes - self._anonymous_bytes
        if grown_bytes < WORTH_BYTES or self._info().fordblks < WORTH_BYTES:
            self._anonymous_bytes += min(grown_bytes, 0)
            return False
        self._trim(0)
        self._trimmed_s, self._anonymous_bytes = now_s, self._measure() or size_bytes
        return True

    def _measure(self) -> int | None:
        """The process's anonymous memory; None if /proc can't be read just now: the process has no file descriptor left. It is asked
        again in a second, and nothing is worse for it meanwhile.
        """
        try:
            return anonymous_bytes()
        except OSError:
            return None


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs. Raises OSError where there is no /proc, or no file descriptor to read it."""
    _, resident, shared, *_ = map(int, _STATM.read_text().split())
    return (resident - shared) * mmap.PAGESIZE
