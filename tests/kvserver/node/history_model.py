"""A log whose memory is compacted at random while members that are behind read it: real WAL (on a disk in memory), real window and history;
the clock and the reading thread are the test's.

`run(seed)` checks after each step that what is served is what the log holds there, and in the end that everybody catches up.
"""

from __future__ import annotations

import io
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvserver.logs import Logger, StreamOutput
from kvserver.metrics import Metrics
from kvserver.node import log_history
from kvserver.node.log_history import LogHistory
from kvserver.node.log_storage import LogStorage
from kvserver.node.log_window import ENTRY_OVERHEAD_BYTES, LogWindow
from kvserver.node.term_runs import TermRuns
from kvserver.testing.faults import MemoryDisk
from raft.errors import CompactedError, UnavailableError
from raft.types import ConfState, Entry, HardState, Index, Term
from wal import Marker, Metadata, Wal

METADATA = Metadata(cluster_id=1, member_id=2)
SEGMENT_BYTES = 4096
BLOCK_BYTES = 2_000
CACHE_BYTES = 6_000
RATE_BYTES_PER_S = 20_000
MAX_ENTRY_BYTES = 700


class ManualClock:
    """A loop's clock that moves when told."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[_Timer] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Timer:
        timer = _Timer(self.now_s + delay, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while due := [timer for timer in self.timers if timer.at_s <= until_s and not timer.is_over]:
            timer = min(due, key=lambda each: each.at_s)
            self.now_s = max(self.now_s, timer.at_s)
            timer.is_over = True
            timer.callback()
        self.timers = [timer for timer in self.timers if not timer.is_over]
        self.now_s = until_s


class _Timer:
    def __init__(self, at_s: float, callback: Callable[[], None]) -> None:
        self.at_s, self.callback, self.is_over = at_s, callback, False

    def cancel(self) -> None:
        self.is_over = True


class ManualThread:
    """Work is done, and its result delivered, when told."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = deque()
        self.ended: deque[Callable[[], None]] = deque()

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        self.waiting.append((work, done))

    def work(self) -> None:
        """Do the next piece."""
        if self.waiting:
            work, done = self.waiting.popleft()
            try:
                result, error = work(), None
            except Exception as failure:  # noqa: BLE001 - as Worker does
                result, error = None, failure
            self.ended.append(lambda: done(result, error))

    def deliver(self) -> None:
        """Have the next result arrive on the loop."""
        if self.ended:
            self.ended.popleft()()


