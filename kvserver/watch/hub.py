"""The hub: tells every watcher of every revision that concerns it, once, in order.

Theory of operation
- Apply tells the hub of each revision when it is in mvcc (`note_revision`). The changes are matched with the watchers' keys and encoded at
  once, as a compaction may take from the history what is not read now; they go to the watchers' streams a little later, in slices of
  `SLICE_S` (the *backlog*), so that ten thousand watchers of one key don't hold up the loop.
- A watcher that can't be told (its stream is full) is not waited for, and nothing is kept for it: it falls behind at exactly that
  revision, and is caught up from the history (catch_up.py) when its client has read on. So do all, if the backlog grows beyond its bound,
  if one revision changes more than `FANOUT_CHANGES` keys or has `FANOUT_BYTES` of events, or if a snapshot replaces the store.
- A watcher whose next revision is compacted before it was told of it is cancelled with the compacted revision: it never skips.

Rules
- Every revision up to `_delivered` has been handed to the streams of all synced watchers that it concerns; with an empty backlog that is
  the newest one. A progress message of a stream is made only then, and when none of its watchers is behind: it stands behind all events up
  to its revision.
- Belongs to the loop. `note_revision` and the others return at once; the slices and `CatchUp.run` do the work.

Invariants (tests/kvserver/watch/test_model.py): the events that a watcher is told are those of its keys from its start revision on, in
order, each once, all of a revision together, whatever its stream's speed, and up to a prefix if it was cancelled.

Source: etcd's mvcc/watchable_store (synced and unsynced watchers; what a start revision means); the backlog and parking are ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Protocol, TypeVar

from kvserver.errors import CorruptError, RequestError, TooManyRequestsError
from kvserver.mvcc import Allowance, Snapshot
from kvserver.types import Revision
from kvserver.watch.changes import Change, change_of, newest
from kvserver.watch.index import WatcherIndex
from kvserver.watch.stream import NO_WATCHER, Notice, QueueTotal, WatchStream
from kvserver.watch.watcher import Watcher, WatcherState, WatchOptions

__all__ = ["HistorySource", "WatchHub", "WatchLimits"]

SLICE_S: Final = 0.002
FANOUT_CHANGES: Final = 512
FANOUT_BYTES: Final = 4 << 20
_MATCH_BYTES: Final = 120
"""A watcher's place in the backlog."""

_Answer = TypeVar("_Answer")


