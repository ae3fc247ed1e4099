"""The log as a sequence of positions: what may follow what.

Purpose: one set of rules for the writer (which refuses to record what would break them) and for the reader (which refuses to boot on it).
Holds no entry data: only the start, the end, the hard state, the marker, and one (first index, term) pair for each run of equal terms.

Rules, each a method that returns the reason for a refusal or None:
- An entry stands directly behind the last one, with a term that is not lower; or it overwrites, above the commit index, an entry of another
  term, with a term not lower than that of the entry before it.
- A hard state's term and commit never go down, its vote never changes within a term; it never commits beyond the last index, and its
  term is at least the last entry's (a save writes its entries first, then its hard state).
- A marker moves the whole log behind itself: start = last = marker. It counts only if its index <= commit, and its record says so itself.

Invariants: start_index <= last_index; hard_state.commit <= last_index. The start is the position whose term is known although its entry
may be gone: the first readable entry is start_index + 1.

Caveat: an overwrite at or below the start moves the start (the segments that held the rest were released, which the commit check permits
only above the commit index that was on disk when the segment began).

Source: Ongaro's thesis, figure 3.1 and 3.5.
"""

from __future__ import annotations

from bisect import bisect_right

from raft.types import EMPTY_HARD_STATE, NO_NODE, HardState, Index, Term
from wal.codec import Marker


class LogState:
    """Start, end, term runs, hard state and marker of one log. Mutable; owned by one reader, then by the writer."""

    __slots__ = ("_run_indexes", "_run_terms", "hard_state", "last_index", "last_term", "marker", "start_index", "start_term")

    def __init__(
        self, *, start_index: Index, start_term: Term, hard_state: HardState = EMPTY_HARD_STATE, marker: Marker | None = None
    ) -> None:
        self.hard_state = hard_state
        self.marker = marker
        self._reset(start_index, start_term)

    def _reset(self, index: Index, term: Term) -> None:
        self.start_index = index
        self.start_term = term
        self.last_index = index
        self.last_term = term
        self._run_indexes: list[int] = [index]
        self._run_terms: list[Term] = [term]

    def term_at(self, index: Index) -> Term:
        """The term of a position in [start_index, last_index]."""
        return self._run_terms[bisect_right(self._run_indexes, index) - 1]

    def term_runs(self) -> list[tuple[Index, Term]]:
        """(first index, term) for each run of equal terms from the start on."""
        return [(Index(index), term) for index, term in zip(self._run_indexes, self._run_terms, strict=True)]

    def entry_fault(self, index: Index, term: Term) -> str | None:
        """Why an entry may not come next; None if it may."""
        if index == self.last_index + 1:
            if term < self.last_term:
                return f"entry {index} has term {term}, lower than term {self.last_term} before it"
            return None
        if index > self.last_index:
            return f"entry {index} does not follow entry {self.last_index}"
        if index <= self.hard_state.commit:
            return f"entry {index} (term {term}) overwrites a committed one (commit index {self.hard_state.commit})"
        if index <= self.start_index:
            return None
        before, present = self.term_at(Index(index - 1)), self.term_at(index)
        if term < before or term == present:
            return f"entry {index} of term {term} can not replace one of term {present} behind term {before}"
        return None

    def append(self, index: Index, term: Term) -> None:
        """Take an entry that has no fault."""
        if index <= self.last_index:
            self._truncate(index, term)
        elif term != self.last_term:
            self._run_indexes.append(index)
            self._run_terms.append(term)
        self.last_index = index
        self.last_term = term

    def _truncate(self, index: Index, term: Term) -> None:
        """Forget the positions from `index` on and begin a run there."""
        if index <= self.start_index:
            self._reset(index, term)
            return
        while self._run_indexes[-1] >= index:
            self._run_indexes.pop()
            self._run_terms.pop()
        if self._run_terms[-1] != term:
            self._run_indexes.append(index)
            self._run_terms.append(term)

    def hard_state_fault(self, hard_state: HardState, last_index: Index, last_term: Term) -> str | None:
        """Why a hard state may not come next if the log then ends at this position; None if it may."""
        old = self.hard_state
        if hard_state.term < old.term:
            return f"the term goes back from {old.term} to {hard_state.term}"
        if hard_state.term == old.term and old.vote not in (NO_NODE, hard_state.vote):
            return f"the vote in term {old.term} changes from {old.vote:x} to {hard_state.vote:x}"
        if hard_state.commit < old.commit:
            return f"the commit index goes back from {old.commit} to {hard_state.commit}"
        if hard_state.commit > last_index:
            return f"the commit index {hard_state.commit} is beyond the last index {last_index}"
        if hard_state.term < last_term:
            return f"the term {hard_state.term} is lower than the last entry's, {last_term}"
        return None

    def marker_fault(self, marker: Marker, hard_state: HardState) -> str | None:
        """Why a marker with this hard state may not come next; None if it may."""
        if marker.index > hard_state.commit:
            return f"the snapshot marker {marker.index} is beyond the commit index {hard_state.commit}"
        return self.hard_state_fault(hard_state, marker.index, marker.term)

    def mark(self, marker: Marker, hard_state: HardState) -> None:
        """Take a marker that has no fault: the log now starts and ends at it."""
        self._reset(marker.index, marker.term)
        self.marker = marker
        self.hard_state = hard_state

    def forget(self, index: Index) -> None:
        """Move the start up to `index` (<= last_index): the entries through it were released. A lower index does nothing."""
        if index <= self.start_index:
            return
        term = self.term_at(index)
        cut = bisect_right(self._run_indexes, index)
        self._run_indexes[:cut] = [index]
        self._run_terms[:cut] = [term]
        self.start_index = index
        self.start_term = term
