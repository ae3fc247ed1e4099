"""Entries: results, order, membership, and what stops the node."""

from __future__ import annotations

from typing import Any

import pytest

from kvserver import commands
from kvserver.apply import Membership, OutOfOrderError, UnreadablePayloadError
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import (
    CompactedError,
    EmptyKeyError,
    FatalError,
    FutureRevisionError,
    KeyNotFoundError,
    LeaseNotFoundError,
)
from kvserver.pb.internal_pb2 import MemberAttributes
from kvserver.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest
from kvserver.types import ConfState, Index, Member, NodeId, Term


def put(key: bytes, **fields: Any) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key, **fields))


async def test_result_carries_the_proposers_id(machine: Any) -> None:
    proposal = ProposalId(NodeId(2**64 - 1), 2**63, 17)
    data = commands.encode(CommandKind.PUT, proposal, PutRequest(key=b"a").SerializeToString())
    result = machine.apply_data(data)
    assert result.proposal == proposal
    assert result.result.header.revision == 2


async def test_empty_entry_only_moves_the_index(machine: Any) -> None:
    assert machine.applier.apply_entry(Index(1), Term(4), b"").proposal is None
    assert (machine.store.applied_index, machine.store.applied_term, machine.store.current_revision) == (1, 4, 1)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (PutRequest(), EmptyKeyError),
        (PutRequest(key=b"a", lease=7), LeaseNotFoundError),
        (PutRequest(key=b"no", ignore_value=True), KeyNotFoundError),
        (PutRequest(key=b"no", ignore_lease=True), KeyNotFoundError),
        (DeleteRangeRequest(range_end=b"\x00"), EmptyKeyError),
        (CompactionRequest(revision=99), FutureRevisionError),
        (CompactionRequest(revision=-1), CompactedError),
        (TxnRequest(success=[put(b"x"), put(b"")]), EmptyKeyError),
        (TxnRequest(success=[put(b"x"), put(b"y", lease=3)]), LeaseNotFoundError),
        (TxnRequest(success=[put(b"x"), put(b"y", ignore_value=True)]), KeyNotFoundError),
        (TxnRequest(success=[put(b"x"), RequestOp(request_range=RangeRequest(key=b"a", revision=50))]), FutureRevisionError),
        (TxnRequest(success=[put(b"x"), RequestOp(request_range=RangeRequest())]), EmptyKeyError),
        (TxnRequest(success=[put(b"x"), RequestOp(request_delete_range=DeleteRangeRequest())]), EmptyKeyError),
        (TxnRequest(success=[put(b"x"), RequestOp(request_txn=TxnRequest(success=[put(b"y", lease=3)]))]), LeaseNotFoundError),
    ],
)
async def test_refusal_is_a_result_that_leaves_no_trace_but_the_index(machine: Any, request_: Any, error: type[Exception]) -> None:
    machine.apply(PutRequest(key=b"a"))
    before = await machine.store.hash_kv()
    assert type(machine.apply(request_)) is error
    assert await machine.store.hash_kv() == before
    assert machine.store.applied_index == 2


@pytest.mark.parametrize("index", [0, 1, 3])
async def test_entry_out_of_order_stops_the_node(machine: Any, index: int) -> None:
    machine.apply_data(b"")
    with pytest.raises(OutOfOrderError, match=f"entry {index} was given to apply after entry 1"):
        machine.applier.apply_entry(Index(index), Term(1), b"")


async def test_unreadable_payload_stops_the_node_and_commits_nothing(machine: Any) -> None:
    data = commands.encode(CommandKind.PUT, ProposalId(NodeId(1), 1, 1), b"\xff\xff\xff")
    with pytest.raises(UnreadablePayloadError, match="entry 1: the payload of PUT"):
        machine.apply_data(data)
    with pytest.raises(FatalError):
        machine.apply_data(b"")


async def test_unknown_command_stops_the_node(machine: Any) -> None:
    with pytest.raises(FatalError, match="upgrade this member"):
        machine.apply_data(b"\x07" * 40)
    assert machine.store.applied_index == 0


async def test_publish_sets_name_and_client_urls_and_survives(machine: Any) -> None:
    def publish(member: int, name: str) -> Any:
        attributes = MemberAttributes(member_id=member, name=name, client_urls=["http://c"], kinds_version=2)
        payload = attributes.SerializeToString()
        return machine.apply_data(commands.encode(CommandKind.MEMBER_PUBLISH, ProposalId(NodeId(1), 1, 1), payload)).result

    publish(1, "one")
    publish(99, "stranger")
    await machine.reopen()
    urls = {"peer_urls": ("http://127.0.0.1:2380",), "client_urls": ("http://c",)}
    assert machine.store.members == {1: Member(id=NodeId(1), name="one", kinds_version=2, **urls)}
    assert machine.store.cluster_id == 77


async def test_configuration_change_records_members_and_remembers_removed_ones(machine: Any) -> None:
    two = NodeId(2)
    conf_state = ConfState(voters=(two,))
    membership = Membership(members={two: Member(id=two)}, removed_ids=frozenset({NodeId(1)}))
    machine.applier.apply_conf_state(Index(1), Term(2), conf_state, membership)
    machine.applier.apply_conf_state(Index(2), Term(2), ConfState(voters=(two,), learners=(NodeId(3),)))
    await machine.reopen()
    store = machine.store
    assert (store.applied_index, store.applied_term) == (2, 2)
    assert store.conf_state == ConfState(voters=(two,), learners=(NodeId(3),))
    assert set(store.members) == {two}
    assert store.removed_ids == {NodeId(1)}
    with pytest.raises(OutOfOrderError):
        machine.applier.apply_conf_state(Index(2), Term(2), conf_state)


async def test_lease_of_a_key_is_kept_and_detached(machine: Any) -> None:
    machine.apply(LeaseGrantRequest(ID=2**62, TTL=60))
    machine.apply(PutRequest(key=b"a", value=b"1", lease=2**62))
    machine.apply(PutRequest(key=b"a", value=b"2", ignore_lease=True))
    assert machine.store.range(RangeRequest(key=b"a")).kvs[0].lease == 2**62
    assert machine.store.range(RangeRequest(key=b"a", keys_only=True)).kvs[0].lease == 2**62
    machine.apply(PutRequest(key=b"a", ignore_value=True))
    kv = machine.store.range(RangeRequest(key=b"a")).kvs[0]
    assert (kv.value, kv.lease, kv.version) == (b"2", 0, 3)


async def test_value_of_any_size_comes_back(machine: Any) -> None:
    machine.apply(LeaseGrantRequest(ID=5, TTL=60))
    for size in (0, 1, 127, 128, 4095, 4096, 4097, 70_000, 1_500_000):
        machine.apply(PutRequest(key=b"k", value=b"v" * size, lease=5))
        kv = machine.store.range(RangeRequest(key=b"k")).kvs[0]
        assert (len(kv.value), kv.lease) == (size, 5)
    await machine.reopen()
    assert len(machine.store.range(RangeRequest(key=b"k")).kvs[0].value) == 1_500_000
