"""The answer of a write that reads much: built by the member that was asked, by no other, and refused before it is written if too large."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from kvserver.pb import rpc_pb2
from kvserver.testing.processes import NodeProcess, ProcessCluster
from tests.process.large_puts import MEGABYTE, OPTIONS, put_all

pytestmark = pytest.mark.process

VALUES = 10
RANGES = 4


def begin_high_mark(node: NodeProcess) -> int:
    """Forget the process's largest size so far; returns its present size. An answer is there for too short a time to be seen by looking."""
    Path(f"/proc/{node.pid}/clear_refs").write_text("5")
    return high_mark(node)


def high_mark(node: NodeProcess) -> int:
    """The largest size since then, in bytes."""
    for line in Path(f"/proc/{node.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(node.name)


def reading_write(key: bytes) -> rpc_pb2.TxnRequest:
    request = rpc_pb2.TxnRequest()
    request.success.add().request_put.key = key
    for _ in range(RANGES):
        wanted = request.success.add().request_range
        wanted.key, wanted.range_end = b"key", b"kez"
    return request


def test_other_members_hold_nothing_of_the_answer_of_a_write(make_cluster: Callable[..., ProcessCluster]) -> None:
    cluster = make_cluster(flags=("--max-answer-bytes=100MiB",))
    cluster.start()
    leader = cluster.leader()
    followers = [node for node in cluster.nodes if node is not leader]
    assert asyncio.run(put_all(leader.endpoint, clients=2, puts=VALUES)) == []
    with grpc.insecure_channel(leader.endpoint, options=OPTIONS) as channel:
        txn = channel.unary_unary("/etcdserverpb.KV/Txn", rpc_pb2.TxnRequest.SerializeToString)
        before = [begin_high_mark(node) for node in followers]
        answer = rpc_pb2.TxnResponse.FromString(txn(reading_write(b"z"), timeout=30))
        waiting = [asyncio.run(put_all(node.endpoint, clients=1, puts=1, first=900)) for node in followers]
        assert waiting == [[], []]  # both have applied the transaction by then
        assert answer.ByteSize() > RANGES * VALUES * MEGABYTE
        grown = [high_mark(node) - was for node, was in zip(followers, before, strict=True)]
        assert max(grown) < RANGES * VALUES * MEGABYTE // 2


def test_a_write_whose_answer_is_larger_than_answers_may_be_is_refused_and_writes_nothing(make_node: Callable[..., object]) -> None:
    node = make_node("--max-answer-bytes=8MiB")
    node.start()  # type: ignore[attr-defined]
    endpoint = node.endpoint  # type: ignore[attr-defined]
    assert asyncio.run(put_all(endpoint, clients=1, puts=3)) == []
    with grpc.insecure_channel(endpoint, options=OPTIONS) as channel:
        txn = channel.unary_unary("/etcdserverpb.KV/Txn", rpc_pb2.TxnRequest.SerializeToString)
        get = channel.unary_unary("/etcdserverpb.KV/Range", rpc_pb2.RangeRequest.SerializeToString, rpc_pb2.RangeResponse.FromString)
        with pytest.raises(grpc.RpcError) as refused:
            txn(reading_write(b"z"), timeout=30)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "--max-answer-bytes" in refused.value.details()
        assert get(rpc_pb2.RangeRequest(key=b"z"), timeout=10).count == 0
