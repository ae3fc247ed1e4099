"""One client's stream: what waits to be sent to it, within a bound.

Rules
- A stream takes a unit (one message, or the fragments of one) while it holds less than `max_bytes` with it, or at most half of that without
  it: so a unit of any size gets through once the client has read on. All streams together hold at most `total_bytes`, but for one unit
  each. What is not taken stays in the history; nothing is dropped.
- Bytes count from when a message is queued until it has been handed to the wire.
- Messages leave in the order in which they were queued. Once ended, a stream takes and gives nothing.
- Chunks are shared between streams and counted by each: the figure is an upper bound.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from kvserver.watch.watcher import Watcher

__all__ = ["NOTICE_OVERHEAD_BYTES", "Notice", "QueueTotal", "WatchStream"]

NOTICE_OVERHEAD_BYTES: Final = 320
"""A message without its events: the object, its tuple and a place in the queue (CPython 3.11: about 300)."""
CHUNK_OVERHEAD_BYTES: Final = 48
"""An event's place in a tuple, and the share of its object's head."""
NO_WATCHER: Final = -1


class Notice(NamedTuple):
    """One message: a WatchResponse without what the api adds to its header. `events` are chunks (changes.py).

    A tuple and not a dataclass because one is made for every watcher of every change.
    """

    watch_id: int
    revision: int
    events: tuple[bytes, ...] = ()
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    fragment: bool = False

    @property
    def size_bytes(self) -> int:
        """What it holds while it waits."""
        return NOTICE_OVERHEAD_BYTES + sum(map(len, self.events)) + CHUNK_OVERHEAD_BYTES * len(self.events)


class QueueTotal:
    """The bytes that all streams hold."""

    __slots__ = ("max_bytes", "queued_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.queued_bytes = 0


class WatchStream:
    """The queue to one client, and the watchers that it has made. Belongs to the loop."""

    def __init__(self, total: QueueTotal, *, max_bytes: int) -> None:
        self._total = total
        self._max_bytes = max_bytes
        self._queue: deque[tuple[Notice, int]] = deque()
        self._leaving_bytes = 0
        self._changed: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._end: Exception | None = None
        self.queued_bytes = 0
        self.is_closed = False
        self.next_id = 0
        self.watchers: dict[int, Watcher] = {}
        self.unsynced: set[Watcher] = set()
        self.parked: dict[Watcher, None] = {}
        self.wants_progress = False

    @property
    def has_room(self) -> bool:
        """Whether a unit of any size is taken now, as far as this stream alone decides."""
        return self.queued_bytes <= self._max_bytes // 2

    @property
    def is_low(self) -> bool:
        """Whether a unit of any size is taken now, whatever the others hold."""
        total = self._total
        return not self.queued_bytes or (self.has_room and total.queued_bytes < total.max_bytes)

    def try_put(self, notices: Sequence[Notice]) -> bool:
        """Queue a unit if there is room for it."""
        size_bytes = sum(notice.size_bytes for notice in notices)
        if self.queued_bytes:
            if self.queued_bytes + size_bytes > self._max_bytes and not self.has_room:
                return False
            if self._total.queued_bytes + size_bytes > self._total.max_bytes:
                return False
        for notice in notices:
            self.put(notice)
        return True

    def put(self, notice: Notice) -> None:
        """Queue an answer to a request of the client, or the end of a watcher: small, and as many as there are watchers at most."""
        if self.is_closed or self._end is not None:
            return
        size_bytes = notice.size_bytes
        self._queue.append((notice, size_bytes))
        self.queued_bytes += size_bytes
        self._total.queued_bytes += size_bytes
        self._wake()

    async def wait_next(self) -> Notice:
        """The next message, which counts until `sent`. Raises the error that the stream was ended with."""
        while True:
            if self._end is not None:
                raise self._end
            if self._queue:
                notice, self._leaving_bytes = self._queue.popleft()
                return notice
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed

    def sent(self) -> None:
        """The message that `wait_next` gave has been handed to the wire."""
        self._forget(self._leaving_bytes)
        self._leaving_bytes = 0
        if self._room is not None and self.has_room:
            if not self._room.done():
                self._room.set_result(None)
            self._room = None

    async def wait_room(self) -> None:
        """Return when the client has taken so much that its next request may be answered."""
        while not self.has_room and not self.is_closed:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    def end(self, error: Exception) -> None:
        """End the stream with an error, in front of all that waits."""
        if self._end is None:
            self._end = error
            self._drop()
            self._wake()

    def close(self) -> None:
        """The client is gone."""
        self.is_closed = True
        self._drop()
        self._forget(self._leaving_bytes)
        self._leaving_bytes = 0

    def _drop(self) -> None:
        self._forget(sum(size_bytes for _, size_bytes in self._queue))
        self._queue.clear()

    def _forget(self, size_bytes: int) -> None:
        self.queued_bytes -= size_bytes
        self._total.queued_bytes -= size_bytes

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
