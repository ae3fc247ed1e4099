"""The rows of the damage table (docs/architecture/wal.md) that concern the log alone: what is repaired, and what is refused with which
words."""

from __future__ import annotations

import errno
import shutil

import pytest

from raft.types import Index, Term
from wal import (
    AppliedMismatchError,
    DamagedError,
    FormatVersionError,
    LostEntriesError,
    Marker,
    Metadata,
    MetadataMismatchError,
    OsFiles,
    SegmentError,
    Wal,
    WalError,
    WalFailedError,
    WalIOError,
)
from wal.codec import ENTRY_PREFIX, encode_hard_state
from wal.record import RecordType


@pytest.fixture
def life(kit, directory):
    """A log as a killed process leaves it: 12 entries of 700 B (several sectors each), one batch each, over several segments of 4 KiB."""
    wal = Wal.create(directory, kit.METADATA, segment_size_bytes=4096)
    for index in range(1, 13):
        wal.save(kit.entries(index, index, size=700), kit.state(commit=max(0, index - 4)), sync=True)
    return directory


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refused(kit, directory, error, match, applied=0):
    """Opening fails with this error, and changes no file; the error."""
    before = files_of(directory)
    with pytest.raises(error, match=match) as caught:
        kit.reopen(directory, applied=applied, segment_size_bytes=4096)
    assert files_of(directory) == before
    return caught.value


def last_entry(kit, path):
    """The last entry record of a segment."""
    return [record for record in kit.records(path)[0] if record.type == RecordType.ENTRY][-1]


@pytest.mark.parametrize("keep_bytes", [1, 4, 8, 31, 32, 33, 500, 755])
def test_cut_inside_the_last_entry_is_repaired_with_a_backup(kit, life, keep_bytes):
    path = kit.newest(life)
    record = last_entry(kit, path)
    kit.truncate(path, record.offset_bytes + keep_bytes)
    torn = path.read_bytes()[record.offset_bytes :]
    wal, recovered, entries = kit.reopen(life, segment_size_bytes=4096)
    assert entries == kit.entries(1, 11, size=700)
    if keep_bytes < 4:  # the length's low byte is not zero, so even one byte shows
        assert recovered.repaired is not None
    assert str(record.offset_bytes) in recovered.repaired
    assert (life / f"{path.name}.{record.offset_bytes}.torn").read_bytes() == torn
    wal.save(kit.entries(12, 13, term=2), kit.state(term=2, commit=9), sync=True)
    wal.close()
    assert kit.reopen(life)[2] == kit.entries(1, 11, size=700) + kit.entries(12, 13, term=2)


def test_cut_inside_the_last_record_is_refused_if_the_applied_index_covers_it(kit, life):
    path = kit.newest(life)
    kit.truncate(path, last_entry(kit, path).offset_bytes + 40)
    error = refused(kit, life, LostEntriesError, "index 12 is known to be committed", applied=12)
    assert (error.path, error.last_index, error.required_index) == (path, 11, 12)


def test_cut_at_the_end_of_a_record_boots(kit, life):
    path = kit.newest(life)
    kit.truncate(path, last_entry(kit, path).offset_bytes)
    wal, recovered, entries = kit.reopen(life, segment_size_bytes=4096)
    wal.close()
    assert entries == kit.entries(1, 11, size=700)
    assert recovered.repaired is None


def test_file_that_ends_behind_its_last_record_boots_without_loss(kit, life):
    path = kit.newest(life)
    kit.truncate(path, kit.records(path)[1].offset_bytes)
    wal, _, entries = kit.reopen(life, segment_size_bytes=4096)
    wal.close()
    assert entries == kit.entries(1, 12, size=700)


def test_longer_blank_tail_boots_without_loss(kit, life):
    kit.truncate(kit.newest(life), 100_000)
    assert kit.reopen(life, segment_size_bytes=4096)[2] == kit.entries(1, 12, size=700)


def test_last_record_with_a_blank_sector_is_torn(kit, life):
    path = kit.newest(life)
    record = last_entry(kit, path)
    sector = record.offset_bytes // 512 * 512 + 512
    kit.overwrite(path, sector, bytes(512))
    wal, recovered, entries = kit.reopen(life, segment_size_bytes=4096)
    wal.close()
    assert entries == kit.entries(1, 11, size=700)
    assert "payload" in recovered.repaired


