"""What the log promises while nothing is damaged."""

from __future__ import annotations

import errno
import stat
import tracemalloc

import pytest

from raft.types import EntryType, HardState, Index, Term
from wal import (
    MAX_ENTRY_DATA_BYTES,
    IllegalSaveError,
    Marker,
    Wal,
    WalClosedError,
    WalExistsError,
    WalMissingError,
    read_metadata,
)


def test_new_log_is_empty_and_starts_at_index_1(kit, directory):
    Wal.create(directory, kit.METADATA).close()
    wal, recovered, entries = kit.reopen(directory)
    wal.close()
    assert entries == []
    assert (recovered.first_index, recovered.prev_term, recovered.last_index, recovered.last_term) == (1, 0, 0, 0)
    assert recovered.hard_state == HardState()
    assert recovered.marker is None
    assert recovered.repaired is None


def test_new_log_behind_a_marker_starts_there(kit, directory):
    wal = Wal.create(directory, kit.METADATA, marker=Marker(Index(50), Term(3)))
    assert (wal.first_index, wal.last_index) == (51, 50)
    wal.save(kit.entries(51, 52, term=3), None, sync=True)
    wal.close()
    wal, recovered, entries = kit.reopen(directory)
    wal.close()
    assert entries == kit.entries(51, 52, term=3)
    assert recovered.marker == Marker(Index(50), Term(3))
    assert (recovered.first_index, recovered.prev_term) == (51, 3)
    assert recovered.hard_state == kit.state(term=3, commit=50)


def test_saved_entries_and_state_come_back(kit, directory, wal):
    saved = kit.entries(1, 20)
    saved[3].type = EntryType.CONF_CHANGE_V2
    saved[4].data = b""
    wal.save(saved, kit.state(term=2, vote=0xFFFF_FFFF_FFFF_FFFF, commit=7), sync=True)
    wal.close()
    wal, recovered, entries = kit.reopen(directory)
    wal.close()
    assert entries == saved
    assert recovered.hard_state == kit.state(term=2, vote=0xFFFF_FFFF_FFFF_FFFF, commit=7)
    assert (recovered.last_index, recovered.last_term) == (20, 1)


def test_unclean_end_is_written_again_and_nothing_is_lost(kit, directory):
    wal = Wal.create(directory, kit.METADATA, segment_size_bytes=4096)
    wal.save(kit.entries(1, 3), kit.state(), sync=True)
    wal.save(kit.entries(4, 5), kit.state(commit=3), sync=True)
    before = kit.newest(directory)
    for _ in range(3):  # a process that dies right after start, again and again
        again, recovered, entries = kit.reopen(directory, segment_size_bytes=4096)
        assert entries == kit.entries(1, 5)
        assert recovered.hard_state == kit.state(commit=3)
        assert recovered.repaired is None
    after = kit.newest(directory)
    assert before.name.startswith("0000000000000000-")
    assert after.name == "0000000000000001-0000000000000004.wal"
    again.save(kit.entries(6, 6), None, sync=True)
    again.close()
    assert kit.reopen(directory)[2] == kit.entries(1, 6)


def test_clean_close_leaves_nothing_to_write_again(kit, directory, wal):
    wal.save(kit.entries(1, 3), kit.state(), sync=True)
    wal.close()
    for _ in range(3):
        wal, _, entries = kit.reopen(directory, segment_size_bytes=4096)
        assert entries == kit.entries(1, 3)
        wal.close()
    assert len(list(directory.glob("*.wal"))) == 1


def test_full_segments_are_cut_and_read_back_in_order(kit, directory, wal):
    saved = kit.entries(1, 200, size=100)
    for start in range(0, 200, 7):
        wal.save(saved[start : start + 7], kit.state(commit=max(0, start - 7)), sync=True)
    segments = wal.segments()
    assert len(segments) > 5
    assert [segment.first_index for segment in segments] == sorted(segment.first_index for segment in segments)
    assert all(segment.used_bytes <= segment.size_bytes == segment.path.stat().st_size for segment in segments)
    wal.close()
    assert kit.reopen(directory, segment_size_bytes=4096)[2] == saved


