"""Deleting very many keys at once on a real member: its memory stays, others are answered, and a kill half-way loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from time import monotonic
from typing import Any

import grpc
import pytest

from kvserver.pb import rpc_pb2
from kvserver.testing.processes import NodeProcess, ProcessCluster
from tests.process.large_puts import MEGABYTE, peak_of

pytestmark = pytest.mark.process

KEYS = 20_000
IN_A_TXN = 2_000
FEWER_KEYS = 6_000
COMMITS = "etcd_disk_backend_commit_duration_seconds_count"
ALL = rpc_pb2.DeleteRangeRequest(key=b"key", range_end=b"kez")
COUNT = rpc_pb2.RangeRequest(key=b"key", range_end=b"kez", count_only=True)


def ends() -> rpc_pb2.TxnRequest:
    """The first and the last key, as this member has them now."""
    request = rpc_pb2.TxnRequest()
    for number in (0, KEYS - 1):
        get = request.success.add().request_range
        get.key, get.serializable = b"key%06d" % number, True
    return request


class Client:
    def __init__(self, channel: grpc.Channel) -> None:
        kv = "/etcdserverpb.KV/"
        self.txn = channel.unary_unary(kv + "Txn", rpc_pb2.TxnRequest.SerializeToString, rpc_pb2.TxnResponse.FromString)
        self.put = channel.unary_unary(kv + "Put", rpc_pb2.PutRequest.SerializeToString, rpc_pb2.PutResponse.FromString)
        self.range = channel.unary_unary(kv + "Range", rpc_pb2.RangeRequest.SerializeToString, rpc_pb2.RangeResponse.FromString)
        self.delete = channel.unary_unary(
            kv + "DeleteRange", rpc_pb2.DeleteRangeRequest.SerializeToString, rpc_pb2.DeleteRangeResponse.FromString
        )

    def put_all(self, keys: int = KEYS) -> None:
        for at in range(0, keys, IN_A_TXN):
            request = rpc_pb2.TxnRequest()
            for number in range(at, at + IN_A_TXN):
                put = request.success.add().request_put
                put.key, put.value = b"key%06d" % number, b"v" * 50
            self.txn(request, timeout=60)


@contextmanager
def client_of(node: NodeProcess) -> Iterator[Client]:
    with grpc.insecure_channel(node.endpoint) as channel:
        yield Client(channel)


def test_deleting_many_keys_takes_little_memory_and_leaves_others_their_answers(make_node: Callable[..., Any]) -> None:
    node = make_node(f"--max-txn-ops={IN_A_TXN}")
    node.start()
    with client_of(node) as client, client_of(node) as other:
        client.put_all()
        before_bytes = node.anonymous_bytes()
        with peak_of(node) as peak:
            deleting = client.delete.future(ALL, timeout=60)
            answered_at, seen = [monotonic()], set()
            while not deleting.done():
                seen.add(tuple(each.response_range.count for each in other.txn(ends(), timeout=10).responses))
                answered_at.append(monotonic())
            assert deleting.result().deleted == KEYS
        assert seen <= {(1, 1), (0, 0)}  # all or nothing, at every moment
        assert len(answered_at) > 4
        assert max(after - before for before, after in pairwise(answered_at)) < 1.0
        assert peak[0] - before_bytes < 12 * MEGABYTE  # at about 1 KB for each key it was 20
        assert client.range(COUNT, timeout=10).count == 0


def test_a_kill_half_way_through_a_deletion_is_finished_by_the_next_start(make_node: Callable[..., Any]) -> None:
    node = make_node(f"--max-txn-ops={IN_A_TXN}", "--backend-batch-limit=500")
    node.start()
    with client_of(node) as client:
        client.put_all(FEWER_KEYS)
        revision = client.range(COUNT, timeout=10).header.revision
        deleting = client.delete.future(ALL, timeout=60)
        commits = node.metrics()[COMMITS]
        while node.metrics()[COMMITS] < commits + 3 and not deleting.done():
            continue  # some of it is on the disk after that; whichever part, the outcome is the same
        node.kill()
    node.start()
    with client_of(node) as client:
        found = client.range(COUNT, timeout=30)
        assert (found.count, found.header.revision) in (
            (0, revision + 1),
            (FEWER_KEYS, revision),
        )
        assert client.put(rpc_pb2.PutRequest(key=b"next"), timeout=10).header.revision == found.header.revision + 1


def hash_of(node: NodeProcess, revision: int) -> int:
    with grpc.insecure_channel(node.endpoint) as channel:
        call = channel.unary_unary(
            "/etcdserverpb.Maintenance/HashKV", rpc_pb2.HashKVRequest.SerializeToString, rpc_pb2.HashKVResponse.FromString
        )
        return int(call(rpc_pb2.HashKVRequest(revision=revision), timeout=30).hash)


def test_deletions_that_read_what_they_delete_end_on_every_member_alike(make_cluster: Callable[..., ProcessCluster]) -> None:
    """Commits fall between their slices, by their own size and by what else is written."""
    cluster = make_cluster(flags=(f"--max-txn-ops={IN_A_TXN}", "--backend-batch-limit=300"))
    cluster.start()
    leader = cluster.leader()
    other_node = next(node for node in cluster.nodes if node is not leader)
    last = b"key%06d" % (FEWER_KEYS - 1)
    with client_of(leader) as client, client_of(other_node) as other:

        def while_others_write(call: Any) -> Any:
            number = 0
            while not call.done():
                other.put(rpc_pb2.PutRequest(key=b"other%d" % (number % 50), value=b"v"), timeout=30)
                number += 1
            return call.result()

        client.put_all(FEWER_KEYS)
        everything = rpc_pb2.DeleteRangeRequest(key=b"key", range_end=b"kez", prev_kv=True)
        deleted = while_others_write(client.delete.future(everything, timeout=60))
        assert (deleted.deleted, len(deleted.prev_kvs)) == (FEWER_KEYS, FEWER_KEYS)
        assert {kv.value for kv in deleted.prev_kvs} == {b"v" * 50}
        client.put_all(FEWER_KEYS)
        request = rpc_pb2.TxnRequest()
        request.success.add().request_delete_range.CopyFrom(rpc_pb2.DeleteRangeRequest(key=b"key", range_end=last))
        request.success.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=last, ignore_value=True))
        while_others_write(client.txn.future(request, timeout=60))
        revision = client.range(COUNT, timeout=10).header.revision
    for node in cluster.nodes:
        with client_of(node) as client:
            (kept,) = client.range(rpc_pb2.RangeRequest(key=b"key", range_end=b"kez"), timeout=30).kvs
            assert (kept.key, kept.value, kept.version) == (last, b"v" * 50, 2)
    assert len({hash_of(node, revision) for node in cluster.nodes}) == 1
