"""Known mistakes in serving members from the WAL, planted one at a time in the real code: the model of history_model.py finds each.

Mistakes of the releaser and its pins show in test_releaser.py, those of the claims in test_compaction.py, those that need a cluster in
tests/sim/planted.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import pytest

import wal.history
from kvserver.node import log_history
from kvserver.node.block_cache import BlockCache
from kvserver.node.log_history import LogHistory
from kvserver.node.log_storage import LogStorage
from kvserver.node.term_runs import TermRuns
from raft.types import Index
from tests.kvserver.node import history_model
from wal.history import HistoryReader

Patch = pytest.MonkeyPatch
SEEDS = 60


def wrong_term_at_a_boundary(patch: Patch) -> None:
    patch.setattr(TermRuns, "term_at", lambda self, index: self._terms[max(0, bisect_left(self._indexes, index) - 1)])


def terms_keep_what_was_overwritten(patch: Patch) -> None:
    def note(self: Any, entries: Any) -> None:
        for entry in entries:
            if entry.term != self._terms[-1] and entry.index > self._indexes[-1]:
                self._indexes.append(entry.index)
                self._terms.append(entry.term)

    patch.setattr(TermRuns, "note", note)


def entries_that_come_once_more_cut_the_terms(patch: Patch) -> None:
    def append(self: Any, entries: Any) -> None:
        self.window.append(entries)
        self.history.terms.note(entries)

    patch.setattr(LogStorage, "append", append)


def memory_is_read_from_one_too_early(patch: Patch) -> None:
    genuine = LogStorage.entries

    def entries(self: Any, lo: Any, hi: Any, size: int) -> Any:
        return self.window.entries(lo, hi, size) if lo == self.window.first_index() - 1 else genuine(self, lo, hi, size)

    patch.setattr(LogStorage, "entries", entries)


def the_first_index_is_one_too_low(patch: Patch) -> None:
    genuine = LogStorage.first_index
    patch.setattr(LogStorage, "first_index", lambda self: Index(max(1, genuine(self) - 1)))


def the_block_is_served_from_its_beginning(patch: Patch) -> None:
    def take(self: Any, lo: Any, hi: Any, max_size_bytes: int) -> Any:
        start = self._find(lo)
        return [] if start is None else self._blocks[start][0][:1]

    patch.setattr(BlockCache, "take", take)


def the_answer_runs_beyond_its_end(patch: Patch) -> None:
    genuine = BlockCache.take
    patch.setattr(BlockCache, "take", lambda self, lo, hi, size: genuine(self, lo, Index(hi + 100), 1 << 30))


def overwritten_entries_are_served(patch: Patch) -> None:
    patch.setattr(wal.history._Answer, "wants", lambda self, index, term: index == self.want)


def marks_are_one_too_far(patch: Patch) -> None:
    genuine = HistoryReader._mark
    patch.setattr(HistoryReader, "_mark", lambda self, path, index, chain: genuine(self, path, index - 1, chain))


def the_reader_begins_behind_what_is_wanted(patch: Patch) -> None:
    def read(self: Any, lo: Any, hi: Any, size: int, term_at: Any) -> Any:
        return genuine(self, Index(min(lo + 1, hi - 1)), hi, size, term_at)

    genuine = HistoryReader.read
    patch.setattr(HistoryReader, "read", read)


def the_cache_is_not_evicted(patch: Patch) -> None:
    genuine = BlockCache._remove
    patch.setattr(BlockCache, "put", _putting_without_bound)
    patch.setattr(BlockCache, "_remove", genuine)


def _putting_without_bound(self: Any, entries: Any) -> None:
    self._remove(entries[0].index)
    size_bytes = sum(len(entry.data) + 240 for entry in entries)
    self._blocks[entries[0].index] = (entries, size_bytes)
    self.size_bytes += size_bytes


def evicted_blocks_stay_accounted(patch: Patch) -> None:
    patch.setattr(BlockCache, "_remove", lambda self, start: self._blocks.pop(start, None))


def the_idle_cache_is_kept(patch: Patch) -> None:
    patch.setattr(LogHistory, "_drop_if_idle", lambda self: None)


def the_rate_is_ignored(patch: Patch) -> None:
    genuine = LogHistory._keep

    def keep(self: Any, entries: Any, took_s: float) -> None:
        genuine(self, entries, took_s)
        self._next_s = 0.0

    patch.setattr(LogHistory, "_keep", keep)


def the_wait_for_the_rate_never_ends(patch: Patch) -> None:
    patch.setattr(LogHistory, "_end_pause", lambda self: None)


def a_stale_answer_is_used(patch: Patch) -> None:
    genuine = LogHistory._read_ended
    patch.setattr(LogHistory, "_read_ended", lambda self, generation, *rest: genuine(self, self._generation, *rest))


def blocks_of_the_old_log_stay_after_a_snapshot(patch: Patch) -> None:
    def reset(self: Any, index: Any, term: Any) -> None:
        self._first = Index(index + 1)
        self.terms.reset(index, term)

    patch.setattr(LogHistory, "reset", reset)


def the_floor_moves_back(patch: Patch) -> None:
    def raise_floor(self: Any, index: Any) -> None:
        self._first = Index(max(1, index - 5))

    patch.setattr(LogHistory, "raise_floor", raise_floor)


def a_released_segment_is_a_defect(patch: Patch) -> None:
    patch.setattr(log_history, "HistoryGoneError", KeyError)
    patch.setattr(log_history, "WalError", LookupError)


def a_released_segment_moves_no_floor(patch: Patch) -> None:
    genuine = LogHistory._note_unreadable

    def note(self: Any, lo: Any, hi: Any, error: Any) -> None:
        if not isinstance(error, wal.history.HistoryGoneError):
            genuine(self, lo, hi, error)

    patch.setattr(LogHistory, "_note_unreadable", note)
    patch.setattr(LogHistory, "raise_floor", lambda self, index: None)


def what_was_read_is_not_told(patch: Patch) -> None:
    patch.setattr(LogHistory, "_keep", lambda self, entries, took_s: None)


@pytest.mark.parametrize(
    "plant",
    [
        wrong_term_at_a_boundary,
        terms_keep_what_was_overwritten,
        entries_that_come_once_more_cut_the_terms,
        memory_is_read_from_one_too_early,
        the_first_index_is_one_too_low,
        the_block_is_served_from_its_beginning,
        the_answer_runs_beyond_its_end,
        overwritten_entries_are_served,
        marks_are_one_too_far,
        the_reader_begins_behind_what_is_wanted,
        the_cache_is_not_evicted,
        evicted_blocks_stay_accounted,
        the_idle_cache_is_kept,
        the_rate_is_ignored,
        the_wait_for_the_rate_never_ends,
        a_stale_answer_is_used,
        blocks_of_the_old_log_stay_after_a_snapshot,
        the_floor_moves_back,
        a_released_segment_is_a_defect,
        a_released_segment_moves_no_floor,
        what_was_read_is_not_told,
    ],
    ids=lambda plant: plant.__name__,
)
def test_the_model_finds_it(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    monkeypatch.setattr(log_history, "RATE_BYTES_PER_S", history_model.RATE_BYTES_PER_S)
    plant(monkeypatch)
    for seed in range(SEEDS):
        try:
            history_model.run(seed)
        except Exception:  # noqa: BLE001 - whatever it shows as: it shows
            return
    pytest.fail(f"{SEEDS} histories pass with it")
