"""The store as the node sees it: bootstrap, sizes, copies, installation, damage, space."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvserver.apply import Store, answering
from kvserver.apply import store as store_module
from kvserver.errors import CompactedError, CorruptError, DeterministicError
from kvserver.mvcc import META, TABLES
from kvserver.mvcc.layout import REV, pack_revision
from kvserver.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest
from kvserver.storage import StoreUnreadableError
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
    with pytest.raises(CorruptError):
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
    monkeypatch.setattr(store_module, "COMPACTION_SLICE", 10)
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
    monkeypatch.setattr(store_module, "COMPACTION_SLICE", 3)
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
    left = [list(machine.store._engine.reader.iterate(table)) for table in range(1, len(TABLES))]
    assert [len(table) for table in left] == [1, 0, 1, 0, 0], "only the tombstone at the compacted revision stays, for watches"


async def test_tombstone_at_the_compacted_revision_goes_with_the_next_compaction(machine: Any) -> None:
    for request in (PutRequest(key=b"a"), DeleteRangeRequest(key=b"a"), CompactionRequest(revision=3)):
        machine.apply(request)
    await machine.store.wait_compacted(Revision(3))
    sizes = [len(list(machine.store._engine.reader.iterate(table))) for table in range(1, len(TABLES))]
    assert sizes == [1, 0, 1, 0, 0]
    machine.apply(PutRequest(key=b"b"))
    machine.apply(CompactionRequest(revision=4))
    await machine.store.wait_compacted(Revision(4))
    sizes = [len(list(machine.store._engine.reader.iterate(table))) for table in range(1, len(TABLES))]
    assert sizes == [1, 1, 0, 0, 0]


async def test_hash_that_a_compaction_overtakes_is_refused(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "HASH_SLICE", 2)
    for number in range(20):
        machine.apply(PutRequest(key=b"k%d" % number))
    hashing = asyncio.create_task(machine.store.hash_kv())
    await asyncio.sleep(0)
    machine.apply(CompactionRequest(revision=15))
    with pytest.raises(CompactedError):
        await hashing


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
