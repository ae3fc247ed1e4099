"""Catching up: telling watchers that are behind from the history, in bounded pieces.

Theory of operation
- Ready watchers stand in a queue. A round takes the first one's next revision, reads a piece of the history from there, and tells every
  ready watcher whose next revision lies in that piece: watchers that are behind together are caught up together. Whoever has then been told
  of the newest revision is synced, in the same turn of the loop; the others go to the end of the queue, so that nobody waits for somebody
  who is further behind.
- A piece holds `PIECE_CHANGES` changes and `PIECE_BYTES` at most, which the loop can read and encode in a few milliseconds. One revision
  with more is read alone, on one of the store's threads, and so is the work of picking its events.
- Nothing is read for a watcher whose stream is full (it is parked), and nothing read is kept between rounds.

Rules: a next revision below the compacted one cancels the watcher (compact_revision). A view that ends because the store is being replaced
is tried again. Damage ends the streams that need the damaged piece, with `corrupt cluster`; the store has reported it.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final

from kvserver.errors import CompactedError, RequestError, RequestTimeoutError
from kvserver.mvcc import Allowance, Snapshot
from kvserver.mvcc.allowance import UNLIMITED
from kvserver.types import Revision
from kvserver.watch.changes import History, RevisionTooLargeError, read_changes
from kvserver.watch.hub import SLICE_S, WatchHub
from kvserver.watch.index import KeyedChanges
from kvserver.watch.watcher import Watcher

__all__ = ["PIECE_BYTES", "PIECE_CHANGES", "CatchUp"]

PIECE_CHANGES: Final = 128
PIECE_BYTES: Final = 256 << 10
RETRY_S: Final = 0.05


class CatchUp:
    """The catch-up of one hub. `rounds` and `thread_reads` count, for tests and for the curious."""

    def __init__(self, hub: WatchHub) -> None:
        self._hub = hub
        self._wakeup = asyncio.Event()
        self.rounds = 0
        self.thread_reads = 0
        hub.on_ready = self._wakeup.set

    async def run(self) -> None:
        """Catch up whoever is ready, until cancelled."""
        while True:
            while not self._hub.ready:
                self._wakeup.clear()
                await self._wakeup.wait()
            await self._run_round()
            await asyncio.sleep(0)

    async def _run_round(self) -> None:
        hub = self._hub
        self.rounds += 1
        first = next(iter(hub.ready))
        start = Revision(first.next_revision)
        try:
            history, changes = await self._read(start)
        except CompactedError:
            if first in hub.ready and first.next_revision == start:
                hub.cancel_compacted(first, int(hub.source.compacted_revision))
        except RequestTimeoutError:
            await asyncio.sleep(RETRY_S)  # the store is being replaced or closed
        except RequestError as error:
            hub.fail(first.stream, error)
        else:
            await self._tell_all(history, changes, start)

    async def _read(self, start: Revision) -> tuple[History, KeyedChanges]:
        """A piece of history from `start` on. Raises RequestError leaves."""
        hub = self._hub
        with_previous = any(watcher.options.prev_kv for watcher in hub.ready)
        try:
            state = hub.source.snapshot(Allowance())
            history = read_changes(state, start, max_changes=PIECE_CHANGES, max_bytes=PIECE_BYTES, with_previous=with_previous)
        except RevisionTooLargeError:
            self.thread_reads += 1
            return await hub.source.run_on_view(lambda state: _read_one(state, start, with_previous=with_previous), Allowance())
        return history, KeyedChanges(history.changes)

    async def _tell_all(self, history: History, changes: KeyedChanges, start: Revision) -> None:
        """Tell every ready watcher that stands within the piece."""
        group = [watcher for watcher in self._hub.ready if start <= watcher.next_revision <= history.through]
        is_large = len(history.changes) > PIECE_CHANGES
        until_s = perf_counter() + SLICE_S
        for watcher in group:
            if watcher not in self._hub.ready:
                continue  # cancelled meanwhile
            if is_large:
                chunks = await asyncio.get_running_loop().run_in_executor(None, _pick, watcher, changes)
                if watcher not in self._hub.ready:
                    continue
            else:
                chunks = _pick(watcher, changes)
            self._tell(watcher, history.through, chunks)
            if perf_counter() > until_s:
                await asyncio.sleep(0)
                until_s = perf_counter() + SLICE_S

    def _tell(self, watcher: Watcher, through: int, chunks: tuple[bytes, ...]) -> None:
        hub = self._hub
        del hub.ready[watcher]
        if chunks and not hub.tell(watcher, through, chunks):
            hub.park(watcher)
            return
        watcher.next_revision = through + 1
        if through < hub.applied_revision:
            hub.ready[watcher] = None
        else:
            hub.sync(watcher)


def _read_one(state: Snapshot, revision: Revision, *, with_previous: bool) -> tuple[History, KeyedChanges]:
    """One revision, however large."""
    history = read_changes(state, revision, max_changes=UNLIMITED, max_bytes=UNLIMITED, with_previous=with_previous, max_revisions=1)
    return history, KeyedChanges(history.changes)


def _pick(watcher: Watcher, changes: KeyedChanges) -> tuple[bytes, ...]:
    return watcher.chunks(changes.find(watcher.keys))
