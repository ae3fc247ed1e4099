"""The event loop of a simulation: virtual time, one queue, one source of randomness, one trace.

Rules
- Time is an integer number of microseconds that only `run_one` moves. Events of the same time run in the order in which they were
  scheduled. Nothing else runs: no thread, no asyncio, no wall clock.
- Every random choice comes from `rng`, in the order of events; nothing iterates over a set or depends on a hash. So one seed gives one
  history, and its trace has one SHA-256, in every process.

Source: the deterministic simulation of FoundationDB and TigerBeetle's VOPR for the idea.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from random import Random
from typing import Final

US_PER_S: Final = 1_000_000
Action = Callable[..., None]


class ViolationError(Exception):
    """A promise was broken: `promise` names it, the text says by whom and how."""

    def __init__(self, promise: str, text: str) -> None:
        super().__init__(f"{promise}: {text}")
        self.promise = promise


class Trace:
    """What happened, line by line: hashed always, shown only to who asks."""

    __slots__ = ("_hash", "_show", "count")

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self._hash = hashlib.sha256()
        self._show = show
        self.count = 0

    def emit(self, line: str) -> None:
        """Record one line, which becomes part of the hash."""
        self.count += 1
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        if self._show is not None:
            self._show(line)

    def digest(self) -> str:
        """The hash of everything so far, in hexadecimal."""
        return self._hash.hexdigest()


class Kernel:
    """Virtual time and the events that wait for it."""

    __slots__ = ("_queue", "_sequence", "event_count", "now_us", "rng", "trace")

    def __init__(self, rng: Random, trace: Trace) -> None:
        self.rng = rng
        self.trace = trace
        self.now_us = 0
        self.event_count = 0
        self._queue: list[tuple[int, int, Action, tuple[object, ...]]] = []
        self._sequence = 0

    def after(self, delay_us: int, action: Action, *arguments: object) -> None:
        """Call `action(*arguments)` in `delay_us` microseconds (at least 0)."""
        self._sequence += 1
        heapq.heappush(self._queue, (self.now_us + delay_us, self._sequence, action, arguments))

    def run_one(self) -> None:
        """Run the next event. There always is one: the clocks of the members never stop."""
        self.now_us, _, action, arguments = heapq.heappop(self._queue)
        self.event_count += 1
        action(*arguments)

    def note(self, text: str) -> None:
        """Record what happens now."""
        self.trace.emit(f"{self.now_us / US_PER_S:11.6f} {text}")

    def between(self, low_us: int, high_us: int) -> int:
        """A number in [low_us, high_us], the smaller the likelier: most delays are short, a few are long."""
        fraction = self.rng.random()
        return low_us + int((high_us - low_us) * fraction * fraction * fraction)
