"""The log window against a list model, and its edges one by one."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.node.log_window import ENTRY_OVERHEAD_BYTES, LogWindow
from raft.errors import CompactedError, UnavailableError
from raft.types import ConfState, Entry, HardState, Index, Term


def make_window(first: int = 1, prev_term: int = 0) -> LogWindow:
    return LogWindow(
        first_index=Index(first),
        prev_term=Term(prev_term),
        hard_state=HardState(),
        conf_state=ConfState(),
        durable=lambda: (Index(0), ConfState()),
    )


def entries(lo: int, hi: int, term: int = 1, size: int = 10) -> list[Entry]:
    return [Entry(index=Index(i), term=Term(term), data=b"x" * size) for i in range(lo, hi)]


def test_empty_window_knows_only_the_term_before_it() -> None:
    window = make_window(first=100, prev_term=7)
    assert (window.first_index(), window.last_index(), window.entry_count, window.size_bytes) == (100, 99, 0, 0)
    assert window.term(Index(99)) == 7
    with pytest.raises(CompactedError):
        window.term(Index(98))
    with pytest.raises(UnavailableError):
        window.term(Index(100))


def test_compaction_keeps_the_term_of_the_last_dropped_entry() -> None:
    window = make_window()
    window.append(entries(1, 5, term=3) + entries(5, 9, term=4))
    assert window.compact(Index(4)) == 4
    assert window.term(Index(4)) == 3
    assert window.first_index() == 5
    with pytest.raises(CompactedError):
        window.entries(Index(4), Index(6), 1 << 30)


def test_entries_stop_at_the_size_but_the_first_always_passes() -> None:
    window = make_window()
    window.append(entries(1, 10, size=1000))
    assert [e.index for e in window.entries(Index(2), Index(10), 1)] == [2]
    assert [e.index for e in window.entries(Index(2), Index(10), 3100)] == [2, 3, 4]
    assert len(window.entries(Index(1), Index(10), 1 << 30)) == 9


def test_a_gap_is_refused() -> None:
    window = make_window()
    window.append(entries(1, 3))
    with pytest.raises(UnavailableError):
        window.append(entries(4, 5))


def test_reset_begins_behind_the_snapshot() -> None:
    window = make_window()
    window.append(entries(1, 200))
    window.reset(Index(1000), Term(9))
    assert (window.first_index(), window.last_index(), window.size_bytes) == (1001, 1000, 0)
    assert window.term(Index(1000)) == 9
    window.append(entries(1001, 1003, term=9))
    assert window.last_index() == 1002


class TrackedEntry(Entry):
    """An entry that a weak reference can watch."""


def test_dropped_entries_release_their_memory_at_once() -> None:
    window = make_window()
    watched = [TrackedEntry(index=Index(i), term=Term(1), data=b"x" * 100) for i in range(1, 11)]
    window.append(watched)
    refs = [weakref.ref(entry) for entry in watched]
    del watched
    window.compact(Index(6))
    assert [ref() is None for ref in refs] == [True] * 6 + [False] * 4


operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 90), st.integers(0, 300)),
        st.tuples(st.just("overwrite"), st.integers(1, 40), st.integers(0, 300)),
        st.tuples(st.just("compact"), st.integers(0, 130), st.just(0)),
        st.tuples(st.just("reset"), st.integers(0, 100), st.just(0)),
    ),
    max_size=40,
)


@given(first=st.integers(1, 200), steps=operations)
def test_window_equals_a_list_model(first: int, steps: list[tuple[str, int, int]]) -> None:
    window = make_window(first=first)
    floor, held, term, floor_term = first - 1, list[Any](), 1, 0
    for kind, amount, size in steps:
        last = floor + len(held)
        if kind == "append":
            new = entries(last + 1, last + 1 + amount, term=term, size=size)
            window.append(new)
            held += new
        elif kind == "overwrite" and held:
            term += 1
            start = max(floor + 1, last - amount + 1)
            new = entries(start, last + 1, term=term, size=size)
            window.append(new)
            held[start - floor - 1 :] = new
        elif kind == "compact":
            index = floor + amount - 10
            through = min(index, last)
            expected = max(0, through - floor)
            assert window.compact(Index(max(index, 0))) == expected
            if expected:
                floor_term = held[expected - 1].term
                del held[:expected]
                floor = through
        elif kind == "reset":
            floor, held, floor_term = last + amount, [], term
            window.reset(Index(floor), Term(term))
        last = floor + len(held)
        sizes = [len(e.data) + ENTRY_OVERHEAD_BYTES for e in held]
        assert (window.first_index(), window.last_index()) == (floor + 1, last)
        assert window.size_bytes == sum(sizes)
        assert window.term(Index(floor)) == floor_term
        for probe in {floor, floor + 1, (floor + last) // 2, last - 1, last} & set(range(floor, last + 1)):
            assert window.bytes_after(Index(probe)) == sum(sizes[probe - floor :])
        assert window.entries(Index(floor + 1), Index(last + 1), 1 << 40) == held
        for cap_entries, cap_bytes in ((0, 0), (5, 1 << 40), (1 << 30, 1000), (20, 5000)):
            cap = window.cap_index(cap_entries, cap_bytes)
            fits = [c for c in range(floor, last + 1) if last - c <= cap_entries and sum(sizes[c - floor :]) <= cap_bytes]
            assert cap == min(fits)
