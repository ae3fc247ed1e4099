"""The store as the node sees it: bootstrap, sizes, copies, installation, damage, space."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvserver.apply import ApplyMetDamageError, OnlineCheck, Store, answering, inspect, inspection, reading, removal
from kvserver.errors import CompactedError, CorruptError, DeterministicError, RangeTooSlowError, RequestTimeoutError
from kvserver.mvcc import LEASE, META, TABLES, Allowance, Snapshot, hashing
from kvserver.mvcc.layout import REV, pack_revision
from kvserver.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest
from kvserver.storage import StorageNoSpaceError, StoreUnreadableError, SwapFailedError, batch, check_structure, files, view
from kvserver.types import ClusterId, ConfState, Index, Member, NodeId, Revision

OpenMachine = Callable[..., Awaitable[Any]]
EVERYTHING = RangeRequest(key=b"\x00", range_end=b"\x00")


def keys(response: Any) -> list[bytes]:
    return [kv.key for kv in response.kvs]


async def test_new_store_is_empty_until_it_is_bootstrapped(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "member" / "snap" / "db")
    assert store.is_empty
    assert (store.applied_index, store.current_revision, store.compacted_revision) == (0, 1, -1)
    members = {NodeId(2**64 - 1): Member(id=NodeId(2**64 - 1), name="x", peer_urls=("a", "b"), client_urls=("c",), is_learner=True)}
    conf_state = ConfState(voters=(NodeId(1), NodeId(2)), voters_outgoing=(NodeId(3),), learners=(NodeId(4),), auto_leave=True)
    store.bootstrap(ClusterId(2**63), members, conf_state)
    with pytest.raises(ValueError, match="empty store"):
        store.bootstrap(ClusterId(1), {}, conf_state)
    await store.close()
    store = Store.open(tmp_path / "member" / "snap" / "db")
    assert not store.is_empty
    assert (store.cluster_id, store.members, store.conf_state) == (2**63, members, conf_state)
    await store.close()


async def test_empty_entries_become_durable_too(machine: Any) -> None:
    machine.apply_data(b"")
    machine.apply_data(b"")
    await machine.flush()
    assert machine.store.durable_index == 2
    await machine.reopen(commit=False)
    assert (machine.store.applied_index, machine.store.durable_index, machine.store.applied_term) == (2, 2, 1)


async def test_large_read_runs_in_a_thread_on_the_state_of_its_start(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "SCAN_BUDGET", 3)
    for number in range(10):
        machine.apply(PutRequest(key=b"k%d" % number))
    reading = asyncio.create_task(machine.store.read(EVERYTHING))
    await asyncio.sleep(0)
    machine.apply(PutRequest(key=b"later"))
    assert len((await reading).kvs) == 10
    counted = await machine.store.read(RangeRequest(key=b"k", range_end=b"z", count_only=True))
    assert (counted.count, len(counted.kvs)) == (11, 0)
    limited = await machine.store.read(RangeRequest(key=b"k", range_end=b"z", limit=2))
    assert (limited.count, limited.more, keys(limited)) == (11, True, [b"k0", b"k1"])


async def test_a_read_that_outlives_its_view_says_that_trying_again_does_not_help(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "SCAN_BUDGET", 3)
    monkeypatch.setattr(view, "MAX_AGE_S", 0.01)
    for number in range(10):
        machine.apply(PutRequest(key=b"k%d" % number))

    def slow(state: Snapshot) -> int:
        time.sleep(0.05)
        return len(list(state.scan(b"", None, state.revision)))

    with pytest.raises(RangeTooSlowError, match="limit"):
        await machine.store.run_on_view(slow, Allowance())
    monkeypatch.setattr(view, "MAX_AGE_S", 5.0)
    assert await machine.store.run_on_view(slow, Allowance()) == 10


async def test_copy_tells_its_own_position_and_installs_elsewhere(open_machine: OpenMachine, tmp_path: Path) -> None:
    one, two = await open_machine("one"), await open_machine("two")
    for number in range(30):
        one.apply(PutRequest(key=b"k%d" % (number % 7), value=b"%d" % number))
    await one.flush()
    one.apply(PutRequest(key=b"not committed"))
    metadata = await asyncio.to_thread(one.store.copy_to, tmp_path / "copy")
    assert (metadata.index, metadata.term, metadata.conf_state.voters) == (30, 1, (1,))
    two.apply(PutRequest(key=b"lost"))
    assert await two.store.install(tmp_path / "copy") == metadata
    assert (two.store.applied_index, two.store.durable_index, two.store.current_revision) == (30, 30, 31)
    assert keys(two.store.range(EVERYTHING)) == [b"k%d" % number for number in range(7)]
    assert (await two.store.hash_kv()).hash == (await one.store.hash_kv(Revision(31))).hash
    two.applier = type(two.applier)(two.store)
    assert two.apply(PutRequest(key=b"next")).header.revision == 32


async def test_damaged_copy_is_refused_and_the_store_goes_on(machine: Any, tmp_path: Path) -> None:
    machine.apply(PutRequest(key=b"a"))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"no store" * 10_000)
    await machine.flush()
    await asyncio.to_thread(machine.store.copy_to, tmp_path / "cut")
    with (tmp_path / "cut").open("r+b") as file:
        file.truncate(9000)
    for name in ("empty", "text", "cut", "missing"):
        with pytest.raises(StoreUnreadableError):
            await machine.store.install(tmp_path / name)
    assert keys(machine.store.range(EVERYTHING)) == [b"a"]
    machine.apply(PutRequest(key=b"b"))


async def test_store_of_another_format_is_refused(machine: Any) -> None:
    await machine.store.close()
    with lmdb.open(str(machine.path), subdir=False, max_dbs=len(TABLES)) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"\x00\x00\x00\x63", db=env.open_db(TABLES[META], txn=txn))
    with pytest.raises(StoreUnreadableError, match=r"format 99.*use the version that wrote it"):
        Store.open(machine.path)


async def flip_in_file(machine: Any, revision: bytes, offset: int) -> None:
    await machine.store.close()
    with lmdb.open(str(machine.path), subdir=False, max_dbs=len(TABLES)) as env, env.begin(write=True) as txn:
        db = env.open_db(TABLES[REV], txn=txn)
        record = bytearray(txn.get(revision, db=db))
        record[offset] ^= 0x10
        txn.put(revision, bytes(record), db=db)
    machine.open()


@pytest.mark.parametrize("offset", [0, 5, 20, 40, -5, -1])
async def test_flipped_bit_is_never_served_and_reported(machine: Any, offset: int) -> None:
    machine.apply(PutRequest(key=b"a", value=b"value"))
    machine.apply(PutRequest(key=b"b", value=b"value"))
    await flip_in_file(machine, pack_revision(2, 0), offset)
    with pytest.raises(CorruptError):
        machine.store.range(RangeRequest(key=b"a"))
    assert machine.corrupt == [f"{machine.path}: the record of revision 2.0 fails its checksum"]
    assert machine.store.range(RangeRequest(key=b"b")).kvs[0].value == b"value"
    with pytest.raises(CorruptError):
        await machine.store.hash_kv()


async def test_apply_that_meets_a_flipped_bit_stops_the_store_without_a_trace(machine: Any) -> None:
    machine.apply(PutRequest(key=b"a", value=b"value"))
    await flip_in_file(machine, pack_revision(2, 0), 50)
    with pytest.raises(ApplyMetDamageError):
        machine.apply(PutRequest(key=b"a", prev_kv=True))
    await machine.reopen()
    assert machine.store.applied_index == 1


async def test_compaction_stops_in_front_of_a_damaged_record(machine: Any) -> None:
    for _ in range(3):
        machine.apply(PutRequest(key=b"a", value=b"value"))
    await flip_in_file(machine, pack_revision(3, 0), 20)
    assert not isinstance(machine.apply(CompactionRequest(revision=4)), DeterministicError)
    for _ in range(5):
        await asyncio.sleep(0)
    assert machine.store.mvcc.compactor.pending
    assert "the record of revision 3.0 fails its checksum" in machine.corrupt[0]
    assert machine.store._engine.reader.get(REV, pack_revision(2, 0)) is not None


async def test_removal_goes_on_after_a_restart(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "COMPACTION_SLICE", 10)
    for number in range(100):
        machine.apply(PutRequest(key=b"k%d" % (number % 3)))
    machine.apply(CompactionRequest(revision=101))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert machine.store.mvcc.compactor.pending
    before = (await machine.store.hash_kv()).hash
    await machine.reopen()
    assert machine.store.compacted_revision == 101
    with pytest.raises(CompactedError):
        machine.store.range(RangeRequest(key=b"k1", revision=100))
    await machine.store.wait_compacted(Revision(101))
    assert len(list(machine.store._engine.reader.iterate(REV))) == 3
    assert (await machine.store.hash_kv()).hash == before


async def test_compactions_that_come_during_a_removal_are_all_carried_out(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "COMPACTION_SLICE", 3)
    finished: list[int] = []
    machine.store.on_compacted(finished.append)
    for number in range(30):
        machine.apply(PutRequest(key=b"k%d" % (number % 3)))
        machine.apply(DeleteRangeRequest(key=b"k%d" % (number % 3)))
    for revision in (10, 20, 61):
        machine.apply(CompactionRequest(revision=revision))
        await asyncio.sleep(0)
    await machine.store.wait_compacted(Revision(61))
    assert finished == [61]
    left = [list(machine.store._engine.reader.iterate(table)) for table in range(1, LEASE)]
    assert [len(table) for table in left] == [1, 0, 1, 0, 0], "only the tombstone at the compacted revision stays, for watches"


async def test_tombstone_at_the_compacted_revision_goes_with_the_next_compaction(machine: Any) -> None:
    for request in (PutRequest(key=b"a"), DeleteRangeRequest(key=b"a"), CompactionRequest(revision=3)):
        machine.apply(request)
    await machine.store.wait_compacted(Revision(3))
    sizes = [len(list(machine.store._engine.reader.iterate(table))) for table in range(1, LEASE)]
    assert sizes == [1, 0, 1, 0, 0]
    machine.apply(PutRequest(key=b"b"))
    machine.apply(CompactionRequest(revision=4))
    await machine.store.wait_compacted(Revision(4))
    sizes = [len(list(machine.store._engine.reader.iterate(table))) for table in range(1, LEASE)]
    assert sizes == [1, 1, 0, 0, 0]


async def test_hash_that_a_compaction_overtakes_is_refused(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "HASH_SLICE", 2)
    for number in range(20):
        machine.apply(PutRequest(key=b"k%d" % number))
    hashing = asyncio.create_task(machine.store.hash_kv())
    await asyncio.sleep(0)
    machine.apply(CompactionRequest(revision=15))
    with pytest.raises(CompactedError):
        await hashing


async def test_a_slice_of_a_hash_ends_with_its_bytes_and_the_hash_is_the_same(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of large values from a slow disk would outlive its view, and the hash would never come."""
    for number in range(20):
        machine.apply(PutRequest(key=b"k%d" % number, value=b"v" * 1000))
    whole = (await machine.store.hash_kv()).hash
    monkeypatch.setattr(hashing, "SLICE_BYTES", 3500)
    sliced = hashing.KvHash(machine.store.mvcc.snapshot(), 0)
    slices = 1
    while sliced.run_slice(machine.store.mvcc.snapshot(), 1_000_000):
        slices += 1
    assert (sliced.value, slices) == (whole, 5)


