"""The terms of a log by position, as runs: one pair for each change of term, however long the log is.

Purpose: raft asks for the term of positions whose entries are no longer in memory. Terms change with elections, not with writes.

Invariants: runs ascend in index and in term; the first one begins at `start_index`, the position in front of the first readable entry.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from raft.types import Entry, Index, Term


class TermRuns:
    """Terms of `[start_index, ..)`. Mutable; one owner."""

    __slots__ = ("_indexes", "_terms")

    def __init__(self, runs: Sequence[tuple[Index, Term]]) -> None:
        self._indexes = [index for index, _ in runs]
        self._terms = [term for _, term in runs]

    def __len__(self) -> int:
        return len(self._indexes)

    @property
    def start_index(self) -> Index:
        """The lowest position whose term is known."""
        return self._indexes[0]

    def term_at(self, index: int) -> Term:
        """The term of a position, at or above `start_index`."""
        return self._terms[bisect_right(self._indexes, index) - 1]

    def note(self, entries: Sequence[Entry]) -> None:
        """The log now holds `entries` (contiguous); what stood at and behind the first one's index does not count any more."""
        if not entries:
            return
        if entries[0].index > self._indexes[-1] and entries[-1].term == self._terms[-1]:
            return  # terms never fall along a log: all of them are of the last run
        first = entries[0].index
        while len(self._indexes) > 1 and self._indexes[-1] >= first:
            self._indexes.pop()
            self._terms.pop()
        for entry in entries:
            if entry.term != self._terms[-1] and entry.index > self._indexes[-1]:
                self._indexes.append(entry.index)
                self._terms.append(entry.term)

    def forget(self, index: Index) -> None:
        """Begin at `index`: what is below it is not asked for any more."""
        cut = bisect_right(self._indexes, index)
        if index > self._indexes[0]:
            term = self._terms[cut - 1]
            self._indexes[:cut] = [index]
            self._terms[:cut] = [term]

    def reset(self, index: Index, term: Term) -> None:
        """Begin anew at a snapshot's position."""
        self._indexes[:] = [index]
        self._terms[:] = [term]

    def copy(self) -> TermRuns:
        """As it is now, for another thread."""
        return TermRuns(list(zip(self._indexes, self._terms, strict=True)))
