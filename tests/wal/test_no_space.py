"""A full disk: the spare carries on, then saves wait without harm, and go on when there is space."""

from __future__ import annotations

import errno
import random

import pytest

from raft.types import Index
from wal import Marker, Wal, WalFailedError, WalIOError, WalNoSpaceError

SEGMENT_BYTES = 4096
NO_SPACE = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]


def full(operation, path):
    """What a full disk refuses: whatever needs new blocks, or a new name."""
    return operation in ("create", "preallocate")


def new_log(kit, disk):
    return Wal.create(kit.Path("/wal"), kit.METADATA, files=disk, segment_size_bytes=SEGMENT_BYTES)


def save_until_held(kit, wal, first, *, size=300):
    """Save entries one by one until one is refused for space; the index of that one."""
    index = first
    while True:
        try:
            wal.save(kit.entries(index, index, size=size), kit.state(commit=index - 1), sync=True)
        except WalNoSpaceError:
            return index
        index += 1


def saved(kit, wal, batch, commit):
    """Whether there was space for it."""
    try:
        wal.save(batch, kit.state(commit=commit), sync=True)
    except WalNoSpaceError:
        return False
    return True


@pytest.mark.parametrize("code", NO_SPACE)
def test_without_a_spare_a_save_waits_and_goes_on_when_there_is_space(kit, code):
    disk = kit.SimDisk(1)
    wal = new_log(kit, disk)
    lost = []
    wal.on_spare_lost = lambda: lost.append(True)
    wal.save([], kit.state(), sync=True)
    disk.fail_errno, disk.fail_when = code, full
    held = save_until_held(kit, wal, 1)
    assert lost == [True]
    assert not wal.has_spare
    names = disk.names(kit.Path("/wal"))
    assert len(names) == len(wal.segments()), names
    batch = kit.entries(held, held + 2, size=300)
    for _ in range(3):
        with pytest.raises(WalNoSpaceError, match="there is no space"):
            wal.save(batch, kit.state(commit=held - 1), sync=True)
    disk.fail_when = None
    wal.save(batch, kit.state(commit=held - 1), sync=True)
    assert wal.has_spare
    wal.close()
    _, recovered, entries = kit.reopen(kit.Path("/wal"), files=disk, segment_size_bytes=SEGMENT_BYTES)
    assert entries == kit.entries(1, held + 2, size=300)
    assert recovered.hard_state.commit == held - 1


def test_what_was_written_before_space_ran_out_is_not_written_again(kit):
    disk = kit.SimDisk(1)
    wal = new_log(kit, disk)
    wal.save([], kit.state(), sync=True)
    disk.fail_errno, disk.fail_when = errno.ENOSPC, full
    batch = kit.entries(1, 40, size=300)  # three segments' worth: one, the spare, and a third that is not to be had
    with pytest.raises(WalNoSpaceError) as first:
        wal.save(batch, kit.state(commit=3), sync=True)
    assert first.value.saved_entries is not None
    assert 10 < first.value.saved_entries < 40
    assert wal.last_index == first.value.saved_entries
    with pytest.raises(WalNoSpaceError):
        wal.save(batch, kit.state(commit=3), sync=True)
    disk.fail_when = None
    wal.save(batch, kit.state(commit=3), sync=True)
    used = sum(segment.used_bytes for segment in wal.segments())
    assert used < 40 * 400, "the beginning was written twice"
    wal.close()
    _, recovered, entries = kit.reopen(kit.Path("/wal"), files=disk, segment_size_bytes=SEGMENT_BYTES)
    assert entries == batch
    assert recovered.hard_state == kit.state(commit=3)


def test_another_save_may_come_instead_of_the_one_that_was_held(kit):
    """A leader of a newer term overwrites the entries that waited."""
    disk = kit.SimDisk(1)
    wal = new_log(kit, disk)
    wal.save([], kit.state(), sync=True)
    disk.fail_errno, disk.fail_when = errno.ENOSPC, full
    with pytest.raises(WalNoSpaceError):
        wal.save(kit.entries(1, 40, size=300), kit.state(), sync=True)
    disk.fail_when = None
    wal.save(kit.entries(1, 40, term=2, size=300), kit.state(term=2), sync=True)
    wal.close()
    _, _, entries = kit.reopen(kit.Path("/wal"), files=disk, segment_size_bytes=SEGMENT_BYTES)
    assert entries == kit.entries(1, 40, term=2, size=300)


def test_a_marker_waits_for_space_as_well(kit):
    disk = kit.SimDisk(1)
    wal = new_log(kit, disk)
    wal.save([], kit.state(), sync=True)
    disk.fail_errno, disk.fail_when = errno.ENOSPC, full
    commit = save_until_held(kit, wal, 1, size=8) - 2
    held = 2
    while True:  # fill what is left with votes
        try:
            wal.save([], kit.state(term=held, vote=1, commit=commit), sync=True)
        except WalNoSpaceError:
            break
        held += 1
    marker, hard_state = Marker(Index(5000), kit.state(term=held).term), kit.state(term=held, commit=5000)
    with pytest.raises(WalNoSpaceError):
        wal.save_marker(marker, hard_state)
    disk.fail_when = None
    wal.save_marker(marker, hard_state)
    wal.close()
    _, recovered, _ = kit.reopen(kit.Path("/wal"), files=disk, segment_size_bytes=SEGMENT_BYTES, applied=5000)
    assert recovered.marker == marker


