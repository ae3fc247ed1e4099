"""The tail of the log that is not yet known to be durable, and a snapshot that is being installed.

Rules: entries above `offset - 1` are here, below it in the storage. `next_*` is what has not been handed to the storage yet; handing over
moves `offset_in_progress`, the storage's acknowledgement moves `offset`. An acknowledgement counts only if index and term are still what is
held here: the entry may have been replaced meanwhile by one of a later term.

Invariants: offset <= offset_in_progress <= offset + len(entries); entries[i].index == offset + i.

Source: etcd-io/raft doc.go, on asynchronous storage writes and the ABA problem of acknowledgements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raft.types import Entry, Index, Snapshot, Term


class Unstable:
    """Entries and snapshot under way to the storage. Mutable; owned by the log."""

    __slots__ = ("_info", "_routine", "entries", "is_snapshot_in_progress", "offset", "offset_in_progress", "snapshot")

    def __init__(self, offset: Index, info: Callable[[str], None], routine: Callable[[str], None] | None) -> None:
        self.snapshot: Snapshot | None = None
        self.is_snapshot_in_progress = False
        self.entries: list[Entry] = []
        self.offset = offset
        self.offset_in_progress = offset
        self._info = info
        self._routine = routine

    @property
    def last_index(self) -> Index | None:
        """The last index held here; None if the storage knows."""
        if self.entries:
            return Index(self.offset + len(self.entries) - 1)
        return None if self.snapshot is None else self.snapshot.metadata.index

    def term(self, index: Index) -> Term | None:
        """The term at `index`; None if it is not held here."""
        position = index - self.offset
        if position >= 0:
            return self.entries[position].term if position < len(self.entries) else None
        if self.snapshot is not None and self.snapshot.metadata.index == index:
            return self.snapshot.metadata.term
        return None

    def slice(self, lo: int, hi: int) -> list[Entry]:
        """A copy of [lo, hi), which must lie within what is held."""
        return self.entries[lo - self.offset : hi - self.offset]

    @property
    def has_next_entries(self) -> bool:
        """There are entries that were not handed to the storage yet."""
        return self.offset_in_progress < self.offset + len(self.entries)

    def next_entries(self) -> list[Entry]:
        """The entries that were not handed to the storage yet."""
        return self.entries[self.offset_in_progress - self.offset :]

    def next_snapshot(self) -> Snapshot | None:
        """The snapshot that was not handed to the storage yet."""
        return None if self.is_snapshot_in_progress else self.snapshot

    def accept_in_progress(self) -> None:
        """Everything held here was handed to the storage."""
        self.offset_in_progress = Index(self.offset + len(self.entries))
        if self.snapshot is not None:
            self.is_snapshot_in_progress = True

    def stable_to(self, index: Index, term: Term) -> None:
        """The storage holds everything through the entry (index, term)."""
        held = self.term(index)
        if held is None:
            self._note("entry at index %d missing from unstable log; ignoring", index)
        elif index < self.offset:
            self._note("entry at index %d matched unstable snapshot; ignoring", index)
        elif held != term:
            message = "entry at (index,term)=(%d,%d) mismatched with entry at (%d,%d) in unstable log; ignoring"
            self._note(message, index, term, index, held)
        else:
            del self.entries[: index + 1 - self.offset]
            self.offset = Index(index + 1)
            self.offset_in_progress = max(self.offset_in_progress, self.offset)

    def stable_snapshot_to(self, index: Index) -> None:
        """The storage installed the snapshot that covers `index`."""
        if self.snapshot is not None and self.snapshot.metadata.index == index:
            self.snapshot = None
            self.is_snapshot_in_progress = False

    def restore(self, snapshot: Snapshot) -> None:
        """Forget all entries: the log begins behind `snapshot`."""
        self.offset = Index(snapshot.metadata.index + 1)
        self.offset_in_progress = self.offset
        self.entries = []
        self.snapshot = snapshot
        self.is_snapshot_in_progress = False

    def truncate_and_append(self, entries: Sequence[Entry]) -> None:
        """Take `entries` (not empty, contiguous), replacing what is held at and behind the first one's index."""
        first = entries[0].index
        if first == self.offset + len(self.entries):
            self.entries.extend(entries)
        elif first <= self.offset:
            self._info(f"replace the unstable entries from index {first}")
            self.entries = list(entries)
            self.offset = first
            self.offset_in_progress = first
        else:
            self._info(f"truncate the unstable entries before index {first}")
            self.entries[first - self.offset :] = entries
            self.offset_in_progress = min(self.offset_in_progress, first)

    def _note(self, message: str, *values: int) -> None:
        if self._routine is not None:
            self._routine(message % values)