class Life:
    """The log, and two members that are behind."""

    def __init__(self, seed: int, *, segment_bytes: int = SEGMENT_BYTES, cache_bytes: int = CACHE_BYTES) -> None:
        self.rng = random.Random(seed)
        self.disk = MemoryDisk(seed)
        self.wal = Wal.create(Path("/wal"), METADATA, files=self.disk, segment_size_bytes=segment_bytes)
        self.window = LogWindow(hard_state=HardState(), conf_state=ConfState(), durable=lambda: (Index(self.commit), ConfState()))
        self.clock, self.thread, self.metrics, self.lines = ManualClock(), ManualThread(), Metrics(version="1"), io.StringIO()
        self.fatal: list[Exception] = []
        self.ready = 0
        self.cache_bytes = cache_bytes
        self.history = LogHistory(
            first_index=self.wal.first_index,
            terms=TermRuns(self.wal.term_runs()),
            reader=self.wal.history(self.disk),
            worker=self.thread,
            clock=self.clock,
            cache_bytes=cache_bytes,
            block_bytes=BLOCK_BYTES,
            metrics=self.metrics,
            log=Logger(StreamOutput([self.lines])),
            on_ready=self._note_ready,
            on_fatal=self.fatal.append,
        )
        self.storage = LogStorage(self.window, self.history)
        self.entries: dict[int, Entry] = {}
        self.base = (0, 0)
        self.term = 1
        self.commit = 0
        self.last = 0
        self.floor = 1
        self.cursors = [1, 1]
        self.snapshots = 0
        self.served = 0
        self.began_s = self.clock.now_s

    def _note_ready(self) -> None:
        self.ready += 1

    # --- what the log goes through -----------------------------------------------------------------------------------------------------

    def save(self, first: int, count: int, size_bytes: int | None = None) -> None:
        """Entries of the current term, from `first` on (over what stood there)."""
        rng = self.rng
        new = [
            Entry(
                term=Term(self.term),
                index=Index(first + n),
                data=rng.randbytes(rng.randrange(MAX_ENTRY_BYTES) if size_bytes is None else size_bytes),
            )
            for n in range(count)
        ]
        self.wal.save(new, HardState(term=Term(self.term), commit=Index(self.commit)), sync=True)
        self.storage.append(new)
        for index in range(first, self.last + 1):
            self.entries.pop(index, None)
        self.entries.update({entry.index: entry for entry in new})
        self.last = first + count - 1

    def append(self) -> None:
        self.save(self.last + 1, self.rng.randrange(1, 12))

    def overwrite(self) -> None:
        """Another leader's entries, over what is not committed."""
        self.term += self.rng.randrange(1, 3)
        self.save(self.rng.randint(self.commit + 1, self.last + 1), self.rng.randrange(1, 6))

    def repeat(self) -> None:
        """Raft hands over once more what is durable and below the window."""
        low = max(self.base[0] + 1, self.window.first_index() - 10)
        if low < self.window.first_index():
            self.storage.append([self.entries[index] for index in range(low, self.window.first_index())])

    def commit_and_compact(self) -> None:
        self.commit = self.rng.randint(self.commit, self.last)
        self.wal.save([], HardState(term=Term(self.term), commit=Index(self.commit)), sync=False)
        self.window.compact(Index(self.rng.randint(min(self.commit, self.window.first_index() - 1), self.commit)))

    def release(self) -> None:
        """As the releaser does; the history may hear of it late."""
        index = Index(min(self.window.first_index() - 1, self.commit))
        self.wal.release(index, retain_bytes=self.rng.choice([0, 8_000, 20_000, 60_000]))
        if self.rng.random() < 0.7:
            self.history.raise_floor(self.wal.first_index)

    def install(self) -> None:
        """A snapshot replaces the log."""
        index = self.last + self.rng.randrange(1, 20)
        self.wal.save_marker(Marker(Index(index), Term(self.term)), HardState(term=Term(self.term), commit=Index(index)))
        self.storage.reset(Index(index), Term(self.term))
        self.entries.clear()
        self.base, self.commit, self.last = (index, self.term), index, index
        assert self.history.cached_bytes == 0, "nothing of the old log stays in memory"

    def lose_leadership(self) -> None:
        self.history.stop_serving()
        was, late = self.ready, len(self.thread.ended)
        for _ in range(late):
            self.thread.deliver()
        assert (self.ready, self.history.cached_bytes) == (was, 0), "a stale answer is dropped"

    # --- members that are behind ---------------------------------------------------------------------------------------------------------

    def feed(self, member: int, max_bytes: int = 1_500) -> bool:
        """Give one of them what it needs next, as raft would; whether it got anything."""
        cursor = self.cursors[member]
        if cursor > self.last:
            return False
        try:
            term = self.storage.term(Index(cursor - 1))
            found = self.storage.entries(Index(cursor), Index(self.last + 1), max_bytes)
        except CompactedError:
            assert cursor < self.storage.first_index(), "what is readable is not refused"
            self.snapshots += 1
            self.cursors[member] = self.window.first_index()
            return True
        except UnavailableError:
            assert cursor < self.window.first_index(), "what is in memory is there"
            return False
        assert term == self.term_of(cursor - 1), f"the term in front of {cursor}"
        assert found
        for offset, entry in enumerate(found):
            assert entry == self.entries[cursor + offset], f"entry {cursor + offset}"
        assert len(found) == 1 or sum(len(entry.data) for entry in found) <= max_bytes
        self.cursors[member] = cursor + len(found)
        self.served += len(found)
        return True

    def term_of(self, index: int) -> int:
        return self.base[1] if index == self.base[0] else self.entries[index].term

    def check(self) -> None:
        """What holds after every step."""
        assert not self.fatal, self.fatal
        first = self.storage.first_index()
        assert self.floor <= first <= self.window.first_index(), "the floor never moves back"
        self.floor = first
        for index in range(first - 1, self.last + 1):
            if index >= self.base[0]:
                assert self.storage.term(Index(index)) == self.term_of(index), f"the term of {index}"
        limit_bytes = max(self.cache_bytes, BLOCK_BYTES + MAX_ENTRY_BYTES + 40 * ENTRY_OVERHEAD_BYTES)
        assert self.history.cached_bytes <= limit_bytes, "the cache is bounded"
        assert self.history.cached_bytes == sum(
            len(entry.data) + ENTRY_OVERHEAD_BYTES for held, _ in self.history._cache._blocks.values() for entry in held
        )
        most = RATE_BYTES_PER_S * (self.clock.now_s - self.began_s + log_history._BURST_S) + 2 * (BLOCK_BYTES + MAX_ENTRY_BYTES)
        assert self.metrics.wal_read_bytes.value <= most, "reading keeps to its rate"

    def act(self) -> None:
        """One step, drawn at random."""
        rng = self.rng
        steps: list[tuple[int, Callable[[], object]]] = [
            (8, self.append),
            (2, self.overwrite),
            (1, self.repeat),
            (5, self.commit_and_compact),
            (2, self.release),
            (10, lambda: self.feed(rng.randrange(2))),
            (8, self.thread.work),
            (8, self.thread.deliver),
            (3, lambda: self.clock.advance(rng.random() * 0.3)),
        ]
        if rng.random() < 0.02:
            steps = [(1, self.install), (2, self.lose_leadership), (1, lambda: self.cursors.__setitem__(0, 1))]
        rng.choices([step for _, step in steps], [weight for weight, _ in steps])[0]()
        self.check()

    def catch_up(self) -> None:
        """Nothing happens any more: both members get everything, soon, and the memory is given back."""
        self.release()
        self.history.raise_floor(self.wal.first_index)
        for _ in range(1_500):
            self.feed(0)
            self.feed(1)
            self.thread.work()
            self.thread.deliver()
            self.clock.advance(0.01)
            self.check()
            if min(self.cursors) > self.last:
                break
        assert min(self.cursors) > self.last, "everybody catches up"
        for _ in range(3):
            self.thread.work()
            self.thread.deliver()
        self.clock.advance(2 * log_history.IDLE_S + 1)
        assert self.history.cached_bytes == 0, "an idle cache is dropped"


def run(seed: int, steps: int = 300) -> Life:
    """One history; AssertionError if anything is wrong with it."""
    life = Life(seed)
    for _ in range(steps):
        life.act()
    life.catch_up()
    return life
