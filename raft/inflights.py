"""The window of unacknowledged MsgApps to one replicating peer, bounded by count and by bytes.

Rules: `add` only when not full; acknowledgements free a prefix. The byte bound is reached by the message that crosses it: a single message
larger than the bound still passes.

Invariants: indexes strictly rise; `size_bytes` is the sum over what is held.

Source: Ongaro's thesis, 10.2.1 (pipelining).
"""

from __future__ import annotations

from collections import deque

from raft.types import Index


class Inflights:
    """A queue of (last index, payload bytes) of the messages under way."""

    __slots__ = ("_messages", "capacity", "max_size_bytes", "size_bytes")

    def __init__(self, capacity: int, max_size_bytes: int) -> None:
        self.capacity = capacity
        self.max_size_bytes = max_size_bytes
        self.size_bytes = 0
        self._messages: deque[tuple[Index, int]] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def is_full(self) -> bool:
        """No further message may be added."""
        return len(self._messages) >= self.capacity or self.size_bytes >= self.max_size_bytes

    def add(self, index: Index, size_bytes: int) -> None:
        """Note a message whose last entry is `index`. The window must not be full."""
        assert not self.is_full, "cannot add into a full inflights window"
        self._messages.append((index, size_bytes))
        self.size_bytes += size_bytes

    def free_through(self, index: Index) -> None:
        """Forget the messages that end at or before `index`."""
        messages = self._messages
        while messages and messages[0][0] <= index:
            self.size_bytes -= messages.popleft()[1]

    def reset(self) -> None:
        """Forget everything."""
        self._messages.clear()
        self.size_bytes = 0

    def copy(self) -> Inflights:
        """An independent copy."""
        copied = Inflights(self.capacity, self.max_size_bytes)
        copied._messages.extend(self._messages)
        copied.size_bytes = self.size_bytes
        return copied
