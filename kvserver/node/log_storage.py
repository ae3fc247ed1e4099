"""The log as raft sees it: the window in memory, and below it what can be read back from the WAL.

Purpose: raft's `Storage` over both. There are two floors: `first_index` (`log_first`), the lowest entry that can be had at all, and the
window's (`mem_first`), the lowest in memory. A member that needs less than the first gets a snapshot; one that needs less than the second
is fed from disk.

Rules
- Terms are known down to `first_index - 1` at any time; entries below memory are given when they have been read, `UnavailableError` (ask
  again) until then.
- One answer never crosses from disk into memory: raft sends what it got and asks for the rest.
- A snapshot to send is the window's affair.

Invariants: first_index <= the window's first index; first_index never moves back but by `reset`.

Source: log-memory.md, "Second step"; etcd-io/raft's Storage interface.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvserver.node.log_history import LogHistory
from kvserver.node.log_window import LogWindow
from raft.errors import CompactedError, UnavailableError
from raft.types import ConfState, Entry, HardState, Index, Snapshot, Term


class LogStorage:
    """Raft's storage; also where durable entries and installed snapshots are handed in, so that both halves hear of them."""

    def __init__(self, window: LogWindow, history: LogHistory) -> None:
        self.window = window
        self.history = history

    def initial_state(self) -> tuple[HardState, ConfState]:
        """The hard state and configuration that the member started with."""
        return self.window.initial_state()

    def first_index(self) -> Index:
        """The lowest index that can be had, from memory or from disk."""
        return min(self.history.first_index, self.window.first_index())

    def last_index(self) -> Index:
        """The highest durable index."""
        return self.window.last_index()

    def term(self, index: Index) -> Term:
        """The term of `index`, for `first_index - 1 <= index <= last_index`.

        Raises:
            CompactedError: below that range.
            UnavailableError: above it.
        """
        if index >= self.window.first_index() - 1:
            return self.window.term(index)
        if index < self.first_index() - 1:
            raise CompactedError
        return self.history.terms.term_at(index)

    def entries(self, lo: Index, hi: Index, max_size_bytes: int) -> list[Entry]:
        """Entries from `lo` on, below `hi`, at least one, cut where their payload exceeds `max_size_bytes` and where memory begins.

        Raises:
            CompactedError: `lo` is below `first_index`.
            UnavailableError: `hi` is above `last_index + 1`, or they are being read from disk.
        """
        memory_first = self.window.first_index()
        if lo >= memory_first:
            return self.window.entries(lo, hi, max_size_bytes)
        if lo < self.first_index():
            raise CompactedError
        found = self.history.take(lo, min(hi, memory_first), max_size_bytes)
        if not found:
            raise UnavailableError
        return found

    def snapshot(self) -> Snapshot:
        """As `LogWindow.snapshot`."""
        return self.window.snapshot()

    def append(self, entries: Sequence[Entry]) -> None:
        """As `LogWindow.append`: they are durable."""
        self.window.append(entries)
        first = self.window.first_index()  # what is below it is applied, and keeps its term whatever comes once more
        self.history.terms.note(entries if not entries or entries[0].index >= first else [each for each in entries if each.index >= first])

    def reset(self, index: Index, term: Term) -> None:
        """As `LogWindow.reset`: a snapshot was installed."""
        self.window.reset(index, term)
        self.history.reset(index, term)
