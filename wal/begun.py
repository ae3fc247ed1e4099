"""What remains of a save that ran out of space: how much of it is durable, so that the same save goes on behind it.

Rules: the caller of `Wal.save` repeats the call with the same arguments. That it is the same is seen by index and term: raft's entries
with the same index and term are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raft.types import Entry, Index, Term


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The durable part of a save: its first index, how many entries, and the last one's term."""

    first_index: Index
    count: int
    last_term: Term

    @classmethod
    def of(cls, entries: Sequence[Entry], count: int) -> Begun | None:
        """The first `count` of the entries are durable; None if none is."""
        return cls(first_index=entries[0].index, count=count, last_term=entries[count - 1].term) if count else None

    def part_of(self, entries: Sequence[Entry]) -> int:
        """How many of these entries need not be written again: all that are durable if it is that save again, otherwise none."""
        if len(entries) < self.count or entries[0].index != self.first_index or entries[self.count - 1].term != self.last_term:
            return 0
        return self.count
