"""An old store as a new cluster's: what stays, what goes, and that equal stores stay equal."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvserver.apply import Membership, RevisionTooLargeError, inspect, refound
from kvserver.pb.rpc_pb2 import (
    CORRUPT,
    AlarmRequest,
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.storage import StoreUnreadableError
from kvserver.types import ClusterId, ConfState, Index, LeaseId, Member, NodeId, Term
from tests.kvserver.apply.conftest import Machine

NEW = Membership(cluster_id=ClusterId(9), members={NodeId(5): Member(id=NodeId(5), name="new")}, cluster_token="t")
CONF = ConfState(voters=(NodeId(5),))


async def filled(path: Path) -> tuple[int, int]:
    """A store of the old cluster, closed; its hash and revision."""
    machine = Machine(path)
    for number in range(30):
        machine.apply(PutRequest(key=b"k%d" % (number % 7), value=b"v%d" % number))
    machine.apply(DeleteRangeRequest(key=b"k1"))
    machine.apply(CompactionRequest(revision=10))
    machine.apply(AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=1, alarm=CORRUPT))
    found = (await machine.store.hash_kv()).hash, machine.store.current_revision
    await machine.store.close()
    return found


async def test_keys_and_revisions_stay_and_everything_of_the_old_cluster_goes(tmp_path: Path) -> None:
    old_hash, old_revision = await filled(tmp_path / "db")
    assert await refound(tmp_path / "db", NEW, CONF, index=Index(1), term=Term(1)) == old_revision
    found = inspect(tmp_path / "db")
    assert (found.index, found.term, found.revision) == (1, 1, old_revision)
    assert (found.membership, found.conf_state, found.alarms) == (NEW, CONF, ())
    machine = Machine(tmp_path / "db")
    assert (await machine.store.hash_kv()).hash == old_hash
    assert machine.store.compacted_revision == 10
    machine.apply(PutRequest(key=b"next", value=b""))
    assert machine.store.current_revision == old_revision + 1
    await machine.store.close()


@pytest.mark.parametrize("kind", ["delete_range", "txn", "revoke"])
async def test_an_entry_that_was_applied_in_part_is_applied_to_its_end(tmp_path: Path, kind: str) -> None:
    """A copy may be taken between two slices of it; the log that would go on is not part of the copy."""
    machine = Machine(tmp_path / "db")
    machine.apply(LeaseGrantRequest(ID=7, TTL=60))
    for number in range(300):
        machine.apply(PutRequest(key=b"key-%03d" % number, value=b"v", lease=7))
    machine.apply(PutRequest(key=b"other"))
    revision = machine.store.current_revision
    deletion = DeleteRangeRequest(key=b"key-", range_end=b"key.")
    within = TxnRequest(success=[RequestOp(request_delete_range=deletion)])
    requests = {"delete_range": deletion, "txn": within, "revoke": LeaseRevokeRequest(ID=7)}
    data = machine.encode(requests[kind])
    assert machine.applier.apply_slice(Index(machine.store.applied_index + 1), Term(1), data) is None
    await machine.store.commit()
    await machine.store.close()
    shutil.copy(tmp_path / "db", tmp_path / "bumped")
    for name, bump in (("db", 0), ("bumped", 5)):
        assert await refound(tmp_path / name, NEW, CONF, index=Index(1), term=Term(1), bump=bump) == revision + 1 + bump
        machine = Machine(tmp_path / name)
        assert not machine.store.mvcc.is_unfinished
        assert [lease for lease, _ in machine.store.leases.leases()] == ([] if kind == "revoke" else [7])
        assert list(machine.store.leases.keys(LeaseId(7))) == []
        assert [kv.key for kv in machine.store.range(RangeRequest(key=b"\x00", range_end=b"\x00")).kvs] == [b"other"]
        machine.apply(PutRequest(key=b"key-000"))
        assert machine.store.current_revision == revision + 2 + bump
        await machine.store.close()


async def test_an_entry_that_was_applied_in_part_finds_old_values_behind_the_commits_of_its_end(tmp_path: Path) -> None:
    """The rest is more than two batches of the store, so that commits close what the first slice has read from."""
    machine = Machine(tmp_path / "db")
    for at in range(0, 3_000, 100):
        puts = [RequestOp(request_put=PutRequest(key=b"key-%04d" % number, value=b"v")) for number in range(at, at + 100)]
        machine.apply(TxnRequest(success=puts))
    deletion = RequestOp(request_delete_range=DeleteRangeRequest(key=b"key-", range_end=b"key-2990", prev_kv=True))
    kept = RequestOp(request_put=PutRequest(key=b"key-2995", ignore_value=True))
    data = machine.encode(TxnRequest(success=[deletion, kept]))
    assert machine.applier.apply_slice(Index(machine.store.applied_index + 1), Term(1), data) is None
    await machine.store.commit()
    await machine.store.close()
    await refound(tmp_path / "db", NEW, CONF, index=Index(1), term=Term(1))
    machine = Machine(tmp_path / "db")
    found = machine.store.range(RangeRequest(key=b"\x00", range_end=b"\x00"))
    assert [(kv.key, kv.value, kv.version) for kv in found.kvs if kv.version > 1] == [(b"key-2995", b"v", 2)]
    assert found.count == 10
    await machine.store.close()


async def test_leases_and_what_is_attached_to_them_stay(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "db")
    machine.apply(LeaseGrantRequest(ID=7, TTL=60))
    machine.apply(PutRequest(key=b"k", lease=7))
    await machine.store.close()
    await refound(tmp_path / "db", NEW, CONF, index=Index(1), term=Term(1), bump=100)
    machine.open()
    assert list(machine.store.leases.leases()) == [(7, 60)]
    assert machine.store.kinds_version == 2
    machine.apply(LeaseRevokeRequest(ID=7))
    assert machine.store.range(RangeRequest(key=b"k")).count == 0
    await machine.store.close()


async def test_a_bump_moves_the_revision_and_compacts_up_to_it(tmp_path: Path) -> None:
    _, old_revision = await filled(tmp_path / "a")
    shutil.copy(tmp_path / "a", tmp_path / "b")
    hashes = set()
    for name in "ab":
        assert await refound(tmp_path / name, NEW, CONF, index=Index(1), term=Term(1), bump=1000) == old_revision + 1000
        machine = Machine(tmp_path / name)
        assert machine.store.compacted_revision == machine.store.current_revision == old_revision + 1000
        found = machine.store.range(RangeRequest(key=b"k2"))
        assert found.kvs[0].mod_revision <= old_revision
        machine.apply(PutRequest(key=b"next", value=b""))
        assert machine.store.range(RangeRequest(key=b"next")).kvs[0].mod_revision == old_revision + 1001
        hashes.add((await machine.store.hash_kv()).hash)
        await machine.store.close()
    assert len(hashes) == 1


async def test_what_can_not_be_done_changes_nothing(tmp_path: Path) -> None:
    await filled(tmp_path / "db")
    before = (tmp_path / "db").read_bytes()
    with pytest.raises(RevisionTooLargeError):
        await refound(tmp_path / "db", NEW, CONF, index=Index(1), term=Term(1), bump=2**62)
    assert (tmp_path / "db").read_bytes() == before
    (tmp_path / "no-store").write_bytes(b"x" * 8192)
    with pytest.raises(StoreUnreadableError):
        await refound(tmp_path / "no-store", NEW, CONF, index=Index(1), term=Term(1))
