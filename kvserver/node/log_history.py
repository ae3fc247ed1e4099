"""What the log holds below memory: entries that are read back from the WAL for members that are behind.

Purpose: raft asks for entries synchronously; the disk answers when it can. `take` gives what has been read, or nothing and has it read: the
core is told `UnavailableError`, and `on_ready` lets it try again.

Rules
- Only what is committed is asked for (memory begins at or below the applied index), so an answer is right whenever it comes: the same
  index never holds anything else. The term of each entry is checked all the same.
- Reads run on a thread of their own, one at a time, in blocks of about `BLOCK_BYTES`; the one behind what was just taken is read ahead.
- `RATE_BYTES_PER_S` bounds what is read: members that catch up leave the disk, and the interpreter, to the writes.
- The floor (`first_index`) never moves back but by `reset`. It follows the WAL's releases; a segment that proves gone, damaged or
  unreadable moves it on, so that who needs what was there gets a snapshot. Damage is logged, and nothing from behind it is served.
- Memory: `cache_bytes` of blocks (or one block, if a single entry is larger), gone `IDLE_S` after the last was used; while a block is read,
  that one more; one pair for each change of term.
- A result that arrives after `reset`, `stop_serving` or `stop` is dropped.

One owner, on the loop; only `HistoryReader.read` runs elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, Final, Protocol

from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node.block_cache import BlockCache
from kvserver.node.log_window import ENTRY_OVERHEAD_BYTES
from kvserver.node.term_runs import TermRuns
from raft.types import Entry, Index, Term
from wal import DamagedError, HistoryGoneError, WalError, guide

BLOCK_BYTES: Final = 768 * 1024
"""Data in one read: with what raft's size limit adds for each entry it fits one message."""
RATE_BYTES_PER_S: Final = 128 * 1024 * 1024
_BURST_S: Final = 0.1
IDLE_S: Final = 5.0
MAX_WAITING: Final = 64
"""Places that wait to be read; a further one replaces the oldest (raft asks again)."""


_DAMAGED: Final = (
    "the write-ahead log is damaged where another member needs it: members get a snapshot instead; this member runs on, but may refuse to "
    f"start again with this log: replace it ({guide('corruption')})"
)
_UNREADABLE: Final = "the write-ahead log can't be read where another member needs it: members get a snapshot instead"


class EntryReader(Protocol):
    """Blocking reads of the log; `wal.HistoryReader`."""

    def read(self, lo: Index, hi: Index, max_bytes: int, term_at: Callable[[int], Term]) -> list[Entry]: ...


class Thread(Protocol):
    """Where reads run, in order; `done(result, error)` is called on the loop. `Worker`."""

    def submit(self, work: Callable[[], object], done: Callable[[Any, BaseException | None], None]) -> None: ...


class Timer(Protocol):
    """What `Clock.call_later` gives."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """The event loop's clock."""

    def time(self) -> float: ...
    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer: ...


