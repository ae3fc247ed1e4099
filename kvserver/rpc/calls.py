"""How many calls are served at a time, unary ones and streams each with a count of their own.

Purpose: a call costs memory before its first byte is received, and a stream (Watch, a lease's keep-alive, a snapshot) does as long as it is
open. Streams are counted apart: watchers that stay for days must not take the places of puts, nor a burst of puts those of watchers.

Rules
- `begin` takes a place or says no, at once: a call that has no place is answered `too many requests`, and nobody waits here.
- What gRPC holds and has not handed over yet is not counted here: `GrpcLimits.max_pending_calls` bounds it.

Belongs to the loop.
"""

from __future__ import annotations

from kvserver.config import CALL_BYTES

__all__ = ["CallCount", "Calls"]


class CallCount:
    """Calls of one kind: how many are served, how many may be, and how many were turned away since the start."""

    __slots__ = ("max_open", "open", "refused")

    def __init__(self, max_open: int) -> None:
        self.max_open = max_open
        self.open = 0
        self.refused = 0

    def begin(self) -> bool:
        """Take a place; False if there is none."""
        if self.open >= self.max_open:
            self.refused += 1
            return False
        self.open += 1
        return True

    def end(self) -> None:
        """Give a place back."""
        self.open -= 1


class Calls:
    """Both kinds."""

    __slots__ = ("streams", "unary")

    def __init__(self, *, max_unary: int, max_streams: int) -> None:
        self.unary = CallCount(max_unary)
        self.streams = CallCount(max_streams)

    @property
    def held_bytes(self) -> int:
        """What the open ones cost, as the budget counts them: without the messages, which have owners of their own."""
        return (self.unary.open + self.streams.open) * CALL_BYTES