@pytest.mark.parametrize("left", ["first byte", "last byte", "both"])
def test_sector_that_is_not_wholly_blank_is_damage(kit, life, left):
    """A crash leaves a sector as it was before or as it is after, never with a byte of each."""
    path = kit.newest(life)
    record = last_entry(kit, path)
    sector = record.offset_bytes // 512 * 512 + 512
    before = path.read_bytes()[sector : sector + 512]
    blank = bytearray(512)
    if left != "last byte":
        blank[0] = before[0]
    if left != "first byte":
        blank[-1] = before[-1]
    kit.overwrite(path, sector, bytes(blank))
    refused(kit, life, DamagedError, "no crash leaves it so")


@pytest.mark.parametrize("is_blank_to_the_end", [True, False])
def test_first_sector_of_a_record_counts_from_its_first_byte(kit, directory, is_blank_to_the_end):
    """What stands before the record in that sector was synced earlier and says nothing."""
    wal = Wal.create(directory, kit.METADATA)
    wal.save(kit.entries(1, 1, size=150), kit.state(), sync=True)
    start = wal.segments()[0].used_bytes
    assert 32 < start % 512 < 400
    wal.save(kit.entries(2, 2, size=2_000), None, sync=True)
    path = kit.newest(directory)
    end = start // 512 * 512 + 512
    kit.overwrite(path, start, bytes(end - start - (0 if is_blank_to_the_end else 1)))
    if is_blank_to_the_end:
        wal, _, entries = kit.reopen(directory)
        wal.close()
        assert entries == kit.entries(1, 1, size=150)
    else:
        refused(kit, directory, DamagedError, "no crash leaves it so")


@pytest.mark.parametrize("distance_bytes", [0, 1, 8, 40])
def test_garbage_behind_the_last_record_is_refused(kit, life, distance_bytes):
    path = kit.newest(life)
    end = kit.records(path)[1].offset_bytes
    kit.overwrite(path, end + distance_bytes, b"garbage")
    refused(kit, life, DamagedError, "no crash leaves it so")


@pytest.mark.parametrize("which", [0, 1, -1])
@pytest.mark.parametrize("place_bytes", [0, 3, 4, 9, 17, 21, 25, 29, 40, 300])
def test_bit_flip_in_a_record_is_refused_with_file_offset_and_index(kit, life, which, place_bytes):
    path = sorted(life.glob("*.wal"))[which]
    record = last_entry(kit, path)
    kit.flip(path, record.offset_bytes + place_bytes, bit=5)
    error = refused(kit, life, DamagedError, f"damaged at offset {record.offset_bytes}, behind index {error_index(record)}")
    assert (error.path, error.offset_bytes) == (path, record.offset_bytes)