class HistorySource(Protocol):
    """The store, as far as watching needs it."""

    @property
    def current_revision(self) -> Revision: ...
    @property
    def compacted_revision(self) -> Revision: ...

    def snapshot(self, allowance: Allowance) -> Snapshot:
        """The present state, for the loop. Raises CorruptError, StoppedError: it is not for readers any more."""

    async def run_on_view(self, work: Callable[[Snapshot], _Answer], allowance: Allowance) -> _Answer:
        """Have a thread read a view of the present state. Raises RequestTimeoutError: try again; and what `work` raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLimits:
    """What watching may hold: bytes queued to one stream, and to all; watchers; the largest fragment of a revision."""

    stream_bytes: int = 1 << 20
    total_bytes: int = 16 << 20
    max_watchers: int = 100_000
    fragment_bytes: int = 2 << 20


class _Fanout:
    """A revision on its way to its watchers."""

    __slots__ = ("revision", "size_bytes", "targets")

    def __init__(self, revision: int, matched: dict[Watcher, list[Change]], size_bytes: int) -> None:
        self.revision = revision
        self.size_bytes = size_bytes
        self.targets: Iterator[tuple[Watcher, list[Change]]] = iter(matched.items())


class WatchHub:
    """All watchers of one member. Made and used on the loop."""

    def __init__(self, source: HistorySource, limits: WatchLimits) -> None:
        self.source = source
        self.limits = limits
        self.total = QueueTotal(limits.total_bytes)
        self.ready: dict[Watcher, None] = {}
        """The watchers to be caught up, whose turn is next first."""
        self.on_ready: Callable[[], None] = _nothing
        self.events_sent = 0
        self.watcher_count = 0
        self.slow_count = 0
        self._watchers_bytes = 0
        self._streams: dict[WatchStream, None] = {}
        self._index: WatcherIndex[Watcher] = WatcherIndex()
        self._applied = int(source.current_revision)
        self._delivered = self._applied
        self._backlog: deque[_Fanout] = deque()
        self._backlog_bytes = 0
        self._is_pumping = False
        self._wanting_progress: dict[WatchStream, None] = {}
        self._stopped_by: RequestError | None = None

    # --- what it shows -------------------------------------------------------------------------------------------------------------------

    @property
    def applied_revision(self) -> int:
        """The newest revision."""
        return self._applied

    @property
    def stream_count(self) -> int:
        """Open streams."""
        return len(self._streams)

    @property
    def queued_bytes(self) -> int:
        """What waits in the streams."""
        return self.total.queued_bytes

    @property
    def max_queued_bytes(self) -> int:
        """Its bound."""
        return self.total.max_bytes

    @property
    def held_bytes(self) -> int:
        """What watching holds: queues, the backlog, and the watchers themselves."""
        return self.total.queued_bytes + self._backlog_bytes + self._watchers_bytes

    # --- clients -------------------------------------------------------------------------------------------------------------------------

    def open_stream(self) -> WatchStream:
        """A stream for one client, which `close_stream` must end."""
        stream = WatchStream(self.total, max_bytes=self.limits.stream_bytes)
        self._streams[stream] = None
        if self._stopped_by is not None:
            stream.end(self._stopped_by)
        return stream

    def close_stream(self, stream: WatchStream) -> None:
        """The client is gone, and all it had with it: of ten thousand watchers in slices, which are told nothing any more."""
        stream.close()
        self._wanting_progress.pop(stream, None)
        self._close_some(stream, list(stream.watchers.values()))

    def _close_some(self, stream: WatchStream, watchers: list[Watcher]) -> None:
        until_s = perf_counter() + SLICE_S
        while watchers:
            self._close(watchers.pop())
            if watchers and perf_counter() > until_s:
                asyncio.get_running_loop().call_soon(self._close_some, stream, watchers)
                return
        del self._streams[stream]

    def create(self, stream: WatchStream, options: WatchOptions) -> None:
        """Make a watcher; the stream says whether it was made, in front of its first event."""
        reason = self._why_not(stream, options)
        if reason:
            refused = Notice(watch_id=NO_WATCHER, revision=self._applied, created=True, canceled=True, cancel_reason=reason)
            stream.put(refused)
            return
        watcher = Watcher(_choose_id(stream, options), options, stream, options.start_revision or self._applied + 1)
        stream.watchers[watcher.id] = watcher
        self.watcher_count += 1
        self._watchers_bytes += watcher.size_bytes
        stream.put(Notice(watch_id=watcher.id, revision=self._applied, created=True))
        if watcher.next_revision > self._applied:
            self._index.add(watcher, watcher.keys)
        else:
            self._fall_behind(watcher)
            self._make_ready(watcher)

    def cancel(self, stream: WatchStream, watch_id: int) -> None:
        """End a watcher at its client's wish; an unknown one is passed over in silence."""
        watcher = stream.watchers.get(watch_id)
        if watcher is not None:
            self._close(watcher)
            stream.put(Notice(watch_id=watch_id, revision=self._applied, canceled=True))
            self._answer_progress(stream)

    def cancel_compacted(self, watcher: Watcher, compacted: int) -> None:
        """End a watcher whose next revision is compacted."""
        stream = watcher.stream
        self._close(watcher)
        stream.put(Notice(watch_id=watcher.id, revision=self._applied, canceled=True, compact_revision=compacted))
        self._answer_progress(stream)

    def request_progress(self, stream: WatchStream) -> None:
        """Say how far all watchers of the stream have come, once none is behind; one answer for all requests until then."""
        self._wanting_progress[stream] = None
        self._answer_progress(stream)

    def tick_progress(self, stream: WatchStream) -> None:
        """The periodic progress of the watchers that want it, and have been told nothing since the last tick."""
        for watcher in stream.watchers.values():
            is_due = watcher.options.progress_notify and watcher.state is WatcherState.SYNCED and not self._backlog
            if is_due and watcher.is_quiet and watcher.next_revision <= self._applied + 1:
                stream.try_put((Notice(watch_id=watcher.id, revision=self._applied),))
            watcher.is_quiet = True

    def sent(self, stream: WatchStream) -> None:
        """The client has taken a message."""
        stream.sent()
        if stream.parked and stream.is_low:
            for watcher in tuple(stream.parked):
                self._make_ready(watcher)

    def stop(self, error: RequestError) -> None:
        """End all streams, and those that come, with this error."""
        self._stopped_by = error
        for stream in self._streams:
            stream.end(error)

    # --- the store -----------------------------------------------------------------------------------------------------------------------

    def note_revision(self, revision: Revision, count: int) -> None:
        """A revision with so many changes was applied."""
        is_next, self._applied = revision == self._applied + 1, int(revision)
        if not self._index:
            self._note_quiet()
        elif count > FANOUT_CHANGES or not is_next:
            self.fall_behind_all()
        else:
            try:
                self._fan_out(revision, count)
            except CorruptError:
                self.fall_behind_all()  # reading the history meets the same damage, and says so to those whom it concerns

    def note_replaced(self) -> None:
        """A snapshot has taken the store's place."""
        self._applied = max(self._applied, int(self.source.current_revision))
        self.fall_behind_all()

    def fall_behind_all(self) -> None:
        """Have all synced watchers caught up from the history instead of from the backlog."""
        self._index = WatcherIndex()
        for stream in self._streams:
            for watcher in stream.watchers.values():
                if watcher.state is not WatcherState.SYNCED:
                    continue
                watcher.next_revision = max(watcher.next_revision, self._delivered + 1)
                if watcher.next_revision > self._applied:
                    self._index.add(watcher, watcher.keys)
                else:
                    self._fall_behind(watcher)
                    self._make_ready(watcher)
        self._backlog.clear()
        self._backlog_bytes = 0
        self._note_quiet()

    def _fan_out(self, revision: int, count: int) -> None:
        state = self.source.snapshot(Allowance())
        matched: dict[Watcher, list[Change]] = {}
        size_bytes = 0
        for key, record in newest(state, count):
            watchers = tuple(self._index.find(key))
            if not watchers:
                continue
            with_previous = any(watcher.options.prev_kv for watcher in watchers)
            change = change_of(state, revision, record, with_previous=with_previous)
            size_bytes += change.size_bytes + _MATCH_BYTES * len(watchers)
            if size_bytes > FANOUT_BYTES:
                self.fall_behind_all()
                return
            for watcher in watchers:
                matched.setdefault(watcher, []).append(change)
        if not matched:
            self._note_quiet()
            return
        self._backlog.append(_Fanout(revision, matched, size_bytes))
        self._backlog_bytes += size_bytes
        if self._backlog_bytes > self.limits.total_bytes:
            self.fall_behind_all()
        elif not self._is_pumping:
            self._schedule()

    def _schedule(self) -> None:
        self._is_pumping = True
        asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Hand the backlog to the streams, for one slice."""
        until_s = perf_counter() + SLICE_S
        while self._backlog:
            fanout = self._backlog[0]
            for watcher, changes in fanout.targets:
                self._deliver(watcher, fanout.revision, changes)
                if perf_counter() > until_s:
                    self._schedule()
                    return
            self._backlog.popleft()
            self._backlog_bytes -= fanout.size_bytes
            self._delivered = fanout.revision
        self._is_pumping = False
        self._note_quiet()

    def _deliver(self, watcher: Watcher, revision: int, changes: list[Change]) -> None:
        if watcher.state is not WatcherState.SYNCED:
            return
        chunks = watcher.chunks(changes)
        if not chunks:
            return
        if self.tell(watcher, revision, chunks):
            watcher.next_revision = revision + 1
        else:
            watcher.next_revision = revision
            self._index.remove(watcher, watcher.keys)
            self._fall_behind(watcher)
            self.park(watcher)

    def _note_quiet(self) -> None:
        """If the backlog is empty, everything is delivered."""
        if self._backlog:
            return
        self._delivered = self._applied
        for stream in tuple(self._wanting_progress):
            self._answer_progress(stream)

    def _answer_progress(self, stream: WatchStream) -> None:
        if stream in self._wanting_progress and not stream.unsynced and not self._backlog:
            del self._wanting_progress[stream]
            stream.put(Notice(watch_id=NO_WATCHER, revision=self._applied))

    # --- watchers, for the catch-up too --------------------------------------------------------------------------------------------------

    def tell(self, watcher: Watcher, revision: int, chunks: tuple[bytes, ...]) -> bool:
        """Queue these events to the watcher's stream, as of `revision`; False: there is no room."""
        if not watcher.stream.try_put(watcher.notices(revision, chunks, self.limits.fragment_bytes)):
            return False
        watcher.is_quiet = False
        self.events_sent += len(chunks)
        return True

    def sync(self, watcher: Watcher) -> None:
        """A ready watcher has been told of everything."""
        watcher.state = WatcherState.SYNCED
        stream = watcher.stream
        stream.unsynced.discard(watcher)
        self.slow_count -= 1
        self._index.add(watcher, watcher.keys)
        self._answer_progress(stream)

    def park(self, watcher: Watcher) -> None:
        """The stream of a watcher that is behind is full: it waits until its client has read on."""
        watcher.state = WatcherState.PARKED
        watcher.stream.parked[watcher] = None

    def fail(self, stream: WatchStream, error: RequestError) -> None:
        """What a stream's watcher needs can't be read: end the stream."""
        stream.end(error)
        for watcher in tuple(stream.watchers.values()):
            self._close(watcher)

    def _fall_behind(self, watcher: Watcher) -> None:
        self.slow_count += 1
        watcher.stream.unsynced.add(watcher)

    def _make_ready(self, watcher: Watcher) -> None:
        watcher.stream.parked.pop(watcher, None)
        watcher.state = WatcherState.READY
        self.ready[watcher] = None
        self.on_ready()

    def _close(self, watcher: Watcher) -> None:
        """Take a watcher out of everything."""
        stream = watcher.stream
        match watcher.state:
            case WatcherState.SYNCED:
                self._index.remove(watcher, watcher.keys)
            case WatcherState.READY:
                del self.ready[watcher]
            case WatcherState.PARKED:
                del stream.parked[watcher]
            case WatcherState.CLOSED:
                return
        if watcher in stream.unsynced:
            stream.unsynced.discard(watcher)
            self.slow_count -= 1
        watcher.state = WatcherState.CLOSED
        del stream.watchers[watcher.id]
        self.watcher_count -= 1
        self._watchers_bytes -= watcher.size_bytes

    def _why_not(self, stream: WatchStream, options: WatchOptions) -> str:
        """Why no such watcher can be made; empty if it can."""
        keys = options.keys
        if keys.hi is not None and keys.lo >= keys.hi:
            return "mvcc: watcher range is empty"
        if options.start_revision < 0:
            return "mvcc: watch start revision is negative"
        if options.watch_id and options.watch_id in stream.watchers:
            return "mvcc: duplicate watch ID provided on the WatchStream"
        if self.watcher_count >= self.limits.max_watchers:
            return TooManyRequestsError.message
        return ""


def _choose_id(stream: WatchStream, options: WatchOptions) -> int:
    if options.watch_id:
        return options.watch_id
    while stream.next_id in stream.watchers:
        stream.next_id += 1
    stream.next_id += 1
    return stream.next_id - 1


def _nothing() -> None:
    """Nobody catches up yet."""
