"""Lease commands: what they answer, what they do to keys, and that their state belongs to the entry like everything else."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvserver.apply import inspect
from kvserver.errors import (
    CorruptError,
    LeaderChangedError,
    LeaseExistsError,
    LeaseNotFoundError,
    LeaseTtlTooLargeError,
    NoSpaceError,
)
from kvserver.mvcc import LEASE, LEASE_KEY, TABLES
from kvserver.mvcc.layout import HEADER_BYTES, KEY, REV
from kvserver.pb.internal_pb2 import LeaseExpiry
from kvserver.pb.kv_pb2 import KeyValue
from kvserver.pb.rpc_pb2 import (
    CORRUPT,
    NOSPACE,
    AlarmRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.storage import LayeredReader, existing_tables, read_only_env
from kvserver.types import LeaseId

ALL = RangeRequest(key=b"\x00", range_end=b"\x00")
LONG = b"k" * 600


def grant(lease: int = 7, ttl_s: int = 60) -> LeaseGrantRequest:
    return LeaseGrantRequest(ID=lease, TTL=ttl_s)


def put(key: bytes, lease: int = 0, **fields: Any) -> PutRequest:
    return PutRequest(key=key, value=b"v", lease=lease, **fields)


def attached(machine: Any, lease: int = 7) -> list[bytes]:
    keys: list[bytes] = list(machine.store.leases.keys(LeaseId(lease)))
    return keys


def lease_of(machine: Any, key: bytes) -> int:
    return int(machine.store.range(RangeRequest(key=key)).kvs[0].lease)


async def test_grant_answers_id_ttl_and_the_revision_which_it_does_not_move(machine: Any) -> None:
    machine.apply(put(b"a"))
    answer = machine.apply(grant(7, 60))
    assert (answer.ID, answer.TTL, answer.header.revision) == (7, 60, 2)
    assert machine.store.current_revision == 2
    assert machine.store.leases.ttl_s(LeaseId(7)) == 60


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (grant(7), LeaseExistsError),
        (grant(0), LeaseNotFoundError),
        (grant(8, 9_000_000_001), LeaseTtlTooLargeError),
        (LeaseRevokeRequest(ID=8), LeaseNotFoundError),
        (LeaseExpiry(id=8, term=1), LeaseNotFoundError),
        (put(b"a", 8), LeaseNotFoundError),
        (TxnRequest(success=[RequestOp(request_put=put(b"a")), RequestOp(request_put=put(b"b", 8))]), LeaseNotFoundError),
    ],
)
async def test_refusal_leaves_no_trace(machine: Any, request_: Any, error: type[Exception]) -> None:
    machine.apply(grant())
    machine.apply(put(b"k", 7))
    before = [list(machine.store._engine.reader.iterate(table)) for table in range(1, len(TABLES))]
    assert type(machine.apply(request_)) is error
    assert [list(machine.store._engine.reader.iterate(table)) for table in range(1, len(TABLES))] == before


async def test_revoke_deletes_its_keys_in_the_order_of_their_rows_in_one_revision(machine: Any) -> None:
    machine.apply(grant(7))
    machine.apply(grant(8))
    keys = [b"b", b"a", LONG + b"2", LONG, LONG[:480], LONG + b"1", b"z"]
    for key in keys:
        machine.apply(put(key, 7))
    machine.apply(put(b"other", 8))
    revision = machine.store.current_revision
    answer = machine.apply(LeaseRevokeRequest(ID=7))
    assert answer.header.revision == machine.store.current_revision == revision + 1
    rows = machine.store._engine.reader.iterate(REV, (revision + 1).to_bytes(8, "big"))
    long = sorted((LONG, LONG + b"1", LONG + b"2"), key=lambda key: hashlib.blake2b(key, digest_size=20).digest())
    assert [KeyValue.FromString(record[HEADER_BYTES:]).key for _, record in rows] == [b"a", b"b", LONG[:480], *long, b"z"]
    assert [kv.key for kv in machine.store.range(ALL).kvs] == [b"other"]
    assert attached(machine) == []
    assert not machine.store.leases.has(LeaseId(7))
    assert type(machine.apply(LeaseRevokeRequest(ID=7))) is LeaseNotFoundError


async def test_revoking_a_lease_without_keys_takes_no_revision(machine: Any) -> None:
    machine.apply(grant())
    assert machine.apply(LeaseRevokeRequest(ID=7)).header.revision == 1
    assert machine.store.current_revision == 1


async def test_keys_follow_the_newest_put(machine: Any) -> None:
    machine.apply(grant(7))
    machine.apply(grant(8))
    machine.apply(put(b"k", 7))
    machine.apply(put(b"k", 7))
    assert attached(machine, 7) == [b"k"]
    machine.apply(PutRequest(key=b"k", ignore_lease=True))
    assert (attached(machine, 7), lease_of(machine, b"k")) == ([b"k"], 7)
    machine.apply(put(b"k", 8))
    assert (attached(machine, 7), attached(machine, 8), lease_of(machine, b"k")) == ([], [b"k"], 8)
    machine.apply(LeaseRevokeRequest(ID=7))
    assert lease_of(machine, b"k") == 8
    machine.apply(put(b"k"))
    assert (attached(machine, 8), lease_of(machine, b"k")) == ([], 0)
    machine.apply(LeaseRevokeRequest(ID=8))
    assert machine.store.range(ALL).count == 1


@pytest.mark.parametrize("within_txn", [False, True])
async def test_deleted_key_is_detached_and_a_later_one_of_that_name_is_free(machine: Any, within_txn: bool) -> None:
    machine.apply(grant())
    machine.apply(put(b"k", 7))
    deletion = DeleteRangeRequest(key=b"a", range_end=b"z")
    machine.apply(TxnRequest(success=[RequestOp(request_delete_range=deletion)]) if within_txn else deletion)
    assert attached(machine) == []
    machine.apply(put(b"k"))
    machine.apply(LeaseRevokeRequest(ID=7))
    assert machine.store.range(ALL).count == 1


async def test_txn_attaches_and_detaches(machine: Any) -> None:
    machine.apply(grant(7))
    machine.apply(grant(8))
    machine.apply(put(b"b", 7))
    ops = [RequestOp(request_put=put(b"a", 7)), RequestOp(request_put=put(b"b", 8)), RequestOp(request_put=put(b"c", 7))]
    machine.apply(TxnRequest(success=ops))
    assert (attached(machine, 7), attached(machine, 8)) == ([b"a", b"c"], [b"b"])


async def test_expiry_counts_only_under_the_term_of_the_leader_that_saw_it(machine: Any) -> None:
    """The machine's entries are of term 1: an expiry of another term was forwarded or came late."""
    machine.apply(grant())
    machine.apply(put(b"k", 7))
    for term in (0, 2):
        assert type(machine.apply(LeaseExpiry(id=7, term=term))) is LeaderChangedError
    assert machine.store.range(ALL).count == 1
    assert machine.apply(LeaseExpiry(id=7, term=1)).header.revision == 3
    assert machine.store.range(ALL).count == 0
    assert not machine.store.leases.has(LeaseId(7))