def test_votes_and_deletes_fit_into_the_spare_of_a_full_disk(kit):
    disk = kit.SimDisk(1)
    wal = new_log(kit, disk)
    wal.save([], kit.state(), sync=True)
    disk.fail_errno, disk.fail_when = errno.ENOSPC, full
    index = 1
    while wal.has_spare:
        wal.save(kit.entries(index, index, size=300), kit.state(), sync=True)
        index += 1
    for term in range(2, 30):
        wal.save([], kit.state(term=term, vote=1), sync=True)


@pytest.mark.parametrize("operation", ["pwritev", "fdatasync", "fsync_dir"])
def test_want_of_space_in_reserved_space_is_the_end(kit, operation):
    """Where space was reserved, ENOSPC means that the disk does not keep its promises: what reached it is unknown."""
    disk = kit.SimDisk(1)
    wal = new_log(kit, disk)
    wal.save([], kit.state(), sync=True)
    disk.fail_errno = errno.ENOSPC
    disk.fail_when = lambda name, path: name == operation
    with pytest.raises(WalFailedError):
        wal.save(kit.entries(1, 40, size=300), kit.state(), sync=True)
    disk.fail_when = None
    with pytest.raises(WalFailedError):
        wal.save([], kit.state(term=9), sync=True)


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EACCES])
def test_another_failure_of_the_allocation_is_the_end(kit, code):
    disk = kit.SimDisk(1)
    wal = new_log(kit, disk)
    wal.save([], kit.state(), sync=True)
    disk.fail_errno, disk.fail_when = code, full
    with pytest.raises(WalFailedError):
        save_until_held(kit, wal, 1)


def test_an_entry_larger_than_the_spare_leaves_the_spare_for_votes(kit):
    disk = kit.SimDisk(1)
    wal = new_log(kit, disk)
    wal.save([], kit.state(), sync=True)
    disk.fail_errno, disk.fail_when = errno.ENOSPC, full
    with pytest.raises(WalNoSpaceError):
        wal.save(kit.entries(1, 1, size=10_000), kit.state(), sync=True)
    assert wal.has_spare


@pytest.mark.parametrize("size", range(3704, 3944, 8))
def test_a_seal_never_needs_a_new_block(kit, size):
    """Written behind the reserved space it could meet a full disk, and that would be the end. So it fits even where a segment is full."""
    disk = kit.SimDisk(1)
    wal = new_log(kit, disk)
    longest = {}

    def watch(name, path):
        if path.suffix == ".wal" and name != "open":
            longest[path] = max(longest.get(path, 0), len(disk.find(path).content))
        return False

    disk.fail_when = watch
    wal.save([kit.entry(1, data=bytes(size))], kit.state(), sync=True)
    wal.save(kit.entries(2, 3, size=2000), kit.state(), sync=True)
    assert len(wal.segments()) >= 2
    allowed = {segment.path: max(SEGMENT_BYTES, segment.size_bytes) for segment in wal.segments()}
    assert all(longest.get(path, 0) <= size_bytes for path, size_bytes in allowed.items())
    assert all(segment.size_bytes <= SEGMENT_BYTES for segment in wal.segments())


def test_a_start_that_needs_a_segment_and_finds_no_space_says_so(kit):
    disk = kit.SimDisk(1)
    wal = new_log(kit, disk)
    wal.save([], kit.state(), sync=True)
    disk.fail_errno, disk.fail_when = errno.ENOSPC, full
    held = save_until_held(kit, wal, 1)
    with pytest.raises(WalIOError, match=r"making room for the next segment failed.*free space"):
        kit.reopen(kit.Path("/wal"), files=disk, segment_size_bytes=SEGMENT_BYTES)
    disk.fail_when = None
    _, _, entries = kit.reopen(kit.Path("/wal"), files=disk, segment_size_bytes=SEGMENT_BYTES)
    assert entries[: held - 1] == kit.entries(1, held - 1, size=300)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_was_acknowledged_survives_a_disk_that_fills_and_drains_and_loses_power(kit, seed):
    rng = random.Random(seed)
    disk = kit.SimDisk(seed)
    wal = new_log(kit, disk)
    wal.save([], kit.state(), sync=True)
    disk.fail_errno = rng.choice(NO_SPACE)
    is_full = False

    def refuses(name, path):
        return is_full and name in ("create", "preallocate", "rename") and rng.random() < 0.9

    disk.fail_when = refuses
    acknowledged, index = 0, 1
    for _ in range(rng.randrange(10, 60)):
        is_full = rng.random() < 0.5
        count = rng.randrange(1, 20)
        batch = kit.entries(index, index + count - 1, size=rng.choice([20, 300, 900]))
        while not saved(kit, wal, batch, acknowledged) and rng.random() < 0.9:
            is_full = rng.random() < 0.8
        if wal.last_index < batch[-1].index:
            break  # the process ends while its save is held
        acknowledged, index = batch[-1].index, batch[-1].index + 1
    is_full = False
    _, recovered, entries = kit.reopen(kit.Path("/wal"), files=disk.after_power_loss(seed), segment_size_bytes=SEGMENT_BYTES)
    assert recovered.last_index >= acknowledged
    assert [entry.index for entry in entries][:acknowledged] == list(range(1, acknowledged + 1))