def test_one_save_may_span_several_segments(kit, directory, wal):
    saved = kit.entries(1, 100, size=300)
    wal.save(saved, kit.state(commit=100), sync=True)
    assert len(wal.segments()) > 5
    wal.close()
    assert kit.reopen(directory)[2] == saved


def test_an_entry_larger_than_a_segment_gets_one_of_its_own(kit, directory, wal):
    big = kit.entry(2, data=bytes(range(256)) * 400)
    wal.save([kit.entry(1), big, kit.entry(3)], kit.state(), sync=True)
    wal.close()
    assert kit.reopen(directory, segment_size_bytes=4096)[2] == [kit.entry(1), big, kit.entry(3)]


def test_overwrite_above_commit_replaces_the_tail(kit, directory, wal):
    wal.save(kit.entries(1, 60), kit.state(commit=40), sync=True)
    wal.save(kit.entries(50, 52, term=2), kit.state(term=2, commit=40), sync=True)
    assert wal.last_index == 52
    wal.close()
    wal, recovered, entries = kit.reopen(directory)
    wal.close()
    assert entries == kit.entries(1, 49) + kit.entries(50, 52, term=2)
    assert recovered.last_term == 2


def test_commit_only_saves_need_no_sync_and_survive_a_clean_close(kit, directory, wal):
    wal.save(kit.entries(1, 9), kit.state(), sync=True)
    syncs: list[float] = []
    wal.on_sync = syncs.append
    for commit in range(1, 10):
        wal.save([], kit.state(commit=commit), sync=False)
    assert syncs == []
    wal.close()
    assert len(syncs) == 1
    assert kit.reopen(directory)[1].hard_state.commit == 9


def test_marker_moves_the_log_and_entries_go_on_behind_it(kit, directory, wal):
    wal.save(kit.entries(1, 30), kit.state(commit=10), sync=True)
    wal.save_marker(Marker(Index(500), Term(4)), kit.state(term=4, commit=505))
    assert (wal.first_index, wal.last_index) == (501, 500)
    wal.save(kit.entries(501, 506, term=4), kit.state(term=4, commit=505), sync=True)
    wal.close()
    wal, recovered, entries = kit.reopen(directory)
    wal.close()
    assert entries == kit.entries(501, 506, term=4)
    assert recovered.marker == Marker(Index(500), Term(4))
    assert (recovered.first_index, recovered.prev_term) == (501, 4)
    assert recovered.hard_state.commit == 505


def test_marker_below_the_last_index_drops_the_old_tail(kit, directory, wal):
    wal.save(kit.entries(1, 30), kit.state(commit=10), sync=True)
    wal.save_marker(Marker(Index(20), Term(2)), kit.state(term=2, commit=20))
    wal.close()
    wal, recovered, entries = kit.reopen(directory)
    wal.close()
    assert entries == []
    assert (recovered.first_index, recovered.last_index, recovered.last_term) == (21, 20, 2)


def test_marker_lets_go_of_the_segments_of_a_longer_old_log(kit, wal):
    wal.save(kit.entries(1, 60, size=200), kit.state(commit=10), sync=True)
    assert len(wal.segments()) > 3
    wal.save_marker(Marker(Index(20), Term(2)), kit.state(term=2, commit=20))
    wal.release(Index(20))
    assert len(wal.segments()) == 1


def test_release_removes_whole_segments_and_keeps_state_and_marker(kit, directory, wal):
    wal.save_marker(Marker(Index(10), Term(1)), kit.state(term=3, vote=7, commit=10))
    for index in range(11, 111):
        wal.save(kit.entries(index, index, term=3, size=200), None, sync=False)
    wal.save([], kit.state(term=3, vote=7, commit=110), sync=True)
    count = len(wal.segments())
    released = wal.release(Index(70))
    assert 0 < released < count - 1
    assert len(wal.segments()) == count - released == len(list(directory.glob("*.wal")))
    first = wal.first_index
    assert 50 < first <= 71
    wal.close()
    wal, recovered, entries = kit.reopen(directory, applied=70)
    wal.close()
    assert recovered.first_index == first
    assert recovered.prev_term == 3
    assert recovered.hard_state == kit.state(term=3, vote=7, commit=110)
    assert recovered.marker == Marker(Index(10), Term(1))
    assert entries == kit.entries(first, 110, term=3, size=200)


