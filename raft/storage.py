"""The durable log as the core sees it, and an implementation in memory.

Rules: the core only reads, through the `Storage` Protocol; whoever drives the core writes. A storage must hold what the core was told is
durable: entries from `first_index` on, the term of `first_index - 1`, and the hard state and configuration it starts with.

Invariants of MemoryStorage: slot 0 is a marker that keeps the position (index, term) before the first entry; indexes are contiguous.

Source: etcd-io/raft's Storage interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raft.errors import CompactedError, SnapshotOutOfDateError, UnavailableError
from raft.sizes import limit_size
from raft.types import EMPTY_HARD_STATE, ConfState, Entry, HardState, Index, Snapshot, SnapshotMetadata, Term


class Storage(Protocol):
    """Read access to the durable log."""

    def initial_state(self) -> tuple[HardState, ConfState]:
        """The hard state and configuration at start."""

    def entries(self, lo: Index, hi: Index, max_size_bytes: int) -> list[Entry]:
        """Entries in [lo, hi), cut to `max_size_bytes` encoded but at least one; the list is the caller's.

        Raises:
            CompactedError: `lo` is below `first_index`.
            UnavailableError: not there (now).
        """

    def term(self, index: Index) -> Term:
        """The term at `index` in [first_index - 1, last_index].

        Raises:
            CompactedError: below that range.
            UnavailableError: above it.
        """

    def first_index(self) -> Index:
        """The lowest index that can be read."""

    def last_index(self) -> Index:
        """The highest durable index; `first_index - 1` if there are no entries."""

    def snapshot(self) -> Snapshot:
        """The most recent snapshot that could be sent.

        Raises:
            SnapshotTemporarilyUnavailableError: it is being prepared; ask again.
        """


class MemoryStorage:
    """A storage in memory, for tests and simulations. An empty log may start with a configuration (`conf_state`)."""

    def __init__(self, conf_state: ConfState | None = None) -> None:
        self._hard_state = EMPTY_HARD_STATE
        self._snapshot = Snapshot(metadata=SnapshotMetadata(conf_state=conf_state or ConfState()))
        self._entries: list[Entry] = [Entry(term=Term(0), index=Index(0))]

    def initial_state(self) -> tuple[HardState, ConfState]:
        """The hard state last set, and the configuration of the snapshot."""
        return self._hard_state, self._snapshot.metadata.conf_state

    def set_hard_state(self, hard_state: HardState) -> None:
        """Replace the hard state."""
        self._hard_state = hard_state

    def entries(self, lo: Index, hi: Index, max_size_bytes: int) -> list[Entry]:
        """See `Storage.entries`."""
        offset = self._entries[0].index
        if lo <= offset:
            raise CompactedError
        if hi > self.last_index() + 1 or len(self._entries) == 1:
            raise UnavailableError
        return limit_size(self._entries[lo - offset : hi - offset], max_size_bytes)

    def term(self, index: Index) -> Term:
        """See `Storage.term`."""
        position = index - self._entries[0].index
        if position < 0:
            raise CompactedError
        if position >= len(self._entries):
            raise UnavailableError
        return self._entries[position].term

    def first_index(self) -> Index:
        """See `Storage.first_index`."""
        return Index(self._entries[0].index + 1)

    def last_index(self) -> Index:
        """See `Storage.last_index`."""
        return self._entries[-1].index

    def snapshot(self) -> Snapshot:
        """The snapshot last applied or created."""
        return self._snapshot

    def apply_snapshot(self, snapshot: Snapshot) -> None:
        """Replace everything by `snapshot`.

        Raises:
            SnapshotOutOfDateError: the one held is as new.
        """
        if self._snapshot.metadata.index >= snapshot.metadata.index:
            raise SnapshotOutOfDateError
        self._snapshot = snapshot
        self._entries = [Entry(term=snapshot.metadata.term, index=snapshot.metadata.index)]

    def create_snapshot(self, index: Index, conf_state: ConfState | None, data: bytes) -> Snapshot:
        """Make the snapshot at `index` (<= last_index) the current one; `conf_state` None keeps the last.

        Raises:
            SnapshotOutOfDateError: the one held is as new.
            UnavailableError: `index` is beyond the log.
        """
        held = self._snapshot.metadata
        if index <= held.index:
            raise SnapshotOutOfDateError
        metadata = SnapshotMetadata(index=index, term=self.term(index), conf_state=held.conf_state if conf_state is None else conf_state)
        self._snapshot = Snapshot(metadata=metadata, data=data)
        return self._snapshot

    def compact(self, index: Index) -> None:
        """Drop the entries through `index`.

        Raises:
            CompactedError: they are gone already.
            UnavailableError: `index` is beyond the log.
        """
        offset = self._entries[0].index
        if index <= offset:
            raise CompactedError
        if index > self.last_index():
            raise UnavailableError
        kept = self._entries[index - offset]
        self._entries[: index - offset + 1] = [Entry(term=kept.term, index=kept.index)]

    def append(self, entries: Sequence[Entry]) -> None:
        """Take over `entries` (contiguous); what is held at and behind the first one's index is replaced.

        Raises:
            UnavailableError: they would leave a gap.
        """
        if not entries:
            return
        first = self.first_index()
        if entries[-1].index < first:
            return
        if entries[0].index < first:
            entries = entries[first - entries[0].index :]
        position = entries[0].index - self._entries[0].index
        if position > len(self._entries):
            raise UnavailableError(f"entries from {entries[0].index} would leave a gap behind {self.last_index()}")
        self._entries[position:] = entries