async def test_alarms_refuse_what_they_must(machine: Any) -> None:
    machine.apply(grant(7))
    machine.apply(grant(8))
    machine.apply(put(b"k", 7))
    machine.apply(AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=1, alarm=NOSPACE))
    assert type(machine.apply(grant(9))) is NoSpaceError
    assert machine.apply(LeaseRevokeRequest(ID=7)).header.revision == 3
    machine.apply(AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=1, alarm=CORRUPT))
    for request in (grant(9), LeaseRevokeRequest(ID=8), LeaseExpiry(id=8, term=1)):
        assert type(machine.apply(request)) is CorruptError
    assert machine.store.leases.has(LeaseId(8))
    assert not machine.store.leases.has(LeaseId(9))


async def test_who_asked_is_told_of_every_lease_that_begins_and_ends(machine: Any) -> None:
    told: list[tuple[int, int | None]] = []
    machine.store.on_lease = lambda lease, ttl_s: told.append((lease, ttl_s))
    for request in (
        grant(7, 60),
        grant(7, 60),
        grant(8, 5),
        LeaseRevokeRequest(ID=7),
        LeaseExpiry(id=8, term=9),
        LeaseExpiry(id=8, term=1),
    ):
        machine.apply(request)
    assert told == [(7, 60), (8, 5), (7, None), (8, None)]


async def test_restart_keeps_leases_and_their_keys(machine: Any) -> None:
    machine.apply(grant(7, 60))
    machine.apply(put(b"k", 7))
    machine.apply(put(LONG, 7))
    await machine.reopen()
    assert machine.store.leases.ttl_s(LeaseId(7)) == 60
    assert attached(machine) == [b"k", LONG]
    assert machine.store.kinds_version == 2
    machine.apply(LeaseRevokeRequest(ID=7))
    await machine.reopen()
    assert machine.store.range(ALL).count == 0
    assert list(machine.store.leases.leases()) == []


