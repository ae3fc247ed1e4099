"""The in-memory raft log: the entries `[first_index, last_index]` that may still be needed, and nothing else.

Purpose: raft's read-only `Storage` over a chunked list. Entries arrive here once they are durable in the WAL; `compact` drops them as
soon as no peer and no reader needs them (`kvserver.node.compaction` decides, docs/memory.md explains).

Rules
- Chunks hold up to 64 consecutive entries, aligned to multiples of 64, so that an index finds its chunk by arithmetic. `compact` drops
  whole chunks from the front and clears the slots of the first one that stays: nothing that is retained is copied or moved.
- Every chunk carries running byte offsets: `bytes_after(i)` and `cap_index(...)` need no walk over the entries.
- The term of `first_index - 1` is kept, as raft needs it to build the message that begins at `first_index`.

Invariants: `first_index` never moves back but by `reset` (a snapshot was installed); indexes are contiguous; `last_index >= first_index -
1`.

Source: log-memory.md (the rule); etcd-io/raft's Storage interface for the reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from raft.errors import CompactedError, SnapshotTemporarilyUnavailableError, UnavailableError
from raft.types import ConfState, Entry, HardState, Index, Snapshot, SnapshotMetadata, Term

_CHUNK_BITS: Final = 6
_CHUNK_ENTRIES: Final = 1 << _CHUNK_BITS
_CHUNK_MASK: Final = _CHUNK_ENTRIES - 1

ENTRY_OVERHEAD_BYTES: Final = 240
"""What an entry costs beside its data: the Entry, two integers, the bytes header, its slot and its running offset (CPython 3.11,
measured)."""


def entry_footprint_bytes(entry: Entry) -> int:
    """Memory that the window accounts for `entry`: payload plus a fixed overhead."""
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


class _Chunk:
    """Up to 64 consecutive entries; slot s holds index `64 * number + s`; `offsets[s]` is the running byte total through slot s."""

    __slots__ = ("entries", "offsets")

    def __init__(self) -> None:
        self.entries: list[Entry | None] = []
        self.offsets: list[int] = []


class LogWindow:
    """Raft's log storage in memory, with exact byte accounting.

    Args:
        first_index: the first index that may be appended (1 for an empty log).
        prev_term: term of `first_index - 1` (0 for an empty log).
        durable: answers how far the store is committed, and the configuration there: what a snapshot taken now would cover. Raft asks when
            a peer fell behind `first_index`.
    """

    def __init__(
        self,
        *,
        first_index: Index = Index(1),
        prev_term: Term = Term(0),
        hard_state: HardState,
        conf_state: ConfState,
        durable: Callable[[], tuple[Index, ConfState]],
    ) -> None:
        self._chunks: deque[_Chunk] = deque()
        self._first_chunk = first_index >> _CHUNK_BITS
        self._first = int(first_index)
        self._last = int(first_index) - 1
        self._prev_term = prev_term
        self._end_offset = 0  # running byte total through _last
        self._start_offset = 0  # running byte total through _first - 1
        self._hard_state = hard_state
        self._conf_state = conf_state
        self._durable = durable

    # --- raft's Storage ----------------------------------------------------------------------------------------------------------------

    def initial_state(self) -> tuple[HardState, ConfState]:
        """The hard state and configuration that the member started with."""
        return self._hard_state, self._conf_state

    def first_index(self) -> Index:
        """The lowest index still held (or the next to come, when nothing is held)."""
        return Index(self._first)

    def last_index(self) -> Index:
        """The highest durable index."""
        return Index(self._last)

    def term(self, index: Index) -> Term:
        """The term of `index`, for `first_index - 1 <= index <= last_index`.

        Raises:
            CompactedError: below that range.
            UnavailableError: above it.
        """
        if index == self._first - 1:
            return self._prev_term
        if index < self._first:
            raise CompactedError
        if index > self._last:
            raise UnavailableError
        return self._entry(index).term

    def entries(self, lo: Index, hi: Index, max_size_bytes: int) -> list[Entry]:
        """The entries in `[lo, hi)`, cut where their payload exceeds `max_size_bytes`; the first one always passes.

        Raises:
            CompactedError: `lo` is below `first_index`.
            UnavailableError: `hi` is above `last_index + 1`.
        """
        if lo < self._first:
            raise CompactedError
        if hi > self._last + 1:
            raise UnavailableError
        found: list[Entry] = []
        size_bytes = 0
        for index in range(lo, hi):
            entry = self._entry(index)
            size_bytes += len(entry.data) + _ENCODED_OVERHEAD_BYTES
            if found and size_bytes > max_size_bytes:
                break
            found.append(entry)
        return found

    def snapshot(self) -> Snapshot:
        """The metadata of a snapshot that could be sent now; the state itself travels on a stream of its own."""
        index, conf_state = self._durable()
        if index < self._first - 1:
            raise SnapshotTemporarilyUnavailableError  # right after a start: the store's first commit is still under way
        return Snapshot(metadata=SnapshotMetadata(index=index, term=self.term(index), conf_state=conf_state))

    # --- what the driver writes ----------------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        """Take over `entries` (contiguous), replacing what is held at and after the first one's index.

        Raises:
            UnavailableError: they would leave a gap behind `last_index`.
        """
        for entry in entries:
            if entry.index < self._first:
                continue  # compacted meanwhile: raft re-sent what the state machine already holds
            if entry.index > self._last + 1:
                raise UnavailableError
            if entry.index <= self._last:
                self._truncate(entry.index)
            self._push(entry)

    def compact(self, index: Index) -> int:
        """Drop everything through `index` (at most `last_index`) and return how many entries went; at or below `first_index - 1`:
        nothing."""
        through = min(int(index), self._last)
        if through < self._first:
            return 0
        dropped = through - self._first + 1
        boundary = self._chunk(through)
        slot = through & _CHUNK_MASK
        last_dropped = boundary.entries[slot]
        assert last_dropped is not None
        self._prev_term = last_dropped.term
        self._start_offset = boundary.offsets[slot]
        while self._first_chunk < through >> _CHUNK_BITS:
            self._chunks.popleft()
            self._first_chunk += 1
        for cleared in range(slot + 1):
            boundary.entries[cleared] = None
        self._first = through + 1
        if slot == _CHUNK_MASK:
            self._chunks.popleft()
            self._first_chunk += 1
        return dropped

    def reset(self, index: Index, term: Term) -> None:
        """Forget everything: a snapshot through `index` (of `term`) was installed."""
        self._chunks.clear()
        self._first = index + 1
        self._last = int(index)
        self._first_chunk = self._first >> _CHUNK_BITS
        self._prev_term = term
        self._start_offset = self._end_offset

    # --- accounting ----------------------------------------------------------------------------------------------------------------------

    @property
    def entry_count(self) -> int:
        """How many entries are held."""
        return self._last - self._first + 1

    @property
    def size_bytes(self) -> int:
        """Memory accounted for what is held."""
        return self._end_offset - self._start_offset

    def bytes_after(self, index: Index) -> int:
        """Bytes held in `(index, last_index]`; everything when `index` is below the window."""
        if index < self._first:
            return self.size_bytes
        if index >= self._last:
            return 0
        return self._end_offset - self._chunk(index).offsets[index & _CHUNK_MASK]

    def cap_index(self, max_entries: int, max_bytes: int) -> Index:
        """The least c such that `(c, last_index]` holds at most `max_entries` entries and `max_bytes` bytes; at least `first_index - 1`."""
        by_entries = max(self._first - 1, self._last - max_entries)
        excess_bytes = self.size_bytes - max_bytes
        if excess_bytes <= 0:
            return Index(by_entries)
        floor_offset = self._start_offset + excess_bytes
        low, high = self._first, self._last  # least index whose running total reaches floor_offset
        while low < high:
            middle = (low + high) // 2
            if self._chunk(middle).offsets[middle & _CHUNK_MASK] >= floor_offset:
                high = middle
            else:
                low = middle + 1
        return Index(max(by_entries, low))

    # --- chunks --------------------------------------------------------------------------------------------------------------------------

    def _chunk(self, index: int) -> _Chunk:
        return self._chunks[(index >> _CHUNK_BITS) - self._first_chunk]

    def _entry(self, index: int) -> Entry:
        entry = self._chunk(index).entries[index & _CHUNK_MASK]
        assert entry is not None
        return entry

    def _push(self, entry: Entry) -> None:
        number = entry.index >> _CHUNK_BITS
        if not self._chunks:
            self._first_chunk = number
        if number - self._first_chunk == len(self._chunks):
            chunk = _Chunk()
            # A window that starts inside a chunk leaves its lower slots empty, so that slots stay aligned.
            lower = entry.index & _CHUNK_MASK
            chunk.entries = [None] * lower
            chunk.offsets = [self._end_offset] * lower
            self._chunks.append(chunk)
        chunk = self._chunks[-1]
        self._end_offset += len(entry.data) + ENTRY_OVERHEAD_BYTES
        chunk.entries.append(entry)
        chunk.offsets.append(self._end_offset)
        self._last = entry.index

    def _truncate(self, index: int) -> None:
        """Drop `[index, last_index]`: a new leader overwrites an uncommitted tail."""
        number = index >> _CHUNK_BITS
        while self._chunks and self._first_chunk + len(self._chunks) - 1 > number:
            self._chunks.pop()
        chunk = self._chunks[-1]
        slot = index & _CHUNK_MASK
        self._end_offset = chunk.offsets[slot - 1] if slot else self._offset_before_last_chunk()
        del chunk.entries[slot:]
        del chunk.offsets[slot:]
        if slot == 0:
            self._chunks.pop()
        self._last = index - 1

    def _offset_before_last_chunk(self) -> int:
        return self._chunks[-2].offsets[-1] if len(self._chunks) > 1 else self._start_offset


_ENCODED_OVERHEAD_BYTES: Final = 24
"""Upper bound of what raft's size limit counts for an entry beside its payload (type, term, index, length as varints)."""
