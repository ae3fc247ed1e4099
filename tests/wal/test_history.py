"""Reading old entries back from a log that is being written: exactly what stands last, or an error; never another version, never damage."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.types import Entry, Index
from tests.wal.test_model import step
from wal import DamagedError, HistoryGoneError, Marker, OsFiles, Wal, WalIOError
from wal.history import MAX_ENTRIES

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["append", "append", "append", "commit", "overwrite", "marker", "apply", "retain", "close", "kill", "elect", "big", "read"]
        ),
        st.integers(0, 2**16),
    ),
    min_size=1,
    max_size=40,
)


class Terms:
    """The terms of a log, as its runs say."""

    def __init__(self, wal: Wal) -> None:
        self.runs = wal.term_runs()

    def __call__(self, index: int) -> int:
        return next(term for first, term in reversed(self.runs) if first <= index)


def read_all(reader, wal: Wal, lo: int, hi: int, max_bytes: int) -> list:
    found = []
    while lo + len(found) < hi:
        found += reader.read(Index(lo + len(found)), Index(hi), max_bytes, Terms(wal))
    return found


def check_reads(life, reader, rng: random.Random) -> None:
    """Every range of what is readable, durable and committed is what the model holds."""
    wal, state = life.wal, life.durable
    first, end = wal.first_index, min(state.hard_state.commit, wal.last_index) + 1
    if life.since or first >= end:
        return
    for _ in range(3):
        lo = rng.randrange(first, end)
        hi = rng.randint(lo + 1, end)
        start = state.start.index + 1
        assert read_all(reader, wal, lo, hi, rng.choice([1, 500, 5_000, 1 << 30])) == list(state.entries[lo - start : hi - start])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), steps=STEPS)
def test_what_is_read_back_is_what_the_log_holds(kit, seed, steps):
    life = kit.Life(kit.SimDisk(seed))
    life.start()
    rng = random.Random(seed)
    wal, reader = life.wal, life.wal.history(life.disk)
    for name, number in steps:
        if name == "retain":
            life.wal.release(Index(life.applied), retain_bytes=random.Random(number).choice([0, 4096, 8192, 20_000]))
        elif name == "read":
            check_reads(life, reader, rng)
        else:
            step(kit, life, name, number)
        if life.wal is not wal:
            wal, reader = life.wal, life.wal.history(life.disk)
    check_reads(life, reader, rng)


@pytest.fixture
def log(kit, tmp_path):
    """Sixty committed entries of 1,000 bytes in small segments."""
    wal = Wal.create(tmp_path / "wal", kit.METADATA, segment_size_bytes=8192)
    for first in range(1, 61, 5):
        wal.save(kit.entries(first, first + 4, size=1000), kit.state(commit=first + 4), sync=True)
    yield wal
    wal.close()


def term_one(_: int) -> int:
    return 1


def test_released_segments_stay_as_far_as_their_bytes_are_retained(log):
    total = sum(segment.size_bytes for segment in log.segments()[:-1])
    assert log.release(Index(60), retain_bytes=total) == 0
    assert log.release(Index(60), retain_bytes=20_000) > 0
    assert 0 < sum(segment.size_bytes for segment in log.segments()[:-1]) <= 20_000
    first = log.first_index
    reader = log.history(OsFiles())
    assert [entry.index for entry in read_all(reader, log, first, 61, 2000)] == list(range(first, 61))
    log.release(Index(60))
    assert len(log.segments()) == 1


def test_what_lies_before_a_marker_is_not_retained(kit, log):
    log.save_marker(Marker(Index(100), 1), kit.state(commit=100))
    log.release(Index(100), retain_bytes=1 << 30)
    assert len(log.segments()) == 1


def test_a_released_segment_is_gone_and_one_released_while_it_is_read_is_not(log, kit):
    reader = log.history(OsFiles())
    assert reader.read(Index(1), Index(61), 3000, term_one)[-1].index == 3
    stale = list(log._writer.segments)
    log.release(Index(60))
    reader._segments = lambda: stale
    with pytest.raises(HistoryGoneError):
        reader.read(Index(4), Index(61), 3000, term_one)


@pytest.mark.parametrize("bit", [3, 200, 4000, 8 * 32 + 5])
def test_a_flipped_bit_on_the_way_is_damage_and_nothing_behind_it_is_given(kit, log, bit):
    path = log.segments()[2].path
    first = log.segments()[2].first_index
    _, chain = kit.records(log.segments()[1].path)
    del chain
    kit.flip(path, 200 + bit // 8, bit % 8)
    reader = log.history(OsFiles())
    before = read_all(reader, log, 1, first, 1 << 20)
    assert [entry.index for entry in before] == list(range(1, first))
    with pytest.raises(DamagedError) as caught:
        reader.read(first, Index(61), 1 << 20, term_one)
    assert caught.value.path == path
    with pytest.raises(DamagedError):
        reader.read(Index(1), Index(61), 1 << 30, term_one)


def test_another_term_than_asked_for_is_not_given(log):
    with pytest.raises(DamagedError, match="should be in the log"):
        log.history(OsFiles()).read(Index(5), Index(10), 1 << 20, lambda index: 2)


def test_an_answer_is_bounded_in_bytes_and_entries_and_the_next_begins_where_it_ended(kit, tmp_path):
    wal = Wal.create(tmp_path / "wal", kit.METADATA, segment_size_bytes=1 << 22)
    wal.save([kit.entry(index, data=b"x") for index in range(1, 10_001)], kit.state(commit=10_000), sync=True)
    opened = []

    class Counting(OsFiles):
        def open(self, path, *, writable):
            file = super().open(path, writable=writable)
            pread = file.pread
            proxy = type("File", (), {"path": path, "size": file.size, "close": file.close})()
            proxy.pread = lambda length, offset: (opened.append(offset), pread(length, offset))[1]
            return proxy

    reader = wal.history(Counting())
    assert len(reader.read(Index(1), Index(10_001), 1 << 20, term_one)) == MAX_ENTRIES
    opened.clear()
    assert len(reader.read(Index(1 + MAX_ENTRIES), Index(10_001), 100, term_one)) == 100
    assert min(opened) >= 64 * MAX_ENTRIES, "it began at its mark, not at the segment's start"
    assert 1 <= reader.mark_count < 10
    wal.close()


def test_a_system_error_names_the_file(log):
    class Failing(OsFiles):
        def open(self, path, *, writable):
            raise OSError(5, "Input/output error")

    with pytest.raises(WalIOError, match="Input/output error"):
        log.history(Failing()).read(Index(1), Index(5), 100, term_one)


def reopened(kit, log, applied: int, recent_bytes: int | None):
    """The log opened anew, with what its sink saw."""
    directory = log.segments()[0].path.parent
    log.close()
    seen: list[Entry] = []
    wal, recovered = Wal.open(
        directory, kit.METADATA, seen.append, applied_index=Index(applied), recent_bytes=recent_bytes, segment_size_bytes=8192
    )
    return wal, recovered, [entry.index for entry in seen]


def last_run(indexes: list[int]) -> list[int]:
    """From the last gap on (a log's first segment is read always: the term changes in it)."""
    return next(
        indexes[position:] for position in reversed(range(len(indexes))) if position == 0 or indexes[position - 1] + 1 < indexes[position]
    )


def test_a_start_reads_only_the_headers_of_what_is_retained_and_the_log_is_the_same(kit, log):
    whole, recovered, seen = reopened(kit, log, 60, None)
    segments, runs = [(info.path, info.used_bytes, info.first_index) for info in whole.segments()], whole.term_runs()
    assert seen == list(range(1, 61))
    partly, again, seen = reopened(kit, whole, 60, 20_000)
    seen = last_run(seen)
    assert 20 < len(seen) < 40, "20 KB of closed segments, and the newest one"
    assert seen[-1] == 60
    assert (again.first_index, again.last_index, again.hard_state, again.prev_term) == (
        recovered.first_index,
        recovered.last_index,
        recovered.hard_state,
        recovered.prev_term,
    )
    assert [(info.path, info.used_bytes, info.first_index) for info in partly.segments()] == segments
    assert partly.term_runs() == runs
    assert [entry.index for entry in read_all(partly.history(OsFiles()), partly, 1, 61, 3000)] == list(range(1, 61))
    assert partly.release(Index(60)) == len(segments) - 1, "what was not read is released as what was"
    partly.close()


@pytest.mark.parametrize("applied", [0, 7, 23, 59])
def test_a_start_reads_everything_above_the_applied_index_whatever_is_recent(kit, log, applied):
    wal, _, seen = reopened(kit, log, applied, 0)
    seen = last_run(seen)
    assert seen[0] <= applied + 1
    assert seen == list(range(seen[0], 61))
    wal.close()


def test_a_start_reads_a_retained_segment_in_which_the_term_changed_or_a_snapshot_was_installed(kit, tmp_path):
    wal = Wal.create(tmp_path / "wal", kit.METADATA, segment_size_bytes=8192)
    for index in range(1, 101):
        term = 1 if index < 30 else 2 if index < 33 else 4
        wal.save([*kit.entries(index, index, term, size=1000)], kit.state(term=term, commit=index), sync=True)
    runs = wal.term_runs()
    assert len(runs) > 2
    wal, _, seen = reopened(kit, wal, 100, 0)
    assert wal.term_runs() == runs
    assert 30 in seen
    assert 33 in seen
    assert len(seen) < 40
    wal.save_marker(Marker(Index(200), 4), kit.state(term=4, commit=200))
    for index in range(201, 240):
        wal.save([*kit.entries(index, index, 4, size=1000)], kit.state(term=4, commit=index), sync=True)
    wal, recovered, _ = reopened(kit, wal, 239, 0)
    assert (recovered.first_index, recovered.prev_term, recovered.marker) == (201, 4, Marker(Index(200), 4))
    wal.close()


def test_a_retained_segment_that_is_not_read_is_refused_when_it_is_too_short_or_another_ones(kit, log):
    path = log.segments()[1].path
    content = path.read_bytes()
    log.close()
    path.write_bytes(content[:-200])
    with pytest.raises(DamagedError, match="should reach offset") as caught:
        Wal.open(path.parent, kit.METADATA, lambda entry: None, applied_index=Index(60), recent_bytes=0, segment_size_bytes=8192)
    assert caught.value.path == path
