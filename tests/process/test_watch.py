"""Watching real members: across the loss of a leader, without a leader, by a client that stops reading, and by etcd's own client."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from kvserver.client import CallTimeoutError, Client, ClientConfig, ServerError, parse_endpoint
from kvserver.pb import rpc_pb2 as pb
from kvserver.testing.processes import NodeProcess, ProcessCluster

pytestmark = pytest.mark.process

WATCH = "/etcdserverpb.Watch/Watch"
ALL = pb.WatchCreateRequest(key=b"w/", range_end=b"w0")


def client_of(*nodes: NodeProcess, call_timeout_s: float = 5.0) -> Client:
    return Client(ClientConfig(endpoints=tuple(parse_endpoint(node.endpoint) for node in nodes), call_timeout_s=call_timeout_s))


async def wait_until(holds: Callable[[], bool]) -> None:
    """Return once a condition of another process holds, which says nothing by itself."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def watchers(node: NodeProcess) -> float:
    return node.metrics()["etcd_debugging_mvcc_watcher_total"]


def open_stream(channel: grpc.aio.Channel, *, require_leader: bool = False) -> Any:
    start = channel.stream_stream(
        WATCH, request_serializer=pb.WatchRequest.SerializeToString, response_deserializer=pb.WatchResponse.FromString
    )
    return start(metadata=(("hasleader", "true"),) if require_leader else ())


async def write_through(client: Client, numbers: range) -> None:
    """Write each number until it is acknowledged; a write whose outcome is unknown is repeated, which the watchers may see."""
    for number in numbers:
        while True:
            try:
                await client.put(b"w/%d" % (number % 7), b"%d" % number)
            except (ServerError, CallTimeoutError):
                continue  # what the loss of a leader brings
            break


async def collect(client: Client, until: bytes) -> list[int]:
    """The revisions that a watch tells, up to the one that sets this value."""
    seen: list[int] = []
    async with client.watch(ALL) as watch, asyncio.timeout(30):
        async for message in watch:
            seen += [event.kv.mod_revision for event in message.events]
            if any(event.kv.value == until for event in message.events):
                return seen
    raise AssertionError("the watch ended")


async def test_a_watch_survives_the_loss_of_the_leader_without_gap_or_repetition(make_cluster: Callable[..., ProcessCluster]) -> None:
    cluster = await asyncio.to_thread(_started, make_cluster)
    leader = cluster.leader()
    follower, other = (node for node in cluster.nodes if node is not leader)
    async with client_of(follower) as near, client_of(leader, other) as moving, client_of(other, follower, call_timeout_s=1.0) as writer:
        through_follower = asyncio.create_task(collect(near, b"79"))
        other.send_signal(signal.SIGSTOP)  # so that the leader is the one to be connected to
        resumed = asyncio.create_task(collect(moving, b"79"))
        await wait_until(lambda: watchers(follower) == watchers(leader) == 1)
        other.send_signal(signal.SIGCONT)
        first = (await writer.put(b"before", b"")).header.revision + 1
        await write_through(writer, range(40))
        leader.kill()
        await write_through(writer, range(40, 80))
        told = await through_follower
        assert told == list(range(first, first + len(told)))
        assert await resumed == told
        await wait_until(lambda: watchers(follower) == 0)
        await _without_leader(follower, other, told)


async def _without_leader(alone: NodeProcess, other: NodeProcess, told: list[int]) -> None:
    """A member that is left alone ends the streams that require a leader, and goes on with the others."""
    async with grpc.aio.insecure_channel(alone.endpoint) as channel:
        strict, lax = open_stream(channel, require_leader=True), open_stream(channel)
        for stream in (strict, lax):
            await stream.write(pb.WatchRequest(create_request=ALL))
            assert (await stream.read()).created
        other.kill()
        with pytest.raises(grpc.aio.AioRpcError, match="etcdserver: no leader") as caught:
            await asyncio.wait_for(strict.read(), 15)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError, match="etcdserver: no leader"):
            await open_stream(channel, require_leader=True).read()
        history = pb.WatchCreateRequest(key=ALL.key, range_end=ALL.range_end, start_revision=told[0])
        await lax.write(pb.WatchRequest(create_request=history))
        seen: list[int] = []
        while seen != told:
            seen += [event.kv.mod_revision for event in (await asyncio.wait_for(lax.read(), 10)).events]
            assert seen == told[: len(seen)]
        lax.cancel()