def test_release_never_removes_the_newest_segment_nor_a_needed_one(kit, wal):
    wal.save(kit.entries(1, 60, size=200), kit.state(commit=60), sync=True)
    assert wal.release(Index(0)) == 0
    wal.release(Index(60))
    assert len(wal.segments()) == 1
    assert wal.last_index == 60


def test_release_stops_at_the_saved_commit_index(kit, directory, wal):
    wal.save(kit.entries(1, 60, size=200), kit.state(commit=30), sync=True)
    wal.release(Index(60))
    assert 20 < wal.first_index <= 31
    wal.save([], kit.state(commit=60), sync=False)
    assert wal.release(Index(60)) > 0
    assert len(wal.segments()) == 1


def test_release_keeps_the_segments_that_a_later_overwrite_needs(kit, directory, wal):
    wal.save(kit.entries(1, 40, size=200), kit.state(commit=20), sync=True)
    wal.save(kit.entries(30, 60, term=2, size=200), kit.state(term=2, commit=29), sync=True)
    wal.release(Index(29))
    wal.close()
    wal, recovered, entries = kit.reopen(directory, applied=29)
    assert recovered.first_index <= 30
    assert entries[-31:] == kit.entries(30, 60, term=2, size=200)
    wal.save([], kit.state(term=2, commit=60), sync=True)
    wal.release(Index(45))
    wal.close()
    wal, recovered, entries = kit.reopen(directory, applied=45)
    wal.close()
    assert recovered.first_index <= 46
    assert recovered.prev_term in (1, 2)
    assert entries == kit.entries(recovered.first_index, 60, term=2, size=200)


def test_recovered_commit_covers_the_applied_index(kit, directory, wal):
    wal.save(kit.entries(1, 9), kit.state(commit=2), sync=True)
    wal.close()
    wal, recovered, _ = kit.reopen(directory, applied=6)
    assert recovered.hard_state.commit == 6
    with pytest.raises(IllegalSaveError, match="overwrites a committed one"):
        wal.save(kit.entries(6, 6, term=2), kit.state(term=2, commit=6), sync=True)
    wal.save(kit.entries(10, 40, size=300), kit.state(commit=7), sync=True)  # cuts: the header knows more than the records did
    wal.close()
    assert kit.reopen(directory)[1].hard_state.commit == 7


