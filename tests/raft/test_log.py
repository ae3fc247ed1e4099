"""The log: conflict search, appending over an unstable tail, reads across it and the storage, and the whole against a list."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.errors import CompactedError, InvalidMessageError, UnavailableError
from raft.log import RaftLog
from raft.sizes import entries_size_bytes, entry_size_bytes
from raft.storage import MemoryStorage
from raft.types import Entry, Index, Term
from tests.raft.kit import Lines, conf_state, entry, snapshot_at

NO_LIMIT = 1 << 62


def log_of(stable: list[int], unstable: list[int] = (), *, start: int = 0, limit: int = NO_LIMIT) -> RaftLog:  # type: ignore[assignment]
    """A log from `start` + 1 on with entries of these terms, first in the storage, then in the unstable tail."""
    storage = MemoryStorage()
    if start:
        storage.apply_snapshot(snapshot_at(start, 1, conf_state([1])))
    storage.append([entry(term, start + 1 + position) for position, term in enumerate(stable)])
    log = RaftLog(storage, Lines(), limit)
    first = start + 1 + len(stable)
    log.append([entry(term, first + position) for position, term in enumerate(unstable)])
    return log


def terms(log: RaftLog) -> list[int]:
    """The terms of everything in the log."""
    return [each.term for each in log.entries(log.first_index, NO_LIMIT)]


@pytest.mark.parametrize(
    ("index", "term", "is_up_to_date"),
    [(2, 4, True), (3, 4, True), (4, 4, True), (2, 2, False), (3, 2, False), (4, 2, False), (2, 3, False), (3, 3, True), (4, 3, True)],
)
def test_up_to_date_compares_terms_first_then_length(index: int, term: int, is_up_to_date: bool) -> None:
    assert log_of([1, 2, 3]).is_up_to_date(Index(index), Term(term)) is is_up_to_date


@pytest.mark.parametrize(
    ("prev", "commit", "new", "expected", "committed", "result"),
    [
        ((3, 2), 3, [(4, 4)], None, 1, [1, 2, 3]),
        ((3, 4), 3, [(4, 4)], None, 1, [1, 2, 3]),
        ((3, 3), 3, [], 3, 3, [1, 2, 3]),
        ((3, 3), 4, [], 3, 3, [1, 2, 3]),
        ((3, 3), 2, [], 3, 2, [1, 2, 3]),
        ((0, 0), 3, [], 0, 1, [1, 2, 3]),
        ((3, 3), 4, [(4, 4)], 4, 4, [1, 2, 3, 4]),
        ((3, 3), 5, [(4, 4)], 4, 4, [1, 2, 3, 4]),
        ((3, 3), 5, [(4, 4), (5, 4)], 5, 5, [1, 2, 3, 4, 4]),
        ((2, 2), 3, [(3, 4)], 3, 3, [1, 2, 4]),
        ((1, 1), 3, [(2, 4)], 2, 2, [1, 4]),
        ((1, 1), 3, [(2, 4), (3, 4)], 3, 3, [1, 4, 4]),
        ((1, 1), 1, [(2, 2), (3, 3)], 3, 1, [1, 2, 3]),
    ],
)
def test_append_takes_what_fits_and_commits_no_further_than_it_covers(
    prev: tuple[int, int], commit: int, new: list[tuple[int, int]], expected: int | None, committed: int, result: list[int]
) -> None:
    log = log_of([1, 2, 3])
    log.commit_to(Index(1))
    last = log.maybe_append(Index(prev[0]), Term(prev[1]), Index(commit), [entry(term, index) for index, term in new])
    assert last == expected
    assert log.commit_index == committed
    assert terms(log) == result


def test_append_never_replaces_a_committed_entry() -> None:
    log = log_of([1, 2, 3])
    log.commit_to(Index(2))
    with pytest.raises(InvalidMessageError):
        log.maybe_append(Index(1), Term(1), Index(3), [entry(4, 2)])
    assert terms(log) == [1, 2, 3]


def test_commit_beyond_the_log_is_refused() -> None:
    log = log_of([1, 2])
    with pytest.raises(InvalidMessageError):
        log.commit_to(Index(3))
    log.commit_to(Index(2))
    log.commit_to(Index(1))
    assert log.commit_index == 2


@pytest.mark.parametrize(
    ("index", "term", "expected"),
    [
        (14, 5, (14, 4)), (12, 5, (12, 2)), (12, 1, (11, 1)), (14, 3, (13, 2)), (14, 1, (11, 1)), (11, 1, (11, 1)), (15, 9, (15, 0)),
        (9, 5, (9, 0)), (10, 1, (10, 1)), (14, 0, (9, 0)), (10, 0, (9, 0)),
    ],
)  # fmt: skip
def test_conflict_search_skips_whole_terms(index: int, term: int, expected: tuple[int, int]) -> None:
    log = log_of([1, 2, 2, 4], start=10)
    assert log.find_conflict_by_term(Index(index), Term(term)) == expected


@given(st.lists(st.integers(1, 6), max_size=12).map(sorted), st.integers(0, 14), st.integers(0, 7))
def test_conflict_search_equals_a_walk_backwards(log_terms: list[int], index: int, term: int) -> None:
    log = log_of(log_terms)
    expected = (index, 0)
    if index <= len(log_terms):
        at = index
        while at > 0 and log_terms[at - 1] > term:
            at -= 1
        expected = (at, log_terms[at - 1] if at else 0)
    assert log.find_conflict_by_term(Index(index), Term(term)) == expected


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 11), st.integers(0, 11), st.integers(0, 200))
def test_reads_across_storage_and_tail_equal_one_list(stable: int, unstable: int, lo: int, hi: int, limit: int) -> None:
    log = log_of([1] * stable, [1] * unstable)
    everything = log.entries(Index(1), NO_LIMIT)
    lo, hi = max(1, min(lo, hi)), max(1, lo, hi)
    if hi > stable + unstable + 1 and lo < hi:
        with pytest.raises(UnavailableError):
            log.slice(Index(lo), Index(hi), limit)
        return
    found = log.slice(Index(lo), Index(hi), limit)
    wanted = everything[lo - 1 : hi - 1]
    assert found == wanted[: len(found)]
    assert len(found) >= min(1, len(wanted))
    assert len(found) <= 1 or entries_size_bytes(found) <= limit
    if len(found) < len(wanted):
        assert entries_size_bytes(found) + entry_size_bytes(wanted[len(found)]) > limit


def test_compacted_positions_are_refused_but_the_term_before_the_first_is_known() -> None:
    log = log_of([2, 3], start=10)
    assert log.term(Index(10)) == 1
    with pytest.raises(CompactedError):
        log.term(Index(9))
    with pytest.raises(CompactedError):
        log.entries(Index(10), NO_LIMIT)
    with pytest.raises(UnavailableError):
        log.term(Index(13))
    assert log.try_term(Index(13)) is None


def test_only_an_entry_of_the_given_term_commits() -> None:
    log = log_of([1, 2, 2])
    assert not log.maybe_commit(Index(1), Term(2))
    assert log.maybe_commit(Index(3), Term(2))
    assert not log.maybe_commit(Index(3), Term(2))


def test_acknowledgement_counts_only_for_the_entry_that_is_still_there() -> None:
    log = log_of([1], [1, 1])
    log.unstable.accept_in_progress()
    log.append([entry(2, 2)])
    log.unstable.stable_to(Index(2), Term(1))
    assert log.unstable.offset == 2
    log.unstable.stable_to(Index(2), Term(2))
    assert log.unstable.offset == 3
    log.unstable.stable_to(Index(2), Term(2))
    log.unstable.stable_to(Index(9), Term(2))
    assert log.unstable.offset == 3


def test_replaced_tail_is_handed_out_again() -> None:
    log = log_of([], [1, 1, 1])
    log.unstable.accept_in_progress()
    log.append([entry(2, 2)])
    assert [each.term for each in log.unstable.next_entries()] == [2]
    log.append([entry(3, 1)])
    assert [each.term for each in log.unstable.next_entries()] == [3]


def test_nothing_is_handed_out_for_application_while_a_snapshot_is_installed() -> None:
    log = log_of([1, 1])
    log.commit_to(Index(2))
    assert log.has_next_committed(allow_unstable=True)
    log.restore(snapshot_at(5, 2, conf_state([1])))
    assert not log.has_next_committed(allow_unstable=True)
    assert (log.first_index, log.last_index, log.commit_index) == (6, 5, 5)
    log.unstable.stable_snapshot_to(Index(4))
    assert log.unstable.snapshot is not None
    log.unstable.stable_snapshot_to(Index(5))
    assert log.unstable.snapshot is None


def test_application_is_bounded_by_size_until_acknowledged() -> None:
    size = entry_size_bytes(entry(1, 1))
    log = log_of([1] * 5, limit=2 * size)
    log.commit_to(Index(5))
    first = log.next_committed(allow_unstable=True)
    assert [each.index for each in first] == [1, 2]
    log.accept_applying(Index(2), entries_size_bytes(first), allow_unstable=True)
    assert log.next_committed(allow_unstable=True) == []
    log.applied_to(Index(1), size)
    assert [each.index for each in log.next_committed(allow_unstable=True)] == [3]
    log.applied_to(Index(2), size)
    assert [each.index for each in log.next_committed(allow_unstable=True)] == [3, 4]


def test_entry_that_would_cross_the_bound_waits_until_something_is_applied() -> None:
    size = entry_size_bytes(entry(1, 1))
    log = log_of([1] * 5, limit=2 * size + 1)
    log.commit_to(Index(5))
    first = log.next_committed(allow_unstable=True)
    assert [each.index for each in first] == [1, 2]
    log.accept_applying(Index(2), entries_size_bytes(first), allow_unstable=True)
    assert log.next_committed(allow_unstable=True) == []
    log.applied_to(Index(2), 2 * size)
    assert [each.index for each in log.next_committed(allow_unstable=True)] == [3, 4]


def test_applied_index_stays_between_itself_and_the_commit_index() -> None:
    log = log_of([1, 1, 1])
    log.commit_to(Index(2))
    log.applied_to(Index(2), 0)
    for index in (1, 3):
        with pytest.raises(InvalidMessageError):
            log.applied_to(Index(index), 0)


class Model:
    """A log as one list, with the index up to which it is stored, committed and compacted."""

    def __init__(self) -> None:
        self.terms: list[int] = []
        self.stable = self.committed = self.compacted = 0


@settings(max_examples=60)
@given(st.data())
def test_log_behaves_like_a_list(data: st.DataObject) -> None:
    storage = MemoryStorage()
    log = RaftLog(storage, Lines(), NO_LIMIT)
    model = Model()
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["append", "store", "commit", "apply", "compact"]))
        if action == "append":
            start = data.draw(st.integers(model.committed, len(model.terms)))
            lowest = model.terms[start - 1] if start else 1
            added = sorted(data.draw(st.lists(st.integers(lowest, lowest + 2), min_size=1, max_size=4)))
            if start < len(model.terms):
                added = [term + model.terms[-1] - lowest + 1 for term in added]
                model.stable = min(model.stable, start)
            log.append([entry(term, start + 1 + position) for position, term in enumerate(added)])
            model.terms = model.terms[:start] + added
        elif action == "store":
            entries: list[Entry] = log.unstable.next_entries()
            storage.append(entries)
            log.unstable.accept_in_progress()
            if log.unstable.entries:
                last = log.unstable.entries[-1]
                log.unstable.stable_to(last.index, last.term)
            model.stable = len(model.terms)
        elif action == "commit":
            model.committed = data.draw(st.integers(model.committed, len(model.terms)))
            log.commit_to(Index(model.committed))
        elif action == "apply":
            handed = log.next_committed(allow_unstable=False)
            assert [each.index for each in handed] == list(range(log.applied_index + 1, min(model.committed, model.stable) + 1))
            if handed:
                log.accept_applying(handed[-1].index, entries_size_bytes(handed), allow_unstable=False)
                log.applied_to(handed[-1].index, entries_size_bytes(handed))
        else:
            model.compacted = data.draw(st.integers(model.compacted, max(model.compacted, min(log.applied_index, model.stable))))
            if model.compacted >= storage.first_index():
                storage.compact(Index(model.compacted))
        assert log.last_index == len(model.terms)
        assert log.first_index == model.compacted + 1
        assert log.unstable.offset == model.stable + 1
        assert terms(log) == model.terms[model.compacted :]
        for index in range(model.compacted, len(model.terms) + 1):
            assert log.term(Index(index)) == (model.terms[index - 1] if index else 0)
