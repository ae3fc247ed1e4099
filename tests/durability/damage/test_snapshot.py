"""The store as a whole, and snapshots on their way into it: a crash at each step of an install, damage to each of the files."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
from contextlib import contextmanager

import pytest

from kvserver.snapshot.files import part_path, received_path, taking_path
from kvserver.types import Index, NodeId, Term
from raft.messages import Message, MessageType
from raft.types import Snapshot, SnapshotMetadata
from tests.durability.damage.member import (
    Directory,
    assert_boots,
    assert_refused,
    hard_state,
    marker,
    open_log,
    overwrite,
    put_entry,
    start,
    truncate,
)

both = pytest.mark.parametrize("store", ["kept", "lost"])


@pytest.fixture
def laggard(take, states):
    """A member whose store is behind; with what an install has done so far."""

    def make(store: str, *, received: bool, marked: bool) -> Directory:
        directory = take(states.behind, store)
        if received:
            shutil.copy(states.donor, received_file(directory, states))
        if marked:
            wal = open_log(directory)
            wal.save_marker(marker(states.donor_index, states.donor_term), hard_state(states.donor_term + 1, states.donor_index))
            wal.close()
        return directory

    return make


def received_file(directory: Directory, states):
    return received_path(directory.snap, Index(states.donor_index), Term(states.donor_term))


@both
async def test_crash_while_a_snapshot_arrives(laggard, states, store):
    """Half a file: dropped; the store, and the WAL behind it, reach on without it."""
    directory = laggard(store, received=False, marked=False)
    part = part_path(directory.snap, NodeId(7), b"i" * 16)
    part.write_bytes(states.donor.read_bytes()[:9_000])
    taking = taking_path(directory.snap, 1)
    taking.write_bytes(b"half")
    await assert_boots(directory)
    assert not part.exists()
    assert not taking.exists()


@both
async def test_snapshot_without_marker(laggard, states, store):
    directory = laggard(store, received=True, marked=False)
    await assert_boots(directory)
    assert not received_file(directory, states).exists()


@both
async def test_crash_between_marker_and_swap(laggard, states, store):
    """The received file is whole and the WAL says that it counts: it is installed now, whatever the store was."""
    directory = laggard(store, received=True, marked=True)
    await assert_boots(directory, states.donor_acked)
    assert not received_file(directory, states).exists()


@pytest.fixture
def full_disk(monkeypatch):
    """A disk on which no install finds space, until the block ends; with the event that one has tried."""

    @contextmanager
    def make():
        tried = threading.Event()

        def refuse(*arguments):
            tried.set()
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("kvserver.storage.files.prepare_replace", refuse)
            yield tried

    return make


async def test_stop_of_a_start_whose_install_waits_for_space(laggard, states, full_disk):
    """The start is given up at once; the next one finishes the install."""
    directory = laggard("kept", received=True, marked=True)
    with full_disk() as tried:
        starting = asyncio.create_task(start(directory))
        assert await asyncio.to_thread(tried.wait, 20)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(starting, 20)
    await assert_boots(directory, states.donor_acked)
    assert not received_file(directory, states).exists()


async def test_stop_of_a_member_whose_install_waits_for_space(laggard, states, full_disk):
    """It may wait for ever; a stop does not. Nothing was acknowledged, the marker is there, and the next start finishes it."""
    directory = laggard("kept", received=False, marked=False)
    node = await start(directory)
    try:
        shutil.copy(states.donor, received_file(directory, states))
        metadata = SnapshotMetadata(index=Index(states.donor_index), term=Term(states.donor_term), conf_state=node.store.conf_state)
        with full_disk() as tried:
            node.driver.step(
                Message(
                    type=MessageType.SNAP,
                    from_=NodeId(7),
                    to=node.member_id,
                    term=Term(states.donor_term + 5),
                    snapshot=Snapshot(metadata=metadata),
                ),
                Index(0),
            )
            assert await asyncio.to_thread(tried.wait, 20)
            await asyncio.wait_for(node.stop(), 20)
    except BaseException:
        await node.stop()
        raise
    await assert_boots(directory, states.donor_acked)
    assert not received_file(directory, states).exists()


@both
async def test_crash_after_the_swap(laggard, states, store):
    """The store is the snapshot, and the file (another copy of it) was not removed yet. With the store lost: installed once more."""
    directory = laggard(store, received=True, marked=True)
    if store == "kept":
        shutil.copy(states.donor, directory.store)
    await assert_boots(directory, states.donor_acked)
    assert not received_file(directory, states).exists()


@both
async def test_marker_whose_snapshot_is_gone(laggard, states, store):
    directory = laggard(store, received=False, marked=True)
    expected = f"snapshot at index {states.donor_index} was installed" if store == "kept" else f"begins at index {states.donor_index + 1}"
    await assert_refused(directory, directory.store, expected, "replace-a-dead-member")


@both
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "zeros"])
async def test_corrupt_newest_snapshot_that_counts(laggard, states, store, damage):
    """The WAL begins behind it, so the older one (the store) can't go on from it: refused, and the store stays as it is."""
    directory = laggard(store, received=True, marked=True)
    path = received_file(directory, states)
    spoil(path, damage)
    before = directory.store.read_bytes() if directory.store.exists() else b""
    await assert_refused(directory, path, f"index {states.donor_index}", "damaged", "replace-a-dead-member")
    if store == "kept":
        assert directory.store.read_bytes() == before
    shutil.copy(states.donor, path)  # what the message asks for
    await assert_boots(directory, states.donor_acked)