async def test_overwriting_does_not_grow_the_file_without_end(open_machine: OpenMachine) -> None:
    machine = await open_machine(quota_bytes=8 << 20, interval_s=0.001)
    sizes = []
    for turn in range(60):
        for number in range(60):
            size = 1000 if number % 10 else 100_000
            machine.apply(PutRequest(key=b"k%d" % number, value=b"%d" % turn * size))
            if not machine.store.has_room:
                await machine.store.wait_room()
        machine.apply(CompactionRequest(revision=machine.store.current_revision))
        await machine.store.wait_compacted(machine.store.compacted_revision)
        await machine.flush()
        sizes.append(machine.store.size_bytes)
    live = machine.store.size_in_use_bytes
    assert max(sizes[30:]) <= max(sizes[:30]) + live, sizes
    assert max(sizes) < 8 * live, "60 times the live data were written"


async def test_buffered_bytes_stay_below_the_bound_plus_one_entry(open_machine: OpenMachine) -> None:
    machine = await open_machine(commit_bytes=200_000, max_buffer_bytes=500_000)
    peak = 0
    for number in range(60):
        if not machine.store.has_room:
            await machine.store.wait_room()
        machine.apply(PutRequest(key=b"k%d" % number, value=b"x" * 100_000))
        peak = max(peak, machine.store.buffered_bytes)
    assert 400_000 < peak < 610_000