async def test_crash_keeps_leases_keys_and_index_together(machine: Any) -> None:
    """What is replayed after a crash ends in the state that a machine which never crashed has."""
    rng = random.Random(5)
    entries = [random_command(rng) for _ in range(300)]
    data = []
    for position, request in enumerate(entries):
        data.append(machine.encode(request))
        machine.apply_data(data[-1])
        if position % 37 == 0:
            await machine.flush()
        if position % 61 == 60:
            await machine.reopen(commit=False)
            while machine.store.applied_index <= position:
                machine.apply_data(data[machine.store.applied_index])
    twin = type(machine)(machine.path.with_name("twin"))
    for each in data:
        twin.apply_data(each)
    assert tables_of(machine) == tables_of(twin)
    assert (await machine.store.hash_kv()).hash == (await twin.store.hash_kv()).hash
    await twin.store.close(commit=False)


async def test_snapshot_carries_leases_and_replaces_those_that_were_there(machine: Any, open_machine: Any, tmp_path: Path) -> None:
    machine.apply(grant(7, 60))
    machine.apply(put(b"k", 7))
    await machine.flush()
    machine.store.copy_to(tmp_path / "copy")
    other = await open_machine("other")
    other.apply(grant(9, 60))
    other.apply(put(b"gone", 9))
    await other.store.install(tmp_path / "copy")
    assert list(other.store.leases.leases()) == [(7, 60)]
    assert attached(other, 7) == [b"k"]
    assert attached(other, 9) == []
    other.apply(LeaseRevokeRequest(ID=7))
    assert other.store.range(ALL).count == 0


async def test_store_of_an_older_version_without_these_tables_opens_and_takes_leases(machine: Any, tmp_path: Path) -> None:
    machine.apply(put(b"k"))
    await machine.store.close()
    with lmdb.open(str(machine.path), subdir=False, max_dbs=len(TABLES)) as env, env.begin(write=True) as txn:
        for table in (LEASE, LEASE_KEY):
            txn.drop(env.open_db(TABLES[table], txn=txn), delete=True)
    assert inspect(machine.path).revision == 2
    with read_only_env(machine.path, tables=len(TABLES)) as env:
        reader = LayeredReader(env, existing_tables(env, TABLES), ())
        for table in (LEASE, LEASE_KEY):
            assert (reader.get(table, b"x"), reader.get_view(table, b"x"), reader.count(table)) == (None, None, 0)
            assert [list(reader.iterate(table)), list(reader.iterate(table, reverse=True)), list(reader.iterate_views(table))] == [
                [],
                [],
                [],
            ]
        assert reader.count(KEY) == 1
        reader.close()
    machine.open()
    assert machine.store.kinds_version == 1
    machine.apply(grant())
    machine.apply(put(b"k", 7))
    assert attached(machine) == [b"k"]
    assert machine.store.kinds_version == 2


async def test_listing_and_keys_come_with_ttl_and_revision(machine: Any) -> None:
    for lease in (9, -4, 5):
        machine.apply(grant(lease, 60))
    for number in range(700):  # more than a read may touch on the loop
        machine.apply(put(b"%04d" % number, 5))
    listed = await machine.store.read_leases()
    assert [each.ID for each in listed.leases] == [-4, 5, 9]
    assert listed.header.revision == 701
    found = await machine.store.read_lease(LeaseId(5))
    assert found == (60, [b"%04d" % number for number in range(700)], 701)
    assert await machine.store.read_lease(LeaseId(6)) == (None, [], 701)


def random_command(rng: random.Random) -> Any:
    lease = rng.randrange(1, 5)
    key = rng.choice([b"a", b"b", b"c", LONG, LONG + b"x"])
    return rng.choice(
        [
            grant(lease),
            LeaseRevokeRequest(ID=lease),
            put(key, lease),
            put(key, lease),
            put(key),
            PutRequest(key=key, ignore_lease=True),
            DeleteRangeRequest(key=key),
            LeaseExpiry(id=lease, term=rng.randrange(1, 3)),
        ]
    )


def tables_of(machine: Any) -> list[list[tuple[bytes, bytes]]]:
    reader = machine.store._engine.reader
    return [list(reader.iterate(table)) for table in range(len(TABLES))]