def _started(make_cluster: Callable[..., ProcessCluster]) -> ProcessCluster:
    cluster = make_cluster(flags=("--election-timeout=600",))  # several of them are waited for
    cluster.start()
    return cluster


async def test_a_client_that_stops_reading_costs_no_more_than_the_bound(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node("--quota-backend-bytes=1GiB")
    await asyncio.to_thread(node.start)
    value = os.urandom(200_000)
    options = [("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(node.endpoint, options=options) as channel, client_of(node) as writer:
        stream = open_stream(channel)
        await stream.write(pb.WatchRequest(create_request=ALL))
        assert (await stream.read()).created
        for _ in range(20):
            await writer.put(b"w/a", value)
        before_bytes = node.anonymous_bytes()
        for _ in range(180):
            await writer.put(b"w/a", value)
        figures = node.metrics()
        assert figures["kvserver_watch_queued_bytes"] <= 1 << 20
        assert figures["etcd_debugging_mvcc_slow_watcher_total"] == 1
        assert figures['kvserver_accounted_memory_bytes{owner="watch"}'] <= (1 << 20) + 4096
        assert node.anonymous_bytes() - before_bytes < 16 << 20  # 36 MB were written
        seen: list[int] = []
        while len(seen) < 200:
            seen += [event.kv.mod_revision for event in (await asyncio.wait_for(stream.read(), 10)).events]
        assert seen == list(range(2, 202))
        stream.cancel()
        await wait_until(lambda: not node.metrics()["etcd_debugging_mvcc_watch_stream_total"])


@pytest.fixture
async def filled(cluster: ProcessCluster) -> AsyncIterator[int]:
    """The revision from which the shared cluster has a put, an overwriting, a deletion and a put of `shown`."""
    async with client_of(*cluster.nodes) as client:
        start = (await client.put(b"shown", b"one")).header.revision
        await client.put(b"shown", b'two "quoted"\n')
        await client.delete(b"shown")
        await client.put(b"shown", b"three")
        yield start


def first_lines(command: list[str], count: int) -> list[bytes]:
    """What a command that doesn't end prints first."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")} | {"ETCDCTL_API": "3"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment)
    assert process.stdout is not None
    try:
        return [process.stdout.readline() for _ in range(count)]
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.mark.etcd
@pytest.mark.parametrize(
    ("flags", "lines"), [(("--prev-kv",), 17), (("-w", "json", "--prev-kv"), 1), (("-w", "fields"), 32), (("--hex",), 12)]
)
def test_etcdctl_and_kvctl_print_the_same(cluster: ProcessCluster, filled: int, flags: tuple[str, ...], lines: int) -> None:
    if shutil.which("etcdctl") is None:
        pytest.skip("etcdctl is not installed (Debian package etcd-client)")
    arguments = [f"--endpoints={cluster.nodes[1].endpoint}", "watch", "shown", f"--rev={filled}", *flags]
    kvctl = first_lines([str(Path(sys.executable).with_name("kvctl")), *arguments], lines)
    assert kvctl == first_lines(["etcdctl", *arguments], lines)
    assert b"".join(kvctl).strip()


def test_a_watch_from_a_compacted_revision_ends(cluster: ProcessCluster, filled: int) -> None:
    async def ends() -> list[pb.WatchResponse]:
        async with client_of(*cluster.nodes) as client:
            await client.compact(filled + 3)
            request = pb.WatchCreateRequest(key=b"shown", start_revision=filled)
            async with client.watch(request) as watch, asyncio.timeout(10):
                return [message async for message in watch]

    (message,) = asyncio.run(ends())
    assert (message.canceled, message.compact_revision) == (True, filled + 3)
    arguments = [f"--endpoints={cluster.endpoints}", "watch", "shown", f"--rev={filled}"]
    for tool in (str(Path(sys.executable).with_name("kvctl")), shutil.which("etcdctl")):
        if tool is not None:
            done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 5
            assert "watch was canceled (etcdserver: mvcc: required revision has been compacted)\n" in done.stderr
            assert done.stderr.endswith("Error: watch is canceled by the server\n")
