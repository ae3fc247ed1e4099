"""The clock as the shell of kvserver sees it.

Purpose: one small Protocol for the two times there are (a monotonic one for deadlines, the wall clock for log lines and lease grants), so
that a test or the simulator can own time.

Rules: raft and apply never see a clock. A deadline is always monotonic; wall time is never subtracted from wall time. The monotonic clock
is the one of asyncio's event loop (`time.monotonic`), so a deadline may be handed to `loop.call_at`.
"""

from __future__ import annotations

import time
from typing import NewType, Protocol

__all__ = ["Clock", "MonotonicSeconds", "SystemClock"]

MonotonicSeconds = NewType("MonotonicSeconds", float)
"""A point on the monotonic clock, in seconds from an arbitrary origin; comparable within one process only."""


class Clock(Protocol):
    """The two times; both are cheap and never block."""

    def monotonic_s(self) -> MonotonicSeconds:
        """Seconds from an arbitrary origin; never moves back."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch; may jump."""


class SystemClock:
    """The machine's clock."""

    def monotonic_s(self) -> MonotonicSeconds:
        """Seconds from an arbitrary origin; never moves back."""
        return MonotonicSeconds(time.monotonic())

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch; may jump."""
        return time.time_ns()