async def test_sizes_tell_file_and_use(machine: Any) -> None:
    machine.apply(PutRequest(key=b"a", value=b"x" * 1_000_000))
    await machine.flush()
    assert 1_000_000 < machine.store.size_in_use_bytes <= machine.store.size_bytes


async def test_durable_index_follows_commits_and_waiters_are_told(machine: Any) -> None:
    machine.apply(PutRequest(key=b"a"))
    waiting = asyncio.create_task(machine.store.wait_durable(Index(1)))
    await asyncio.sleep(0)
    assert machine.store.durable_index == 0
    machine.store.request_commit()
    await waiting
    assert machine.store.durable_index == 1


# --- while a snapshot takes the store's place --------------------------------------------------------------------------------------------


class HeldExchange:
    """The exchange of the files waits on its thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        exchange = files.replace

        def held(*arguments: Any) -> None:
            self.begun.set()
            assert self.go.wait(20)
            exchange(*arguments)

        monkeypatch.setattr(files, "replace", held)


async def with_copy_and_pending_removal(machine: Any, path: Path) -> None:
    """A store with 200 keys, a copy of it, and a compaction whose removal has begun."""
    for number in range(400):
        machine.apply(PutRequest(key=b"k%03d" % (number % 200), value=b"v" * 50))
    await machine.flush()
    await asyncio.to_thread(machine.store.copy_to, path)
    machine.apply(CompactionRequest(revision=machine.store.current_revision))
    await asyncio.sleep(0)
    assert machine.store.mvcc.compactor.pending


async def test_reads_during_an_install_are_answered_or_told_to_try_again(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "SCAN_BUDGET", 10)
    await with_copy_and_pending_removal(machine, tmp_path / "copy")
    held = HeldExchange(monkeypatch)
    installing = asyncio.create_task(machine.store.install(tmp_path / "copy"))
    try:
        await asyncio.to_thread(held.begun.wait, 20)
        assert keys(await machine.store.read(RangeRequest(key=b"k000"))) == [b"k000"]
        with pytest.raises(RequestTimeoutError):
            await machine.store.read(EVERYTHING)
        with pytest.raises(RequestTimeoutError):
            await machine.store.hash_kv()
    finally:
        held.go.set()
    await asyncio.wait_for(installing, 20)
    assert len((await machine.store.read(EVERYTHING)).kvs) == 200


async def test_a_check_that_meets_an_install_goes_on_behind_it(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await with_copy_and_pending_removal(machine, tmp_path / "copy")
    held = HeldExchange(monkeypatch)
    installing = asyncio.create_task(machine.store.install(tmp_path / "copy"))
    try:
        await asyncio.to_thread(held.begun.wait, 20)
        checking = asyncio.create_task(OnlineCheck(machine.store, interval_s=1).check_once())
        await asyncio.sleep(0.05)
        assert not checking.done()
    finally:
        held.go.set()
    await asyncio.wait_for(installing, 20)
    assert await asyncio.wait_for(checking, 20) == 0


async def test_no_slice_of_a_removal_runs_during_an_install(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "COMPACTION_SLICE", 1)
    await with_copy_and_pending_removal(machine, tmp_path / "copy")
    held = HeldExchange(monkeypatch)
    slices: list[int] = []
    compactor = machine.store.mvcc.compactor
    run = compactor.run_slice
    monkeypatch.setattr(compactor, "run_slice", lambda count: (slices.append(1), run(count))[1])
    installing = asyncio.create_task(machine.store.install(tmp_path / "copy"))
    try:
        await asyncio.to_thread(held.begun.wait, 20)
        slices.clear()
        machine.store.start_removal()
        await asyncio.sleep(0.05)
        assert slices == []
    finally:
        held.go.set()
    await asyncio.wait_for(installing, 20)
    assert machine.store.compacted_revision == -1, "the copy was made before"
    machine.applier = type(machine.applier)(machine.store)
    machine.apply(CompactionRequest(revision=300))
    await asyncio.wait_for(machine.store.wait_compacted(Revision(300)), 20)


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_removal_goes_on_after_an_install_that_came_to_nothing(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    monkeypatch.setattr(removal, "COMPACTION_SLICE", 1)
    await with_copy_and_pending_removal(machine, tmp_path / "copy")
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail(*arguments: Any, **keywords: Any) -> None:
        loop.call_soon_threadsafe(tried.set)
        raise OSError(errno.ENOSPC if is_cancelled else errno.EIO, "no such luck")

    monkeypatch.setattr(files, "prepare_replace", fail)
    installing = asyncio.create_task(machine.store.install(tmp_path / "copy"))
    await tried.wait()
    if is_cancelled:
        installing.cancel()
    with pytest.raises((SwapFailedError, asyncio.CancelledError)):
        await installing
    await asyncio.wait_for(machine.store.wait_compacted(machine.store.compacted_revision), 20)


async def test_an_install_that_is_cancelled_during_the_exchange_is_whole(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_copy_and_pending_removal(machine, tmp_path / "copy")
    held = HeldExchange(monkeypatch)
    installing = asyncio.create_task(machine.store.install(tmp_path / "copy"))
    await asyncio.to_thread(held.begun.wait, 20)
    installing.cancel()
    held.go.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(installing, 20)
    assert (machine.store.applied_index, machine.store.durable_index, machine.store.compacted_revision) == (400, 400, -1)


async def test_a_removal_waits_while_the_disk_is_full(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it deletes gives space back only after it was written itself: it would fill the buffer for nothing."""
    monkeypatch.setattr(removal, "COMPACTION_SLICE", 1)
    monkeypatch.setattr(removal, "SPACE_PAUSE_S", 0.01)
    told: list[object] = []
    machine.store._engine.hooks.on_no_space = told.append
    real = batch.commit

    def full(*arguments: Any) -> float:
        raise StorageNoSpaceError(machine.path, "full")

    for number in range(100):
        machine.apply(PutRequest(key=b"k%d" % (number % 3)))
    monkeypatch.setattr(batch, "commit", full)
    machine.store.request_commit()
    while not told:  # noqa: ASYNC110 - lets the commit thread run
        await asyncio.sleep(0.001)
    machine.apply(CompactionRequest(revision=101))
    before = machine.store.buffered_bytes
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert machine.store.mvcc.compactor.pending
    assert machine.store.buffered_bytes == before
    monkeypatch.setattr(batch, "commit", real)
    machine.store._engine._write_pending()  # the next try, without waiting for it
    await asyncio.wait_for(machine.store.wait_compacted(Revision(101)), 20)


async def test_a_copy_is_read_in_one_walk_over_every_row(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[dict[str, Any]] = []

    def noted(path: Path, tables: Any, **keywords: Any) -> None:
        walks.append(keywords)
        check_structure(path, tables, **keywords)

    monkeypatch.setattr(files, "check_structure", noted)
    monkeypatch.setattr(inspection, "check_structure", noted)
    machine.apply(PutRequest(key=b"a"))
    await machine.flush()
    await asyncio.to_thread(machine.store.copy_to, tmp_path / "copy")
    assert [walk["every_row"] for walk in walks] == [True]
    found = await asyncio.to_thread(inspect, tmp_path / "copy")
    assert await machine.store.install(tmp_path / "copy", found) is not None
    assert len(walks) == 2, "what was inspected is not inspected again"
