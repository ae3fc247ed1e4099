"""When requests are due at a given rate: the open loop.

Without a rate each client sends its next request when the last one was answered (closed loop): a server that stalls for a second is then
asked less in that second, and the report hardly shows it ("coordinated omission"). With a rate, request n is due n / rate seconds after
the start, whatever the server does, and its latency counts from there: waiting for a client that is still busy is part of it.

Rules: integers only, so that hours at any rate don't drift. Clients take numbers in order; the backlog is the distance between the next
number and the clock, so it needs no memory. Source: Tene's "How not to measure latency"; wrk2 measures alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LATE_NS: Final = 1_000_000
"""A request that starts later than this after it was due is called late; less is the timers' noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """`rate_per_s` (positive) requests a second, evenly spaced, the first at once."""

    rate_per_s: int

    def __post_init__(self) -> None:
        if self.rate_per_s <= 0:
            raise ValueError("a rate is positive")

    def due_ns(self, number: int) -> int:
        """When request `number` (from 0) is due, in nanoseconds after the start."""
        return number * 1_000_000_000 // self.rate_per_s