def test_term_of_a_torn_save_is_taken_over_without_a_vote(kit, directory):
    wal = Wal.create(directory, kit.METADATA, segment_size_bytes=4096)
    wal.save(kit.entries(1, 3), kit.state(term=1, vote=5), sync=True)
    path = kit.newest(directory)
    used = wal.segments()[-1].used_bytes
    wal.save(kit.entries(4, 4, term=6), kit.state(term=6, vote=9), sync=True)
    end_of_entry = used + 32 + 24 + len(kit.entry(4, 6).data) + (-len(kit.entry(4, 6).data)) % 8
    with path.open("r+b") as file:
        file.truncate(end_of_entry)
    wal, recovered, entries = kit.reopen(directory)
    assert entries[-1] == kit.entry(4, 6)
    assert recovered.hard_state == kit.state(term=6, vote=0)
    wal.close()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda kit: (kit.entries(12, 12), None), "does not follow entry 10"),
        (lambda kit: (kit.entries(4, 4, term=2), kit.state(term=2, commit=5)), "overwrites a committed one"),
        (lambda kit: (kit.entries(8, 8, term=1), kit.state()), "can not replace"),
        (lambda kit: ([kit.entry(11), kit.entry(13)], None), "entry 13 .* does not follow entry 11"),
        (lambda kit: ([kit.entry(11, 2), kit.entry(12, 1)], kit.state(term=2, commit=5)), "does not follow"),
        (lambda kit: (kit.entries(11, 11, term=2), None), "above the hard state's term"),
        (lambda kit: ([], kit.state(term=0)), "the term goes back"),
        (lambda kit: ([], kit.state(vote=4, commit=5)), "the vote in term 1 changes"),
        (lambda kit: ([], kit.state(vote=3, commit=4)), "the commit index goes back"),
        (lambda kit: ([], kit.state(vote=3, commit=11)), "beyond the last index 10"),
        (lambda kit: ([kit.entry(0)], None), "out of range"),
        (lambda kit: ([kit.entry(11, 2**63)], kit.state(term=2**63, commit=5)), "out of range"),
        (lambda kit: ([kit.entry(11, data=bytes(MAX_ENTRY_DATA_BYTES + 1))], None), "more than"),
    ],
)
def test_illegal_save_is_refused_and_changes_nothing(kit, directory, wal, build, reason):
    wal.save(kit.entries(1, 10), kit.state(vote=3, commit=5), sync=True)
    used = wal.segments()[-1].used_bytes
    with pytest.raises(IllegalSaveError, match=reason):
        wal.save(*build(kit), sync=True)
    assert wal.segments()[-1].used_bytes == used
    wal.save(kit.entries(11, 12), kit.state(vote=3, commit=11), sync=True)
    wal.close()
    assert kit.reopen(directory)[2] == kit.entries(1, 12)


def test_marker_beyond_its_commit_is_refused(kit, wal):
    with pytest.raises(IllegalSaveError, match="beyond the commit index"):
        wal.save_marker(Marker(Index(9), Term(1)), kit.state(commit=8))
    wal.save(kit.entries(1, 3), kit.state(commit=3), sync=True)
    with pytest.raises(IllegalSaveError, match="goes back"):
        wal.save_marker(Marker(Index(2), Term(1)), kit.state(commit=3))


def test_create_refuses_a_directory_that_holds_anything(kit, directory, wal):
    with pytest.raises(WalExistsError):
        Wal.create(directory, kit.METADATA)
    assert Wal.exists(directory)


def test_create_replaces_its_own_leftovers(kit, directory):
    leftover = directory.with_name("wal.tmp")
    leftover.mkdir()
    (leftover / "junk").write_bytes(b"x")
    Wal.create(directory, kit.METADATA).close()
    assert not leftover.exists()


def test_open_of_nothing_is_a_clear_error(kit, directory):
    assert not Wal.exists(directory)
    with pytest.raises(WalMissingError, match="no write-ahead log segment"):
        kit.reopen(directory)
    directory.mkdir()
    assert not Wal.exists(directory)
    with pytest.raises(WalMissingError):
        kit.reopen(directory)


def test_metadata_is_read_without_opening(kit, directory, wal):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert read_metadata(directory) == kit.METADATA
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    with pytest.raises(WalMissingError):
        read_metadata(directory.with_name("absent"))


def test_closed_log_refuses_every_call(kit, wal):
    wal.close()
    wal.close()
    with pytest.raises(WalClosedError):
        wal.save([], kit.state(), sync=True)


def test_files_are_private_and_preallocated(directory, wal):
    path, spare = sorted(directory.iterdir())
    assert spare.name == "spare"
    assert spare.stat().st_size == 4096
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 4096
    assert path.stat().st_blocks * 512 >= 4096


@pytest.mark.parametrize("size", [0, 4095, 4100, 2**30 + 8])
def test_segment_size_out_of_range_is_refused(kit, directory, size):
    with pytest.raises(ValueError, match="segment_size_bytes"):
        Wal.create(directory, kit.METADATA, segment_size_bytes=size)