def error_index(record):
    return int.from_bytes(record.payload[:8], "little") - 1


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("damage", ["high bit of the length", "length zeroed", "sector zeroed"])
def test_damage_in_the_middle_is_never_taken_for_a_torn_tail(kit, life, which, damage):
    path = sorted(life.glob("*.wal"))[which]
    record = next(record for record in kit.records(path)[0] if record.type == RecordType.ENTRY)
    if damage == "high bit of the length":
        kit.flip(path, record.offset_bytes + 3, bit=7)
    elif damage == "length zeroed":
        kit.overwrite(path, record.offset_bytes, bytes(4))
    else:
        kit.overwrite(path, record.offset_bytes // 512 * 512 + 512, bytes(512))
    refused(kit, life, DamagedError, "damaged at offset")


@pytest.mark.parametrize("is_last_batch", [True, False])
def test_blank_record_is_torn_only_if_no_later_batch_follows(kit, directory, is_last_batch):
    """What stands there is the same; the batch start in the valid records behind it tells the two apart."""
    wal = Wal.create(directory, kit.METADATA)
    wal.save(kit.entries(1, 2, size=600), kit.state(), sync=True)
    start = wal.segments()[0].used_bytes
    wal.save(kit.entries(3, 8, size=600), None, sync=True)
    if not is_last_batch:
        wal.save(kit.entries(9, 9), None, sync=True)
    path = kit.newest(directory)
    kit.overwrite(path, start, bytes(-start % 512 + 1024))
    if is_last_batch:
        _, recovered, entries = kit.reopen(directory)
        assert entries == kit.entries(1, 2, size=600)
        assert recovered.repaired is not None
    else:
        refused(kit, directory, DamagedError, "records of a later batch follow")


def test_empty_only_segment_is_refused(kit, life):
    paths = sorted(life.glob("*.wal"))
    for path in paths[:-1]:
        path.unlink()
    kit.truncate(paths[-1], 0)
    refused(kit, life, SegmentError, "the segment file is empty")


@pytest.mark.parametrize("which", [1, -1, -2])
def test_missing_segment_is_refused(kit, life, which):
    sorted(life.glob("*.wal"))[which].unlink()
    refused(kit, life, SegmentError, "is missing")


def test_two_missing_newest_segments_are_refused(kit, life):
    for path in sorted(life.glob("*.wal"))[-2:]:
        path.unlink()
    refused(kit, life, SegmentError, "the log goes on in segment .*, which is missing")


def test_swapped_segments_are_refused(kit, life):
    first, second = sorted(life.glob("*.wal"))[:2]
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    refused(kit, life, SegmentError, "under another one's name")


def test_segment_of_another_life_is_refused(kit, life, tmp_path):
    """The same names, members and indexes, from an older copy of the same log: the chain does not fit."""
    other = tmp_path / "other"
    wal = Wal.create(other, kit.METADATA, segment_size_bytes=4096)
    for index in range(1, 13):
        wal.save(kit.entries(index, index, size=700), kit.state(commit=max(0, index - 4)), sync=True)
    wal.close()
    name = sorted(life.glob("*.wal"))[1].name
    shutil.copy(other / name, life / name)
    refused(kit, life, SegmentError, "does not continue")


def test_duplicate_sequence_and_foreign_names_are_refused(kit, life):
    path = sorted(life.glob("*.wal"))[1]
    copy = life / "copy.wal"
    shutil.copy(path, copy)
    refused(kit, life, SegmentError, "not the name of a WAL segment")
    copy.rename(life / f"{path.name[:17]}00000000000000ff.wal")
    refused(kit, life, SegmentError, "under another one's name")


@pytest.mark.parametrize(
    ("offset_bytes", "error", "match"),
    [(0, SegmentError, "at offset 0: .*begin as a WAL"), (12, DamagedError, "damaged at offset 0, behind index [1-9].*header record")],
)
def test_bit_flip_in_the_preamble_is_refused(kit, life, offset_bytes, error, match):
    kit.flip(kit.newest(life), offset_bytes)
    refused(kit, life, error, match)


def test_unknown_format_version_is_named(kit, life):
    kit.overwrite(kit.newest(life), 8, b"\x02\0\0\0")
    assert refused(kit, life, FormatVersionError, "at offset 8: WAL format version 2").version == 2


@pytest.mark.parametrize(
    ("record_type", "payload", "match"),
    [
        (RecordType.ENTRY, ENTRY_PREFIX.pack(2**63, 1, 0), "entry index 9223372036854775808 is out of range"),
        (RecordType.ENTRY, ENTRY_PREFIX.pack(13, 2**63, 0), "entry term 9223372036854775808 is out of range"),
        (RecordType.ENTRY, ENTRY_PREFIX.pack(13, 1, 9), "entry type 9 is unknown"),
        (RecordType.ENTRY, b"short", "too short"),
        (RecordType.ENTRY, ENTRY_PREFIX.pack(15, 1, 0), "does not follow entry 12"),
        (RecordType.ENTRY, ENTRY_PREFIX.pack(8, 2, 0), "overwrites a committed one"),
        (RecordType.HARD_STATE, b"\xc1", "does not decode"),
        (RecordType.HARD_STATE, b"\x93\x01\x00\xcf\x80\0\0\0\0\0\0\0", "out of range"),
        (RecordType.HARD_STATE, b"\x93\x01\x00\x63", "beyond the last index 12"),
        (RecordType.MARKER, b"\x95\x63\x01\x01\x00\x08", "beyond the commit index 8"),
        (RecordType.HEADER, b"", "type 1 has no place here"),
        (RecordType.PROOF, b"x", "not empty"),
    ],
)
def test_well_checksummed_nonsense_is_refused(kit, life, record_type, payload, match):
    kit.append_record(kit.newest(life), record_type, payload)
    refused(kit, life, DamagedError, match)


@pytest.mark.parametrize("changes", [{"batch": 2**63}, {"batch": 3}, {"batch_start_bytes": 16}, {"previous_crc": 1}])
def test_record_out_of_its_chain_is_refused(kit, life, changes):
    kit.append_record(kit.newest(life), RecordType.HARD_STATE, encode_hard_state(kit.state(commit=8)), **changes)
    refused(kit, life, DamagedError, "damaged at offset")


def test_length_beyond_the_limit_is_refused_before_it_is_read(kit, life, monkeypatch):
    import wal.record as record_module

    kit.append_record(kit.newest(life), RecordType.ENTRY, bytes(200))
    monkeypatch.setattr(record_module, "MAX_PAYLOAD_BYTES", 199)
    for path in sorted(life.glob("*.wal"))[:-1]:
        path.unlink()
    with pytest.raises(DamagedError, match="claims"):
        kit.reopen(life)


@pytest.mark.parametrize(("applied", "store_term", "wal_term"), [(12, 2, 1), (5, 7, 1), (3, 2, 1)])
def test_store_that_applied_another_entry_is_refused(kit, life, applied, store_term, wal_term):
    """The log is long enough and whole, but it is not the one that the store was applied from."""
    before = files_of(life)
    with pytest.raises(AppliedMismatchError, match=f"entry {applied} is of term {wal_term}.* of term {store_term}") as caught:
        kit.reopen(life, applied=applied, applied_term=Term(store_term), segment_size_bytes=4096)
    assert files_of(life) == before
    assert (caught.value.index, caught.value.wal_term, caught.value.store_term) == (applied, wal_term, store_term)
    wal, _, _ = kit.reopen(life, applied=applied, applied_term=Term(wal_term), segment_size_bytes=4096)
    wal.close()


@pytest.mark.parametrize(("metadata", "field"), [(Metadata(0xBAD, 0xA1), "cluster"), (Metadata(0xC1, 0xBAD), "member")])
def test_log_of_another_cluster_or_member_is_refused(life, metadata, field):
    with pytest.raises(MetadataMismatchError, match=f"{field} [ca]1, but this process is {field} bad"):
        Wal.open(life, metadata, lambda entry: None, applied_index=Index(0))


def test_leftover_temporary_files_are_removed(kit, life):
    (life / "0000000000000009-0000000000000014.wal.tmp").write_bytes(b"half")
    (life / "x.wal.512.torn.tmp").write_bytes(b"half")
    wal, _, entries = kit.reopen(life, segment_size_bytes=4096)
    wal.close()
    assert entries == kit.entries(1, 12, size=700)
    assert not list(life.glob("*.tmp"))


def test_lost_seal_is_written_again(kit, life):
    path = sorted(life.glob("*.wal"))[0]
    sealed = path.read_bytes()
    kit.truncate(path, len(sealed) - 32)
    assert kit.reopen(life, segment_size_bytes=4096)[2] == kit.entries(1, 12, size=700)
    assert path.read_bytes() == sealed
    kit.overwrite(path, len(sealed), b"bytes that a repair has not yet cut off")
    assert kit.reopen(life, segment_size_bytes=4096)[2] == kit.entries(1, 12, size=700)
    assert path.read_bytes() == sealed


def test_value_that_imitates_records_does_not_confuse_the_scan(kit, directory):
    """A torn value that holds a copy of the log itself, and of another log, is still only a torn value."""
    wal = Wal.create(directory, kit.METADATA)
    wal.save(kit.entries(1, 5, size=700), kit.state(), sync=True)
    path = kit.newest(directory)
    copy = path.read_bytes()[: wal.segments()[0].used_bytes]
    start = wal.segments()[0].used_bytes
    wal.save([kit.entry(6, data=copy * 3)], None, sync=True)
    kit.overwrite(path, (start // 512 + 2) * 512, bytes(512))
    wal, recovered, entries = kit.reopen(directory)
    wal.close()
    assert entries == kit.entries(1, 5, size=700)
    assert recovered.repaired is not None


@pytest.mark.parametrize("is_last_batch", [True, False])
def test_large_torn_value_is_scanned_to_its_end(kit, directory, is_last_batch):
    """A record of several read-ahead chunks, its middle blank: torn if nothing follows, damage if a later batch does."""
    wal = Wal.create(directory, kit.METADATA)
    wal.save(kit.entries(1, 1), kit.state(), sync=True)
    start = wal.segments()[0].used_bytes
    wal.save([kit.entry(2, data=b"\xa6WR12345" * 100_000)], None, sync=True)
    if not is_last_batch:
        wal.save(kit.entries(3, 3), None, sync=True)
    kit.overwrite(kit.newest(directory), start // 4096 * 4096 + 400 * 1024, bytes(4096))
    if is_last_batch:
        _, recovered, entries = kit.reopen(directory)
        assert entries == kit.entries(1, 1)
        assert recovered.repaired is not None
    else:
        refused(kit, directory, DamagedError, "records of a later batch follow")


def sim(kit, seed=1):
    disk = kit.SimDisk(seed)
    directory = kit.Path("/wal")
    return disk, directory, Wal.create(directory, kit.METADATA, files=disk, segment_size_bytes=4096)


@pytest.mark.parametrize("operation", ["pwritev", "fdatasync"])
def test_failed_write_or_sync_kills_the_log(kit, operation):
    disk, directory, wal = sim(kit)
    wal.save(kit.entries(1, 3), kit.state(), sync=True)
    disk.fail_when = lambda name, path: name == operation
    with pytest.raises(WalFailedError, match="Nothing more is acknowledged"):
        wal.save(kit.entries(4, 4), None, sync=True)
    disk.fail_when = None
    for call in (
        lambda: wal.save([], kit.state(commit=1), sync=False),
        lambda: wal.save_marker(Marker(Index(9), Term(1)), kit.state(commit=9)),
        lambda: wal.release(Index(0)),
    ):
        with pytest.raises(WalFailedError):
            call()
    operations = len(disk.operations)
    wal.close()
    assert len(disk.operations) == operations
    _, _, entries = kit.reopen(directory, files=disk.after_restart(2))
    assert entries in (kit.entries(1, 3), kit.entries(1, 4))


def test_tail_of_a_failed_sync_is_proven_again_before_open_returns(kit):
    """The new process sees the unsynced entry; if it is given back, it must survive the next power loss."""
    disk, directory, wal = sim(kit)
    wal.save(kit.entries(1, 3), kit.state(), sync=True)
    disk.fail_when = lambda name, path: name == "fdatasync"
    with pytest.raises(WalFailedError):
        wal.save(kit.entries(4, 4), None, sync=True)
    restarted = disk.after_restart(2)
    assert kit.reopen(directory, files=restarted, segment_size_bytes=4096)[2] == kit.entries(1, 4)
    for seed in range(20):
        assert kit.reopen(directory, files=restarted.after_power_loss(seed), segment_size_bytes=4096)[2] == kit.entries(1, 4)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_directory_that_can_not_be_written_is_a_clear_error(kit, code):
    disk, directory, wal = sim(kit)
    wal.save(kit.entries(1, 3), kit.state(), sync=True)
    disk.fail_errno = code
    disk.fail_when = lambda name, path: name in ("create", "make_directory", "open_write")
    with pytest.raises(WalIOError, match="permissions") as caught:
        kit.reopen(directory, files=disk)
    assert caught.value.errno == code
    with pytest.raises(WalIOError, match="/other"):
        Wal.create(kit.Path("/other"), kit.METADATA, files=disk)


def test_every_error_is_a_wal_error_with_a_way_out(kit, life):
    kit.flip(kit.newest(life), 100)
    with pytest.raises(WalError, match=r"restore a single node, .* from a backup"):
        kit.reopen(life)


@pytest.mark.parametrize("salt", [None, 7])
def test_stale_records_behind_a_segments_end_are_refused_and_never_read(kit, tmp_path, monkeypatch, salt):
    """What a stale spare could leave there: another log's records, at the very offsets where the next ones of this log would stand. Their
    salt tells them; of the same salt, the chain."""
    if salt is not None:
        monkeypatch.setattr(OsFiles, "random_u32", lambda self: salt)
    contents = []
    for name, first in (("old", 1), ("new", 100)):
        wal = Wal.create(tmp_path / name, kit.METADATA, segment_size_bytes=4096)
        for index in range(1, 6 if name == "old" else 3):
            wal.save([kit.entry(index, data=b"%030d" % (first + index))], kit.state(commit=index - 1), sync=True)
        contents.append(kit.newest(tmp_path / name).read_bytes())
        del wal  # a kill, so that no record of a clean close stands between
    path = kit.newest(tmp_path / "new")
    end = kit.records(path)[1].offset_bytes
    assert contents[0][end : end + 32].strip(b"\0"), "a record of the old log begins there"
    kit.overwrite(path, end, contents[0][end:])
    seen = []
    with pytest.raises(DamagedError, match=f"damaged at offset {end}, behind index 2"):
        Wal.open(tmp_path / "new", kit.METADATA, seen.append, applied_index=Index(0), segment_size_bytes=4096)
    assert [entry.index for entry in seen] == [1, 2]