@both
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "zeros"])
async def test_corrupt_newest_snapshot_that_does_not_count_yet(laggard, states, store, damage):
    """The older one is used: the store, or the WAL from the first entry on."""
    directory = laggard(store, received=True, marked=False)
    spoil(received_file(directory, states), damage)
    await assert_boots(directory)


async def test_received_snapshot_of_another_position(laggard, take, states, tmp_path):
    directory = laggard("kept", received=True, marked=True)
    shutil.copy(states.covered.store, received_file(directory, states))
    await assert_refused(directory, received_file(directory, states), f"index {states.covered.applied_index}", str(states.donor_index))


def spoil(path, damage: str) -> None:
    size_bytes = path.stat().st_size
    if damage == "empty":
        truncate(path, 0)
    elif damage == "cut":
        truncate(path, size_bytes // 2)
    elif damage == "garbage":
        overwrite(path, 0, b"\xa5" * 8192)
    else:
        overwrite(path, 0, bytes(size_bytes))


@pytest.mark.parametrize("damage", ["cut", "garbage", "zeros"])
async def test_store_that_is_no_store(take, states, damage):
    directory = take(states.covered)
    spoil(directory.store, damage)
    await assert_refused(directory, directory.store)


async def test_store_lost_while_the_wal_reaches_back(take, states):
    """Everything is applied again, from the first entry."""
    await assert_boots(take(states.behind, "lost"))


async def test_store_kept_after_the_wal_was_released(take, states):
    await assert_boots(take(states.released))


async def test_store_lost_after_the_wal_was_released(take, states):
    directory = take(states.released, "lost")
    await assert_refused(
        directory, directory.store, "is missing", directory.wal, "begins at index", "docs/operations/replace-a-dead-member.md"
    )


async def test_store_replaced_by_an_older_copy_after_the_wal_was_released(take, states):
    directory = take(states.released)
    shutil.copy(states.behind.store, directory.store)
    text = await assert_refused(directory, directory.wal, directory.store, f"is at index {states.behind.applied_index}", "replace-a-dead")
    assert "what lies between is lost" in text


async def test_wal_replaced_by_an_older_copy(take, states):
    """Consistent in itself; the applied index tells."""
    directory = take(states.clean)
    shutil.rmtree(directory.wal)
    shutil.copytree(states.behind.wal, directory.wal)
    await assert_refused(directory, f"index {directory.applied_index} is known to be committed", "replace-a-dead-member")


async def test_wal_replaced_by_an_older_copy_with_the_store_lost(take, states):
    """Nothing is left that knows better: it is the member that it was then."""
    directory = take(states.clean, "lost")
    shutil.rmtree(directory.wal)
    shutil.copytree(states.behind.wal, directory.wal)
    await assert_boots(directory, states.behind.acked)


async def test_wal_of_a_life_that_ended_otherwise(take, states, tmp_path):
    """As long as the store asks, and of this very member, but other entries: the term at the applied index tells."""
    directory = take(states.clean)
    shutil.rmtree(directory.wal)
    shutil.copytree(states.behind.wal, directory.wal)
    directory.applied_index = 0
    wal = open_log(directory)
    term = states.donor_term + 5
    entries = [put_entry(index, term, index) for index in range(states.behind.last_index + 1, states.donor_index + 5)]
    wal.save(entries, hard_state(term, states.behind.last_index), sync=True)
    wal.close()
    await assert_refused(directory, f"entry {states.donor_index}", f"term {states.donor_term}", f"term {term}", "replace-a-dead-member")
