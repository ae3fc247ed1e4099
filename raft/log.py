"""The replicated log as the core works with it: the unstable tail on top of the storage, and how far it is committed and applied.

Rules
- Reads look into the unstable tail first, so that a leader under load never asks the storage for what it just appended.
- `applying_index` is what was handed out for application, `applied_index` what came back. What is under way is bounded by encoded size;
  when the bound is reached nothing more is handed out until something comes back.
- Nothing is handed out for application while a snapshot is being installed.
- A storage may refuse a position (`CompactedError`, `UnavailableError`): `term` and `slice` pass that on, `try_term` answers None.

Invariants: applied_index <= applying_index <= commit_index <= last_index; committed entries are never replaced.

Source: Ongaro's thesis, 3.5 to 3.6; etcd-io/raft doc.go for Ready's view of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raft.config import LogSink
from raft.errors import CompactedError, InvalidMessageError, UnavailableError
from raft.sizes import entries_size_bytes, take_within
from raft.storage import Storage
from raft.types import Entry, Index, Snapshot, Term
from raft.unstable import Unstable


class RaftLog:
    """One member's log. Mutable; owned by the core."""

    __slots__ = (
        "_applying_limit_bytes",
        "_applying_size_bytes",
        "_is_applying_paused",
        "_log_sink",
        "_storage",
        "applied_index",
        "applying_index",
        "commit_index",
        "unstable",
    )

    def __init__(
        self, storage: Storage, log_sink: LogSink, applying_limit_bytes: int, routine_log: Callable[[str], None] | None = None
    ) -> None:
        first = storage.first_index()
        self._storage = storage
        self._log_sink = log_sink
        self._applying_limit_bytes = applying_limit_bytes
        self._applying_size_bytes = 0
        self._is_applying_paused = False
        self.unstable = Unstable(Index(storage.last_index() + 1), log_sink.info, routine_log)
        self.commit_index = Index(first - 1)
        self.applying_index = Index(first - 1)
        self.applied_index = Index(first - 1)

    def __str__(self) -> str:
        unstable = self.unstable
        return (
            f"committed={self.commit_index}, applied={self.applied_index}, applying={self.applying_index}, "
            f"unstable.offset={unstable.offset}, unstable.offsetInProgress={unstable.offset_in_progress}, "
            f"len(unstable.Entries)={len(unstable.entries)}"
        )

    # --- positions --------------------------------------------------------------------------------

    @property
    def first_index(self) -> Index:
        """The lowest index that can be read."""
        snapshot = self.unstable.snapshot
        return self._storage.first_index() if snapshot is None else Index(snapshot.metadata.index + 1)

    @property
    def last_index(self) -> Index:
        """The highest index of the log."""
        unstable = self.unstable
        if unstable.entries:
            return Index(unstable.offset + len(unstable.entries) - 1)
        if unstable.snapshot is not None:
            return unstable.snapshot.metadata.index
        return self._storage.last_index()

    @property
    def last_term(self) -> Term:
        """The term of the last position."""
        return self.term(self.last_index)

    def term(self, index: Index) -> Term:
        """The term at `index` in [first_index - 1, last_index].

        Raises:
            CompactedError: below that range.
            UnavailableError: above it.
        """
        unstable = self.unstable
        position = index - unstable.offset
        if 0 <= position < len(unstable.entries):
            return unstable.entries[position].term
        if unstable.snapshot is not None and unstable.snapshot.metadata.index == index:
            return unstable.snapshot.metadata.term
        if index + 1 < self.first_index:
            raise CompactedError
        if index > self.last_index:
            raise UnavailableError
        return self._storage.term(index)

    def try_term(self, index: Index) -> Term | None:
        """The term at `index`; None where `term` raises."""
        try:
            return self.term(index)
        except (CompactedError, UnavailableError):
            return None

    def match_term(self, index: Index, term: Term) -> bool:
        """The log has an entry of `term` at `index`."""
        return self.try_term(index) == term

    def is_up_to_date(self, index: Index, term: Term) -> bool:
        """A log that ends at (index, term) is at least as good as this one (thesis 3.6.1)."""
        last_term = self.last_term
        return term > last_term or (term == last_term and index >= self.last_index)

    def has_current_term_commit(self, term: Term) -> bool:
        """An entry of `term` is committed."""
        return self.try_term(self.commit_index) == term

    # --- reading ----------------------------------------------------------------------------------

    def entries(self, lo: Index, max_size_bytes: int) -> list[Entry]:
        """Entries from `lo` on, cut to `max_size_bytes` encoded but at least one, if there are any; raises as `slice` does."""
        unstable = self.unstable
        if lo >= unstable.offset:  # what is replicated while it is written: no copy but the message's own
            return take_within(unstable.entries, lo - unstable.offset, len(unstable.entries), max_size_bytes)
        last = self.last_index
        return [] if lo > last else self.slice(lo, Index(last + 1), max_size_bytes)

    def slice(self, lo: Index, hi: Index, max_size_bytes: int) -> list[Entry]:
        """Entries in [lo, hi), cut to `max_size_bytes` encoded but at least one.

        Raises:
            CompactedError: `lo` is below `first_index`.
            UnavailableError: `hi` is beyond the log, or the storage can't deliver now.
        """
        unstable = self.unstable
        offset = unstable.offset
        if lo >= hi:
            return []
        if lo >= offset:
            if hi > offset + len(unstable.entries):
                raise UnavailableError
            return take_within(unstable.entries, lo - offset, hi - offset, max_size_bytes)
        if lo < self.first_index:
            raise CompactedError
        if hi > self.last_index + 1:
            raise UnavailableError
        cut = min(hi, offset)
        found = self._storage.entries(lo, Index(cut), max_size_bytes)
        if hi <= offset or len(found) < cut - lo:
            return found
        room = max_size_bytes - entries_size_bytes(found)
        tail = take_within(unstable.entries, 0, hi - offset, room)
        if len(tail) > 1 or entries_size_bytes(tail) <= room:  # a first entry that does not fit passes only if nothing is before it
            found.extend(tail)
        return found

    def snapshot(self) -> Snapshot:
        """The snapshot to send to a member that the log can't serve any more.

        Raises:
            SnapshotTemporarilyUnavailableError: the storage is preparing it.
        """
        return self._storage.snapshot() if self.unstable.snapshot is None else self.unstable.snapshot

    def find_conflict_by_term(self, index: Index, term: Term) -> tuple[Index, Term]:
        """The highest position at or before `index` whose term is at most `term`, and that term; (position, 0) where the log is compacted.

        Both sides of a rejected MsgApp skip with this whole terms that can't match (thesis 3.5, "fast log rejection"). Terms never fall
        along the log, so a bisection finds it.
        """
        low = Index(self.first_index - 1)
        own = self.try_term(index)
        if index < low or own is None:
            return index, Term(0)
        if own <= term:
            return index, own
        low_term = self.try_term(low)
        if low_term is None or low_term > term:
            return Index(max(low - 1, 0)), Term(0)
        high = index
        while high - low > 1:
            middle = Index((low + high) // 2)
            middle_term = self.try_term(middle)
            if middle_term is None:
                return middle, Term(0)
            if middle_term <= term:
                low, low_term = middle, middle_term
            else:
                high = middle
        return low, low_term

    # --- appending and committing -----------------------------------------------------------------

    def maybe_append(self, prev_index: Index, prev_term: Term, commit: Index, entries: Sequence[Entry]) -> Index | None:
        """Take a leader's `entries`, which follow (prev_index, prev_term), and its commit index. The last index they cover; None on a
        mismatch.

        Raises:
            InvalidMessageError: a committed entry would be replaced.
        """
        if not self.match_term(prev_index, prev_term):
            return None
        last_new = Index(prev_index + len(entries))
        conflict = self._find_conflict(entries)
        if conflict is not None:
            if conflict <= self.commit_index:
                raise InvalidMessageError(f"entry {conflict} conflicts with committed entry [committed({self.commit_index})]")
            self.append(entries[conflict - prev_index - 1 :])
        self.commit_to(min(commit, last_new))
        return last_new

    def _find_conflict(self, entries: Sequence[Entry]) -> Index | None:
        """The first index at which `entries` are not what the log holds."""
        if entries and entries[0].index == self.last_index + 1:
            return entries[0].index
        for entry in entries:
            existing = self.try_term(entry.index)
            if existing != entry.term:
                if entry.index <= self.last_index:
                    self._log_sink.info(
                        f"found conflict at index {entry.index} [existing term: {existing or 0}, conflicting term: {entry.term}]"
                    )
                return entry.index
        return None

    def append(self, entries: Sequence[Entry]) -> Index:
        """Put `entries` at the end, or over a tail that is not committed. The last index.

        Raises:
            InvalidMessageError: a committed entry would be replaced.
        """
        if entries:
            if entries[0].index <= self.commit_index:
                raise InvalidMessageError(f"after({entries[0].index - 1}) is out of range [committed({self.commit_index})]")
            self.unstable.truncate_and_append(entries)
        return self.last_index

    def commit_to(self, index: Index) -> None:
        """Raise the commit index to `index`; never lowers it.

        Raises:
            InvalidMessageError: `index` is beyond the log: this member lost entries that it had acknowledged, or the sender is wrong.
        """
        if index > self.commit_index:
            if index > self.last_index:
                raise InvalidMessageError(f"commit {index} is out of range [lastIndex({self.last_index})]; was the log corrupted or lost?")
            self.commit_index = index

    def maybe_commit(self, index: Index, term: Term) -> bool:
        """Commit through `index` if it is new and of `term` (thesis 3.6.2: only entries of the leader's own term commit by counting)."""
        if index > self.commit_index and self.match_term(index, term):
            self.commit_to(index)
            return True
        return False

    def restore(self, snapshot: Snapshot) -> None:
        """Begin anew behind `snapshot`."""
        metadata = snapshot.metadata
        self._log_sink.info(f"log [{self}] starts to restore snapshot [index: {metadata.index}, term: {metadata.term}]")
        self.commit_index = metadata.index
        self.unstable.restore(snapshot)

    # --- applying ---------------------------------------------------------------------------------

    def max_appliable_index(self, *, allow_unstable: bool) -> Index:
        """How far entries may be applied: what is committed, and durable unless `allow_unstable`."""
        return self.commit_index if allow_unstable else Index(min(self.commit_index, self.unstable.offset - 1))

    def has_next_committed(self, *, allow_unstable: bool) -> bool:
        """There are entries to hand out for application."""
        if self._is_applying_paused or self.unstable.snapshot is not None:
            return False
        return self.applying_index < self.max_appliable_index(allow_unstable=allow_unstable)

    def next_committed(self, *, allow_unstable: bool) -> list[Entry]:
        """The entries to hand out for application, within the bound of what may be under way (at least one)."""
        if not self.has_next_committed(allow_unstable=allow_unstable):
            return []
        hi = Index(self.max_appliable_index(allow_unstable=allow_unstable) + 1)
        return self.slice(Index(self.applying_index + 1), hi, self._applying_limit_bytes - self._applying_size_bytes)

    def accept_applying(self, index: Index, size_bytes: int, *, allow_unstable: bool) -> None:
        """Entries through `index`, `size_bytes` encoded, were handed out for application."""
        assert index <= self.commit_index, f"applying({index}) is out of range [committed({self.commit_index})]"
        self.applying_index = index
        self._applying_size_bytes += size_bytes
        # Less than everything was handed out because the next entry would cross the bound: wait for room rather than trickle.
        is_cut_short = index < self.max_appliable_index(allow_unstable=allow_unstable)
        self._is_applying_paused = is_cut_short or self._applying_size_bytes >= self._applying_limit_bytes

    def applied_to(self, index: Index, size_bytes: int) -> None:
        """Entries through `index`, `size_bytes` encoded, are applied.

        Raises:
            InvalidMessageError: `index` is not in [applied_index, commit_index].
        """
        if not self.applied_index <= index <= self.commit_index:
            span = f"[prevApplied({self.applied_index}), committed({self.commit_index})]"
            raise InvalidMessageError(f"applied({index}) is out of range {span}")
        self.applied_index = index
        self.applying_index = max(self.applying_index, index)
        self._applying_size_bytes = max(0, self._applying_size_bytes - size_bytes)
        self._is_applying_paused = self._applying_size_bytes >= self._applying_limit_bytes
