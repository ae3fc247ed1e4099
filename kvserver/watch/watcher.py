"""One watcher: what it wants, and how far it has come.

Rules
- `next_revision` is the first revision that it has not been told of. While SYNCED it is only kept for the revisions that concerned it: the
  hub knows how far all synced ones are.
- SYNCED: told of every revision as it is applied. READY: behind, caught up from the history in its turn. PARKED: behind, and its stream is
  full. CLOSED: gone.

    SYNCED -> PARKED   its stream is full
    SYNCED -> READY    the hub can't tell everybody in time, or a snapshot has replaced the store
    READY  -> PARKED   its stream is full
    READY  -> SYNCED   it has been told of the newest revision
    PARKED -> READY    its stream has room again
    any    -> CLOSED   cancelled, by its client or because its revision is compacted; or its stream is gone
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from kvserver.watch.changes import Change
from kvserver.watch.index import KeyRange
from kvserver.watch.stream import Notice, WatchStream

__all__ = ["WATCHER_BYTES", "WatchOptions", "Watcher", "WatcherState"]

WATCHER_BYTES: Final = 900
"""A watcher beside its keys: the object, its options, its places in the index, the stream and the hub (CPython 3.11, measured: 660 to
900, with short keys)."""


class WatcherState(Enum):
    """See above."""

    SYNCED = "synced"
    READY = "ready"
    PARKED = "parked"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """What a client asks for. `start_revision` 0: from now on; `watch_id` 0: the stream chooses."""

    keys: KeyRange
    start_revision: int = 0
    watch_id: int = 0
    no_puts: bool = False
    no_deletes: bool = False
    prev_kv: bool = False
    progress_notify: bool = False
    fragment: bool = False


class Watcher:
    """See above. Changed by the hub only."""

    __slots__ = ("id", "is_quiet", "keys", "next_revision", "options", "state", "stream")

    def __init__(self, watch_id: int, options: WatchOptions, stream: WatchStream, next_revision: int) -> None:
        self.id = watch_id
        self.options = options
        self.keys = options.keys
        self.stream = stream
        self.next_revision = next_revision
        self.state = WatcherState.SYNCED
        self.is_quiet = True  # no events since the last tick of the periodic progress

    @property
    def size_bytes(self) -> int:
        """What it holds."""
        return WATCHER_BYTES + len(self.keys.lo) + len(self.keys.hi or b"")

    def chunks(self, changes: Iterable[Change]) -> tuple[bytes, ...]:
        """The events that it is told of these changes of its keys."""
        options, first = self.options, self.next_revision
        return tuple(
            change.full_chunk if options.prev_kv else change.chunk
            for change in changes
            if change.revision >= first and not (options.no_deletes if change.is_delete else options.no_puts)
        )

    def notices(self, revision: int, chunks: tuple[bytes, ...], max_bytes: int) -> list[Notice]:
        """These events as messages: one, or fragments of fewer than `max_bytes` where the client wants that."""
        if not self.options.fragment or len(chunks) < 2 or sum(map(len, chunks)) < max_bytes:
            return [Notice(watch_id=self.id, revision=revision, events=chunks)]
        pieces: list[list[bytes]] = [[]]
        size_bytes = 0
        for chunk in chunks:
            if pieces[-1] and size_bytes + len(chunk) >= max_bytes:
                pieces.append([])
                size_bytes = 0
            pieces[-1].append(chunk)
            size_bytes += len(chunk)
        last = len(pieces) - 1
        return [
            Notice(watch_id=self.id, revision=revision, events=tuple(piece), fragment=position < last)
            for position, piece in enumerate(pieces)
        ]
