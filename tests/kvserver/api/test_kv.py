"""The KV service: arguments, consistency, headers."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from kvserver import errors
from kvserver.commands import CommandKind
from kvserver.pb import rpc_pb2

HEADER = rpc_pb2.ResponseHeader(cluster_id=0xC1, member_id=0xA1, revision=9, raft_term=3)


def range_op(*, serializable: bool = False) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"k", serializable=serializable))


def put_op(key: bytes = b"k") -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key))


def nested(*ops: rpc_pb2.RequestOp) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(success=ops))


async def test_linearizable_range_waits_for_the_read_index_then_reads(services: Any) -> None:
    response = await services.call("KV", "Range", rpc_pb2.RangeRequest(key=b"k"))
    assert services.cluster.steps == ["wait_linearizable", "read_range"]
    assert services.cluster.asked[0][1] == 107.0
    assert response.header == HEADER


async def test_serializable_range_reads_at_once(services: Any) -> None:
    await services.call("KV", "Range", rpc_pb2.RangeRequest(key=b"k", serializable=True))
    assert services.cluster.steps == ["read_range"]


@pytest.mark.parametrize(
    ("method", "request_", "response", "kind"),
    [
        ("Put", rpc_pb2.PutRequest(key=b"k"), rpc_pb2.PutResponse(), CommandKind.PUT),
        ("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"k"), rpc_pb2.DeleteRangeResponse(deleted=1), CommandKind.DELETE_RANGE),
        ("Txn", rpc_pb2.TxnRequest(success=[put_op()]), rpc_pb2.TxnResponse(succeeded=True), CommandKind.TXN),
        ("Compact", rpc_pb2.CompactionRequest(revision=3), rpc_pb2.CompactionResponse(), CommandKind.COMPACT),
    ],
)
async def test_writes_are_proposed_once_and_answered_with_a_full_header(
    services: Any, method: str, request_: Message, response: Any, kind: CommandKind
) -> None:
    response.header.revision = 9
    services.cluster.response = response
    assert (await services.call("KV", method, request_)).header == HEADER
    assert services.cluster.asked == [("propose", kind, request_, 107.0)]


async def test_a_physical_compaction_waits_for_the_disk(services: Any) -> None:
    services.cluster.response = rpc_pb2.CompactionResponse()
    await services.call("KV", "Compact", rpc_pb2.CompactionRequest(revision=3, physical=True))
    assert services.cluster.steps == ["propose", "wait_compacted"]
    assert services.cluster.asked[1] == ("wait_compacted", 3)


@pytest.mark.parametrize(("client_s", "expected_s"), [(None, 107.0), (101.5, 101.5), (900.0, 107.0)])
async def test_the_earlier_of_both_deadlines_counts(services: Any, client_s: float | None, expected_s: float) -> None:
    services.cluster.response = rpc_pb2.PutResponse()
    await services.call("KV", "Put", rpc_pb2.PutRequest(key=b"k"), deadline_s=client_s)
    assert services.cluster.asked[0][3] == expected_s


@pytest.mark.parametrize(
    ("method", "request_", "error"),
    [
        ("Range", rpc_pb2.RangeRequest(), errors.EmptyKeyError),
        ("Put", rpc_pb2.PutRequest(), errors.EmptyKeyError),
        ("Put", rpc_pb2.PutRequest(key=b"k", value=b"v", ignore_value=True), errors.ValueProvidedError),
        ("Put", rpc_pb2.PutRequest(key=b"k", lease=1, ignore_lease=True), errors.LeaseProvidedError),
        ("DeleteRange", rpc_pb2.DeleteRangeRequest(), errors.EmptyKeyError),
        ("Txn", rpc_pb2.TxnRequest(success=[put_op(), put_op()]), errors.DuplicateKeyError),
        ("Txn", rpc_pb2.TxnRequest(success=[put_op(b"%d" % n) for n in range(5)]), errors.TooManyOpsError),
    ],
)
async def test_bad_arguments_are_refused_before_anything_is_asked(
    services: Any, method: str, request_: Message, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await services.call("KV", method, request_)
    assert services.cluster.asked == []


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Put", rpc_pb2.PutRequest(key=b"k")),
        ("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"k")),
        ("Txn", rpc_pb2.TxnRequest(success=[put_op()])),
    ],
)
async def test_a_write_over_the_request_limit_is_refused(services: Any, method: str, request_: Message) -> None:
    services.cluster.response = rpc_pb2.PutResponse() if method == "Put" else None
    with pytest.raises(errors.RequestTooLargeError):
        await services.call("KV", method, request_, request_bytes=1001)
    assert services.cluster.asked == []


async def test_a_write_at_the_request_limit_is_let_through(services: Any) -> None:
    services.cluster.response = rpc_pb2.PutResponse()
    await services.call("KV", "Put", rpc_pb2.PutRequest(key=b"k"), request_bytes=1000)
    assert len(services.cluster.asked) == 1


@pytest.mark.parametrize(
    ("ops", "steps"),
    [
        ([range_op()], ["wait_linearizable", "read_txn"]),
        ([range_op(serializable=True)], ["read_txn"]),
        ([range_op(serializable=True), range_op()], ["wait_linearizable", "read_txn"]),
        ([nested(range_op(serializable=True))], ["read_txn"]),
        ([nested(range_op())], ["wait_linearizable", "read_txn"]),
        ([], ["wait_linearizable", "read_txn"]),
        ([range_op(), put_op()], ["propose"]),
        ([nested(range_op(), put_op())], ["propose"]),
        ([rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=b"k"))], ["propose"]),
    ],
)
async def test_a_transaction_without_writes_is_a_read(services: Any, ops: list[rpc_pb2.RequestOp], steps: list[str]) -> None:
    services.cluster.response = rpc_pb2.TxnResponse(header=rpc_pb2.ResponseHeader(revision=9))
    for request in (rpc_pb2.TxnRequest(success=ops), rpc_pb2.TxnRequest(failure=ops)):
        services.cluster.asked.clear()
        assert (await services.call("KV", "Txn", request)).header == HEADER
        assert services.cluster.steps == steps


async def test_inner_headers_of_a_transaction_keep_the_revision_only(services: Any) -> None:
    inner = rpc_pb2.ResponseOp(response_put=rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=9)))
    services.cluster.response = rpc_pb2.TxnResponse(responses=[inner])
    response = await services.call("KV", "Txn", rpc_pb2.TxnRequest(success=[put_op()]))
    assert response.responses[0].response_put.header == rpc_pb2.ResponseHeader(revision=9)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Range", rpc_pb2.RangeRequest(key=b"k")),
        ("Put", rpc_pb2.PutRequest(key=b"k")),
        ("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"k")),
        ("Txn", rpc_pb2.TxnRequest()),
        ("Compact", rpc_pb2.CompactionRequest()),
    ],
)
async def test_a_learner_serves_nothing_but_serializable_ranges(services: Any, method: str, request_: Message) -> None:
    services.cluster.is_learner = True
    with pytest.raises(errors.NotSupportedForLearnerError):
        await services.call("KV", method, request_)
    assert services.cluster.asked == []
    await services.call("KV", "Range", rpc_pb2.RangeRequest(key=b"k", serializable=True))


async def test_a_client_that_requires_a_leader_is_refused_without_one(services: Any) -> None:
    services.cluster.leader_id = 0
    request = rpc_pb2.RangeRequest(key=b"k", serializable=True)
    with pytest.raises(errors.NoLeaderError):
        await services.call("KV", "Range", request, metadata=(("hasleader", "true"),))
    await services.call("KV", "Range", request, metadata=(("hasleader", "false"),))


@pytest.mark.parametrize("error", [errors.LeaderChangedError(), errors.RequestTimeoutError(), errors.NoSpaceError()])
async def test_errors_of_the_cluster_pass_through(services: Any, error: Exception) -> None:
    services.cluster.raises = error
    for method, request in (("Put", rpc_pb2.PutRequest(key=b"k")), ("Range", rpc_pb2.RangeRequest(key=b"k"))):
        with pytest.raises(type(error)):
            await services.call("KV", method, request)
    assert services.cluster.steps == ["propose", "wait_linearizable"]
