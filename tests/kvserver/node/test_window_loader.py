"""Filling the window from the WAL at a start: bounded by bytes, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvserver.node.compaction import WindowLimits
from kvserver.node.log_window import LogWindow
from kvserver.node.term_runs import TermRuns
from kvserver.node.window_loader import WindowLoader
from raft.types import ConfState, Entry, HardState, Index, NodeId, Term
from wal import Metadata, Recovered, Wal

MEBIBYTE = 1 << 20
LEAST_BYTES = 64 << 10
"""Of `--wal-segment-bytes` and `--log-window-bytes`."""


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


def test_large_values_do_not_pile_up_far_beyond_a_cap_of_few_entries() -> None:
    loader = WindowLoader(Index(200), WindowLimits(max_entries=1))
    peak_bytes = 0
    for index in range(1, 201):
        loader(Entry(index=Index(index), term=Term(1), data=bytes(MEBIBYTE)))
        peak_bytes = max(peak_bytes, loader.held_bytes)
    assert peak_bytes < 6 * MEBIBYTE


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


@pytest.mark.parametrize("held", [0, 20])
def test_a_log_whose_last_entries_were_not_read_is_an_empty_window_behind_them(held: int) -> None:
    loader = WindowLoader(Index(30), WindowLimits(max_bytes=MEBIBYTE))
    for index in range(1, held + 1):
        loader(Entry(index=Index(index), term=Term(1), data=b"x"))
    window = loader.finish(recovered(30), HardState(), ConfState(), lambda: (Index(30), ConfState()), term_at=lambda index: Term(1))
    assert (window.first_index(), window.last_index(), window.term(Index(30))) == (31, 30, 1)
    window.append([Entry(index=Index(31), term=Term(2), data=b"x")])
    assert window.last_index() == 31


def reopened(directory: Path, metadata: Metadata, *, applied: int) -> tuple[LogWindow, Recovered]:
    """The window that a start makes of a log, with the least limits."""
    loader = WindowLoader(Index(applied), WindowLimits(max_bytes=LEAST_BYTES))
    wal, found = Wal.open(
        directory, metadata, loader, applied_index=Index(applied), recent_bytes=LEAST_BYTES, segment_size_bytes=LEAST_BYTES
    )
    try:
        durable = (Index(applied), ConfState())
        return loader.finish(found, found.hard_state, ConfState(), lambda: durable, term_at=TermRuns(wal.term_runs()).term_at), found
    finally:
        wal.close()


@pytest.mark.parametrize("applied", [300, 299, 290, 0])
def test_a_member_starts_from_a_log_whose_newest_segments_hold_elections_only(tmp_path: Path, applied: int) -> None:
    """The window holds what raft needs of it: its commit index, and whatever is not applied."""
    directory, metadata = tmp_path / "wal", Metadata(cluster_id=1, member_id=1)
    wal = Wal.create(directory, metadata, segment_size_bytes=LEAST_BYTES)
    for index in range(1, 301):
        entry = Entry(index=Index(index), term=Term(1), data=b"x" * 1000)
        wal.save([entry], HardState(term=Term(1), vote=NodeId(1), commit=Index(index)), sync=False)
    with_entries, term = len(wal.segments()), 1
    while len(wal.segments()) < with_entries + 3:
        term += 1
        wal.save([], HardState(term=Term(term), vote=NodeId(1), commit=Index(300)), sync=False)
    wal.close()
    for _ in range(2):
        window, found = reopened(directory, metadata, applied=applied)
        assert found.last_index == window.last_index() == 300
        assert window.first_index() <= applied + 1
        assert window.term(Index(300)) == 1
        assert window.entries(window.first_index(), Index(301), 1 << 62) == [
            Entry(index=Index(index), term=Term(1), data=b"x" * 1000) for index in range(window.first_index(), 301)
        ]
