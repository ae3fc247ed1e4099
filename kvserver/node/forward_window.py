"""How much of this member's writes may be with the leader at a time.

Purpose: what the leader can't propose yet waits on the leader, where room is short (forwarded.py). So a member keeps what is beyond its
share with itself, where its clients' requests are counted anyway.

Rules
- What raft was given counts until its write is answered. One write always goes, however large.
- The bound is asked for each time: it depends on how many members there are.
- What was on its way when the connection to the leader broke may be lost, and nobody will say so: `forget` lets others go on. What is
  given back of it later counts for nothing.

Invariants: `held_bytes` is the sum of what was taken since the last `forget` and not given back.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["ForwardWindow"]


class ForwardWindow:
    """Bytes that are with the leader and unanswered; `max_bytes` says how many may be."""

    __slots__ = ("_age", "_held_bytes", "max_bytes")

    def __init__(self, max_bytes: Callable[[], int]) -> None:
        self.max_bytes = max_bytes
        self._held_bytes = 0
        self._age = 0

    @property
    def held_bytes(self) -> int:
        """What is counted."""
        return self._held_bytes

    def fits(self, size_bytes: int) -> bool:
        """Whether so many more may go."""
        return not self._held_bytes or self._held_bytes + size_bytes <= self.max_bytes()

    def take(self, size_bytes: int) -> int:
        """Count what goes; the ticket is for giving it back."""
        self._held_bytes += size_bytes
        return self._age

    def give(self, size_bytes: int, ticket: int) -> None:
        """It is answered, or came back."""
        if ticket == self._age:
            self._held_bytes -= size_bytes

    def forget(self) -> None:
        """What is counted may be lost."""
        self._age += 1
        self._held_bytes = 0
