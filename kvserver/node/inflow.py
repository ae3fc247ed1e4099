"""The way in for entries from other members: held back while this member is behind with applying.

Purpose: bounds the unapplied tail. The WAL may take entries faster than the store can apply them (a slow disk, a full one), and what is
neither applied nor durable in the store stays in memory whatever the caps of the log window say. So beyond a bound appends wait here,
unacknowledged, and the leader's flow control stops sending.

Rules
- What counts is what is committed, in the WAL and not applied: work that applying has in hand. So while anything is held there is something
  to apply, and each apply looks here again: holding can't wait for itself. (Entries that are not committed yet do not count: a new leader
  may need them acknowledged, or replaced, before anything more can be committed. The leader's own bound on uncommitted bytes is theirs.)
- Held are appends, in order: while one is held, those that follow it are, too. Heartbeats (which carry the commit index), votes and
  snapshots pass at once. Writes that others forward to a leader wait in a place of their own (forwarded.py), which asks `is_full`.
- At most `max_held_bytes` are held, about what a leader sends before it waits; more are dropped, as if the network had lost them: raft
  sends appends again.
- In a halt (halt.py) nothing is held any more, from `let_pass` on: applying stands still for good, and what would wait for it may be the
  entry with this member's own alarm. The tail then has no bound of its own; it grows by what the leader sends in the halt's time.

Invariants (tests/kvserver/node/test_inflow.py): the unapplied tail grows beyond the limit by one message at most once commitment has
caught up, unless in a halt; nothing is stepped twice or out of order; what is held is stepped when applying is back below the limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from raft.messages import Message, MessageType
from raft.types import Index, NodeId

__all__ = ["Core", "Inflow"]

_MESSAGE_OVERHEAD_BYTES: Final = 512


class Core(Protocol):
    """What is needed of the driver."""

    @property
    def unapplied_bytes(self) -> int:
        """Bytes of entries that are committed, durable in the WAL and not applied."""

    def step(self, message: Message, floor: Index) -> None: ...
    def note_contact(self, peer: NodeId) -> None: ...


class Inflow:
    """Passes messages on to the core, or holds them.

    Args:
        limit_bytes: hold from this many unapplied bytes on.
        max_held_bytes: drop beyond this many held bytes.
        on_held, on_dropped: told of each message that is held or dropped.
    """

    def __init__(
        self,
        core: Core,
        *,
        limit_bytes: int,
        max_held_bytes: int,
        on_held: Callable[[], None],
        on_dropped: Callable[[], None],
    ) -> None:
        self._core = core
        self._limit_bytes = limit_bytes
        self._max_held_bytes = max_held_bytes
        self._on_held = on_held
        self._on_dropped = on_dropped
        self._held: deque[tuple[Message, Index]] = deque()
        self._held_bytes = 0
        self._is_releasing = False
        self._lets_pass = False

    @property
    def held_bytes(self) -> int:
        """Bytes of the messages that are held."""
        return self._held_bytes

    def take(self, message: Message, floor: Index) -> None:
        """A message from a peer; `floor` as in the driver's `step`."""
        if self._held:
            self.release()
        if message.type is not MessageType.APP or not (self._held or self._is_over(message)):
            self._core.step(message, floor)
            return
        self._core.note_contact(message.from_)
        size_bytes = _size_bytes(message)
        if self._held and self._held_bytes + size_bytes > self._max_held_bytes:
            self._on_dropped()
            return
        self._on_held()
        self._held.append((message, floor))
        self._held_bytes += size_bytes

    def release(self) -> None:
        """Something was applied: step what is held, as far as the limit allows."""
        if self._is_releasing:
            return  # stepping may apply, and applying comes back here
        self._is_releasing = True
        try:
            while self._held and not self._is_over(self._held[0][0]):
                message, floor = self._held.popleft()
                self._held_bytes -= _size_bytes(message)
                self._core.step(message, floor)
        finally:
            self._is_releasing = False

    def let_pass(self) -> None:
        """Nothing will be applied any more: step what is held, and hold nothing from now on."""
        self._lets_pass = True
        self.release()

    @property
    def is_full(self) -> bool:
        """Applying is behind by more than the limit."""
        return not self._lets_pass and self._core.unapplied_bytes >= self._limit_bytes

    def _is_over(self, message: Message) -> bool:
        return bool(message.entries) and self.is_full


def _size_bytes(message: Message) -> int:
    return _MESSAGE_OVERHEAD_BYTES + sum(len(entry.data) for entry in message.entries)
