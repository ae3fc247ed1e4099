"""Filling the window from the WAL at a start: bounded by bytes, too."""

from __future__ import annotations

from kvserver.node.compaction import WindowLimits
from kvserver.node.window_loader import WindowLoader
from raft.types import ConfState, Entry, HardState, Index, Term
from wal import Recovered

MEBIBYTE = 1 << 20


def recovered(last: int) -> Recovered:
    return Recovered(
        hard_state=HardState(term=Term(1), commit=Index(last)),
        marker=None,
        first_index=Index(1),
        prev_term=Term(0),
        last_index=Index(last),
        last_term=Term(1),
        repaired=None,
    )


def test_large_values_do_not_pile_up_far_beyond_the_byte_cap() -> None:
    loader = WindowLoader(Index(200), WindowLimits(max_bytes=8 * MEBIBYTE))
    value = bytes(MEBIBYTE)
    peak_bytes = 0
    for index in range(1, 201):
        loader(Entry(index=Index(index), term=Term(1), data=value))
        peak_bytes = max(peak_bytes, loader.held_bytes)
    assert peak_bytes < 14 * MEBIBYTE
    window = loader.finish(recovered(200), HardState(), ConfState(), lambda: (Index(200), ConfState()), term_at=lambda index: Term(1))
    assert window.last_index() == 200
    assert 7 * MEBIBYTE < window.size_bytes <= 8 * MEBIBYTE
    assert window.term(Index(window.first_index() - 1)) == 1


def test_what_is_not_applied_is_kept_whatever_it_weighs() -> None:
    loader = WindowLoader(Index(10), WindowLimits(max_bytes=MEBIBYTE))
    for index in range(1, 31):
        loader(Entry(index=Index(index), term=Term(1), data=bytes(MEBIBYTE)))
    window = loader.finish(recovered(30), HardState(), ConfState(), lambda: (Index(10), ConfState()), term_at=lambda index: Term(1))
    assert (window.first_index(), window.last_index()) == (11, 30)