def test_full_disk_leaves_one_segment_for_votes_and_alarms(kit):
    disk, directory = kit.SimDisk(1), kit.Path("/wal")
    wal = Wal.create(directory, kit.METADATA, files=disk, segment_size_bytes=4096)
    assert wal.has_spare
    disk.fail_errno = errno.ENOSPC
    disk.fail_when = lambda name, path: name == "preallocate" and path.name == "spare"
    term = 0
    while wal.has_spare:
        term += 1
        wal.save([], kit.state(term=term, vote=1), sync=True)
    assert not wal.refill_spare()
    assert "spare" not in disk.names(directory)
    for _ in range(30):  # a segment's worth of votes
        term += 1
        wal.save([], kit.state(term=term, vote=1), sync=True)
    wal.close()
    wal, recovered, _ = kit.reopen(directory, files=disk, segment_size_bytes=4096)
    assert recovered.hard_state == kit.state(term=term, vote=1)
    assert not wal.has_spare
    disk.fail_when = None
    assert wal.refill_spare()
    assert wal.has_spare


def test_spare_serves_the_restart_on_a_full_disk(kit):
    """An unclean end needs a new segment before the member may vote: the spare is that segment."""
    disk, directory = kit.SimDisk(1), kit.Path("/wal")
    wal = Wal.create(directory, kit.METADATA, files=disk, segment_size_bytes=4096)
    wal.save(kit.entries(1, 3), kit.state(), sync=True)
    disk.fail_errno = errno.ENOSPC
    disk.fail_when = lambda name, path: name == "create"
    wal, _, entries = kit.reopen(directory, files=disk, segment_size_bytes=4096)
    assert entries == kit.entries(1, 3)
    assert len(wal.segments()) == 2
    assert not wal.has_spare


def test_spare_of_another_size_is_made_anew(kit, directory, wal):
    wal.close()
    wal, _, _ = kit.reopen(directory, segment_size_bytes=8192)
    wal.close()
    assert (directory / "spare").stat().st_size == 8192


def test_large_entry_is_saved_without_a_copy(kit, directory):
    wal = Wal.create(directory, kit.METADATA)
    wal.save([], kit.state(), sync=True)
    data = bytes(range(256)) * 4096
    tracemalloc.start()
    try:
        wal.save([kit.entry(1, data=data)], None, sync=True)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    wal.close()
    assert peak_bytes < 64 * 1024


def test_reading_holds_one_chunk_and_one_record(kit, directory):
    wal = Wal.create(directory, kit.METADATA)
    wal.save([], kit.state(), sync=True)
    for index in range(1, 41):
        wal.save([kit.entry(index, data=bytes([index]) * 200_000)], None, sync=False)
    wal.close()
    seen = []
    tracemalloc.start()
    try:
        wal, _ = Wal.open(directory, kit.METADATA, lambda entry: seen.append(len(entry.data)), applied_index=Index(0))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    wal.close()
    assert seen == [200_000] * 40
    assert peak_bytes < 1_500_000


@pytest.mark.parametrize("rest", ["a whole segment", "one byte at the end", "records alone"])
def test_spare_that_is_not_blank_is_made_anew(kit, directory, wal, rest):
    """Somebody moved a file there, or a restore of a backup did."""
    wal.save(kit.entries(1, 5), kit.state(commit=3), sync=True)
    wal.close()
    old = kit.newest(directory).read_bytes()
    planted = {"a whole segment": old, "one byte at the end": bytes(len(old) - 1) + b"\1", "records alone": bytes(64) + old[64:]}[rest]
    (directory / "spare").write_bytes(planted)
    wal, _, entries = kit.reopen(directory, segment_size_bytes=4096)
    assert entries == kit.entries(1, 5)
    assert wal.has_spare
    assert (directory / "spare").read_bytes() == bytes(4096)
    wal.save(kit.entries(6, 90), kit.state(commit=80), sync=True)  # several segments, the first one from the spare
    del wal  # as a kill leaves it
    wal, _, entries = kit.reopen(directory, segment_size_bytes=4096)
    assert entries == kit.entries(1, 90)
    wal.close()