class LogHistory:
    """Entries `[first_index, ..)` on disk."""

    def __init__(
        self,
        *,
        first_index: Index,
        terms: TermRuns,
        reader: EntryReader,
        worker: Thread,
        clock: Clock,
        cache_bytes: int,
        block_bytes: int = BLOCK_BYTES,
        metrics: Metrics,
        log: Logger,
        on_ready: Callable[[], None],
        on_fatal: Callable[[Exception], None],
    ) -> None:
        self._first = first_index
        self.terms = terms
        self._reader = reader
        self._worker = worker
        self._metrics = metrics
        self._log = log
        self._on_ready = on_ready
        self._on_fatal = on_fatal
        self._clock = clock
        self._cache = BlockCache(cache_bytes)
        self._block_bytes = block_bytes
        self._waiting: OrderedDict[Index, Index] = OrderedDict()  # from where -> up to where
        self._is_reading = False
        self._is_stopped = False
        self._generation = 0
        self._next_s = 0.0
        self._pause: Timer | None = None
        self._idle: Timer | None = None
        self._used_s = 0.0

    @property
    def first_index(self) -> Index:
        """The lowest index that can be read back."""
        return self._first

    @property
    def cached_bytes(self) -> int:
        """Memory that the blocks take."""
        return self._cache.size_bytes

    def take(self, lo: Index, hi: Index, max_size_bytes: int) -> list[Entry]:
        """Entries from `lo` on, below `hi`, as many as are here and fit; none: they are being read.

        `lo` is at or above `first_index`; everything below `hi` is committed, durable and below memory.
        """
        found = self._cache.take(lo, hi, max_size_bytes)
        if not found:
            self._want(lo, hi)
            return found
        self._used_s = self._clock.time()
        behind = Index(lo + len(found))
        if behind < hi:
            self._want(behind, hi)
        return found

    def raise_floor(self, index: Index) -> None:
        """What is below `index` can't be read any more."""
        if index > self._first:
            self._first = index
            self.terms.forget(Index(index - 1))

    def reset(self, index: Index, term: Term) -> None:
        """A snapshot through `index` was installed: nothing before it can be read."""
        self._first = Index(index + 1)
        self.terms.reset(index, term)
        self._cancel()

    def stop_serving(self) -> None:
        """This member does not lead any more: nobody waits for what was asked."""
        self._cancel()

    def stop(self) -> None:
        """Read nothing more."""
        self._is_stopped = True
        self._cancel()

    def _cancel(self) -> None:
        self._generation += 1
        self._waiting.clear()
        self._cache.clear()
        for timer in (self._pause, self._idle):
            if timer is not None:
                timer.cancel()
        self._pause = self._idle = None

    def _want(self, lo: Index, hi: Index) -> None:
        if self._is_stopped or self._cache.holds(lo):
            return
        self._waiting[lo] = hi
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popitem(last=False)
        self._read_next()

    def _read_next(self) -> None:
        """Begin the next read, unless one is under way or the rate says wait."""
        if self._is_reading or self._pause is not None:
            return
        wait_s = self._next_s - self._clock.time()
        if wait_s > 0:
            self._pause = self._clock.call_later(wait_s, self._end_pause)
            return
        while self._waiting:
            lo, hi = self._waiting.popitem(last=False)
            if lo >= self._first and not self._cache.holds(lo):
                self._is_reading = True
                # The terms are copied: entries below `hi` keep theirs for ever, but the runs grow and are cut while the thread reads.
                read = partial(_timed_read, self._reader, lo, hi, self._block_bytes, self.terms.copy())
                self._worker.submit(read, partial(self._read_ended, self._generation, lo, hi))
                return

    def _end_pause(self) -> None:
        self._pause = None
        self._read_next()

    def _read_ended(
        self, generation: int, lo: Index, hi: Index, result: tuple[list[Entry], float] | None, error: BaseException | None
    ) -> None:
        self._is_reading = False
        if generation == self._generation:
            if result is None:
                self._note_unreadable(lo, hi, error)
            else:
                self._keep(*result)
            self._on_ready()
        self._read_next()

    def _keep(self, entries: list[Entry], took_s: float) -> None:
        size_bytes = sum(len(entry.data) for entry in entries)
        cost_bytes = size_bytes + len(entries) * ENTRY_OVERHEAD_BYTES  # small entries cost time rather than bytes
        self._metrics.wal_reads.add()
        self._metrics.wal_read_bytes.add(size_bytes)
        self._metrics.wal_read_seconds.observe(took_s)
        now_s = self._clock.time()
        self._next_s = max(self._next_s, now_s - _BURST_S) + cost_bytes / RATE_BYTES_PER_S
        self._cache.put(entries)
        self._used_s = now_s
        if self._idle is None:
            self._idle = self._clock.call_later(IDLE_S, self._drop_if_idle)

    def _drop_if_idle(self) -> None:
        self._idle = None
        left_s = self._used_s + IDLE_S - self._clock.time()
        if left_s > 0:
            self._idle = self._clock.call_later(left_s, self._drop_if_idle)
        else:
            self._cache.clear()

    def _note_unreadable(self, lo: Index, hi: Index, error: BaseException | None) -> None:
        """`[lo, hi)`, or its beginning, can't be read: whoever needs it gets a snapshot."""
        match error:
            case HistoryGoneError():
                self.raise_floor(Index(error.index + 1))
            case WalError():
                self._metrics.wal_read_failures.add()
                self._cache.clear()
                self.raise_floor(hi)
                text = _DAMAGED if isinstance(error, DamagedError) else _UNREADABLE
                self._log.error(text, first_index=lo, end_index=hi, reason=str(error))
            case Exception():
                self._on_fatal(error)
            case _:
                self._on_fatal(RuntimeError(f"reading the log back ended with {error!r}"))


def _timed_read(reader: EntryReader, lo: Index, hi: Index, block_bytes: int, terms: TermRuns) -> tuple[list[Entry], float]:
    """On the reading thread."""
    began_s = perf_counter()
    entries = reader.read(lo, hi, block_bytes, terms.term_at)
    return entries, perf_counter() - began_s
