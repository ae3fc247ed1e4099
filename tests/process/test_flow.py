"""Real members whose clients come by every endpoint, and clients that don't read: nothing is lost, proposed twice, or kept from others."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import grpc
import grpc.aio
import pytest

from kvserver.pb import rpc_pb2
from kvserver.testing.processes import NodeProcess, ProcessCluster
from tests.process.large_puts import MEGABYTE, OPTIONS, PUT, RANGE, put_all
from tests.process.raw_http2 import ask_and_read_nothing, is_ended

pytestmark = pytest.mark.process

MOVE_LEADER = "/etcdserverpb.Maintenance/MoveLeader"
STATUS = "/etcdserverpb.Maintenance/Status"
SMALL_TAIL = ("--max-uncommitted-bytes=2MiB", "--max-inflight-bytes=12MiB")
"""A leader that can take two writes of a megabyte at a time, and followers that take a dozen each of their clients."""


async def put_everywhere(nodes: list[NodeProcess], *, clients: int, puts: int, first: int = 0) -> list[str]:
    """Puts by so many clients at each of the nodes, all at once and each under a key of its own; what was refused."""
    each = puts // len(nodes)
    loads = (put_all(node.endpoint, clients=clients, puts=each, first=first + number * each) for number, node in enumerate(nodes))
    return list(itertools.chain.from_iterable(await asyncio.gather(*loads)))


async def put_while(nodes: list[NodeProcess], happens: Awaitable[None], *, clients: int) -> tuple[int, list[str]]:
    """Puts at each of the nodes, round after round, until that has happened; how many, and what was refused."""
    going_on, puts, failures = asyncio.ensure_future(happens), 0, []
    while not going_on.done():
        failures += await put_everywhere(nodes, clients=clients, puts=10 * len(nodes), first=puts)
        puts += 10 * len(nodes)
    await going_on
    return puts, failures


async def versions(endpoint: str) -> list[int]:
    """How often each key was written."""
    async with grpc.aio.insecure_channel(endpoint, options=OPTIONS) as channel:
        call: Any = channel.unary_unary(RANGE)
        request = rpc_pb2.RangeRequest(key=b"key", range_end=b"kez", keys_only=True)
        return [kv.version for kv in rpc_pb2.RangeResponse.FromString(await call(request.SerializeToString(), timeout=60)).kvs]


async def member_id(endpoint: str) -> int:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        call: Any = channel.unary_unary(STATUS)
        return rpc_pb2.StatusResponse.FromString(await call(b"", timeout=10)).header.member_id


async def move_leader(leader: NodeProcess, to: NodeProcess) -> None:
    request = rpc_pb2.MoveLeaderRequest(targetID=await member_id(to.endpoint))
    async with grpc.aio.insecure_channel(leader.endpoint) as channel:
        call: Any = channel.unary_unary(MOVE_LEADER)
        await call(request.SerializeToString(), timeout=20)


def test_puts_over_all_endpoints_are_all_taken_once_by_a_leader_with_little_room(make_cluster: Callable[..., ProcessCluster]) -> None:
    cluster = make_cluster(3, SMALL_TAIL)
    cluster.start()
    failures = asyncio.run(put_everywhere(cluster.nodes, clients=17, puts=60))
    assert failures == []
    assert asyncio.run(versions(cluster.nodes[0].endpoint)) == [1] * 60
    figures = cluster.leader().metrics()
    assert figures["kvserver_forwarded_held_total"] > 0, "the test makes nothing wait"
    assert figures["kvserver_forwarded_refused_total"] == 0
    assert figures['kvserver_accounted_memory_bytes{owner="held_proposals"}'] == 0


def test_a_member_that_restarts_under_load_is_published_at_once(make_cluster: Callable[..., ProcessCluster]) -> None:
    cluster = make_cluster(3, SMALL_TAIL)
    cluster.start()
    leader = cluster.leader()
    follower, other = (node for node in cluster.nodes if node is not leader)
    follower.kill()
    _, failures = asyncio.run(put_while([leader, other], asyncio.to_thread(follower.start), clients=10))
    assert failures == []
    assert follower.log_events("failed to publish local member; will retry") == []
    assert len(follower.log_events("published local member to cluster")) == 2


def test_a_transfer_of_leadership_under_load_loses_nothing_that_was_not_in_raft(make_cluster: Callable[..., ProcessCluster]) -> None:
    cluster = make_cluster(3, SMALL_TAIL)
    cluster.start()
    leader = cluster.leader()
    successor = next(node for node in cluster.nodes if node is not leader)

    async def transfer() -> None:
        while len(await versions(leader.endpoint)) < 5:
            pass
        await move_leader(leader, successor)

    puts, failures = asyncio.run(put_while(cluster.nodes, transfer(), clients=8))
    assert all("leader changed" in failure for failure in failures), failures
    written = asyncio.run(versions(successor.endpoint))
    assert set(written) == {1}, "a write was applied twice"
    assert puts - len(failures) <= len(written) <= puts


def test_clients_that_read_nothing_delay_no_small_answer_and_are_ended_for_the_sake_of_large_ones(
    make_node: Callable[..., NodeProcess],
) -> None:
    node = make_node("--max-answer-bytes=8MiB")
    node.start()
    assert asyncio.run(put_all(node.endpoint, clients=2, puts=3)) == []
    everything = rpc_pb2.RangeRequest(key=b"key", range_end=b"kez", serializable=True).SerializeToString()
    idle: list[socket.socket] = []
    with grpc.insecure_channel(node.endpoint, options=OPTIONS) as channel:
        put: Any = channel.unary_unary(PUT)
        put(rpc_pb2.PutRequest(key=b"small", value=b"v" * 8000).SerializeToString(), timeout=10)
        try:
            idle.extend(ask_and_read_nothing(node.client_port, RANGE, everything) for _ in range(6))
            wait_for(node, lambda figures: figures['kvserver_gate_waiting{gate="answers"}'] > 0)
            get: Any = channel.unary_unary(RANGE)
            for _ in range(20):
                begun_s = monotonic()
                get(rpc_pb2.RangeRequest(key=b"small").SerializeToString(), timeout=2)
                assert monotonic() - begun_s < 1.5
            answer = rpc_pb2.RangeResponse.FromString(get(everything, timeout=20))
            assert sum(len(kv.value) for kv in answer.kvs) == 3 * MEGABYTE
            figures = node.metrics()
            assert figures["kvserver_clients_cut_off_total"] >= 5
            assert is_ended(idle[0], 10)
            assert len(node.log_events("ended connections whose clients don't take their answers while others wait")) == 1
        finally:
            for connection in idle:
                connection.close()
    wait_for(node, lambda figures: figures['kvserver_accounted_memory_bytes{owner="answers"}'] == 0)


def wait_for(node: NodeProcess, condition: Callable[[dict[str, float]], bool]) -> None:
    """Look at the metrics until it holds."""
    until_s = monotonic() + 20
    while not condition(node.metrics()):
        assert monotonic() < until_s, "not in 20 s"
