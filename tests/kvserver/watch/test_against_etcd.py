"""The same requests to etcd 3.4 and to kvserver must give the same messages, but for headers.

Differences of versions, not compared (the client contract wins over 3.4):
- a negative start revision: 3.4 watches from the beginning, newer ones and we refuse it;
- the id of a watcher that was refused: 3.4 repeats the one that was asked for in one case, newer ones and we say -1;
- how many revisions stand in one message of the catch-up: events are compared in their order, not by message.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from kvserver.pb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RequestOp,
    TxnRequest,
    TxnResponse,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import ProcessCluster

pytestmark = pytest.mark.process

_WRITES: dict[type, tuple[str, Any]] = {
    PutRequest: ("/etcdserverpb.KV/Put", PutResponse),
    DeleteRangeRequest: ("/etcdserverpb.KV/DeleteRange", DeleteRangeResponse),
    TxnRequest: ("/etcdserverpb.KV/Txn", TxnResponse),
    CompactionRequest: ("/etcdserverpb.KV/Compact", CompactionResponse),
}
END = b"zzz/end/"
"""A key that ends a test; who watches it hears of it sooner or later than others."""
KEYS = [b"a", b"aa", b"ab", b"b", b"c"]
RANGES = [(b"a", b""), (b"aa", b""), (b"a", b"b"), (b"a", b"\x00"), (b"", b""), (b"", b"\x00"), (b"b", b"a"), (b"b", b"b"), (b"b", b"z")]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The client addresses of an etcd and of a kvserver, both new."""
    program = shutil.which("etcd")
    if program is None:
        pytest.skip("etcd is not installed (Debian package etcd-server)")
    directory = tmp_path_factory.mktemp("both")
    ports = PortAllocator()
    client, peer = (f"127.0.0.1:{ports.next_port()}" for _ in range(2))
    command = [program, "--name=one", f"--data-dir={directory / 'etcd'}", f"--listen-client-urls=http://{client}"]
    command += [f"--advertise-client-urls=http://{client}", f"--listen-peer-urls=http://{peer}"]
    command += [f"--initial-advertise-peer-urls=http://{peer}", f"--initial-cluster=one=http://{peer}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with ProcessCluster(directory / "kvserver", size=1, ports=ports) as cluster:
            cluster.start()
            with grpc.insecure_channel(client) as channel:
                grpc.channel_ready_future(channel).result(timeout=30)
            yield client, cluster.nodes[0].endpoint
    finally:
        process.kill()
        process.wait(10)


class Client:
    """One server, by our messages on etcd's paths, with one watch stream."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        start = channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=WatchRequest.SerializeToString,
            response_deserializer=WatchResponse.FromString,
        )
        self._call = start()

    async def write(self, request: Any) -> str:
        path, response = _WRITES[type(request)]
        call = self._channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        try:
            await call(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            return str(error.details())
        return ""

    async def watch(self, **request: Any) -> None:
        """Send one request on the stream."""
        await self._call.write(WatchRequest(**request))

    async def read(self, count: int) -> list[WatchResponse]:
        """The next messages."""
        async with asyncio.timeout(10):
            return [await self._call.read() for _ in range(count)]

    async def read_until(self, key: bytes) -> list[WatchResponse]:
        """All messages up to the one with an event of this key."""
        messages = []
        async with asyncio.timeout(10):
            while True:
                messages.append(await self._call.read())
                if any(event.kv.key == key for event in messages[-1].events):
                    return messages


@asynccontextmanager
async def clients(addresses: tuple[str, str]) -> AsyncIterator[tuple[Client, Client]]:
    async with grpc.aio.insecure_channel(addresses[0]) as one, grpc.aio.insecure_channel(addresses[1]) as other:
        yield Client(one), Client(other)


def plain(messages: list[WatchResponse]) -> tuple[list[str], dict[int, list[str]]]:
    """What is compared: the messages without events in their order, and the events of each watcher in theirs."""
    others, events = [], dict[int, list[str]]()
    for message in messages:
        message.ClearField("header")
        if message.events:
            told = [str(event) for event in message.events if not event.kv.key.startswith(END)]
            if told:
                events.setdefault(message.watch_id, []).extend(told)
        else:
            others.append(str(message))
    return others, events


async def both(pair: tuple[Client, Client], method: str, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    first, second = await asyncio.gather(*(getattr(client, method)(*arguments, **options) for client in pair))
    return first, second


async def same_write(pair: tuple[Client, Client], request: Any) -> None:
    one, other = await both(pair, "write", request)
    assert one == other


async def same_messages(pair: tuple[Client, Client], count: int) -> None:
    one, other = await both(pair, "read", count)
    assert plain(one) == plain(other)


async def compact_all(pair: tuple[Client, Client], revision: int) -> None:
    await same_write(pair, CompactionRequest(revision=revision, physical=True))


async def test_answers_to_requests_are_the_same(servers: tuple[str, str]) -> None:
    """Creation, refusal, ids, cancellation, progress: one message each, or silence."""
    async with clients(servers) as pair:
        requests = [WatchCreateRequest(key=b"never", watch_id=watch_id) for watch_id in (0, 5, 0, 2, 0)]
        requests += [WatchCreateRequest(key=lo, range_end=end) for lo, end in ((b"b", b"a"), (b"b", b"b"), (b"", b"\x00x"))]
        requests += [WatchCreateRequest(key=b"never", watch_id=5)]
        for request in requests:
            await both(pair, "watch", create_request=request)
            await same_messages(pair, 1)
        for watch_id in (99, 5, 5, 0):
            await both(pair, "watch", cancel_request=WatchCancelRequest(watch_id=watch_id))
        await both(pair, "watch", progress_request=WatchProgressRequest())
        await same_messages(pair, 3)
        await both(pair, "watch", create_request=WatchCreateRequest(key=b"never"))
        await same_messages(pair, 1)


async def test_a_watcher_below_the_compacted_revision_hears_the_same(servers: tuple[str, str]) -> None:
    async with clients(servers) as pair:
        for value in (b"1", b"2", b"3"):
            await same_write(pair, PutRequest(key=b"old", value=value))
        await compact_all(pair, 3)
        for start in (1, 2):
            await both(pair, "watch", create_request=WatchCreateRequest(key=b"old", start_revision=start))
            await same_messages(pair, 2)


@pytest.mark.parametrize("seed", range(3))
async def test_events_are_the_same(servers: tuple[str, str], seed: int) -> None:
    chance = random.Random(seed)
    async with clients(servers) as pair:
        base = await _revision(pair)
        for _ in range(60):
            match chance.randrange(8):
                case 0 | 1 | 2:
                    await same_write(pair, PutRequest(key=chance.choice(KEYS), value=b"v" * chance.randrange(200)))
                case 3:
                    lo, end = chance.choice([(b"a", b""), (b"a", b"b"), (b"b", b""), (b"a", b"\x00")])
                    await same_write(pair, DeleteRangeRequest(key=lo, range_end=end))
                case 4:
                    puts = [RequestOp(request_put=PutRequest(key=key, value=b"t")) for key in chance.sample(KEYS, 3)]
                    await same_write(pair, TxnRequest(success=puts))
                case _:
                    lo, end = chance.choice(RANGES)
                    request = WatchCreateRequest(key=lo, range_end=end, prev_kv=chance.random() < 0.5, fragment=chance.random() < 0.3)
                    if chance.random() < 0.3:
                        request.filters.append(chance.randrange(2))  # type: ignore[arg-type]
                    if chance.random() < 0.7:
                        request.start_revision = base + chance.randrange(40)
                    await both(pair, "watch", create_request=request)
        end_key = END + b"%d" % seed
        await both(pair, "watch", create_request=WatchCreateRequest(key=end_key))
        for number in range(40):  # so that no start revision is still to come
            await same_write(pair, PutRequest(key=b"c", value=b"%d" % number))
        await asyncio.sleep(0.3)  # 3.4 looks after its watchers that are behind every 100 ms; ours are in time
        await same_write(pair, PutRequest(key=end_key))
        one, other = await both(pair, "read_until", end_key)
        (theirs, their_events), (ours, our_events) = plain(one), plain(other)
        assert sorted(theirs) == sorted(ours)
        assert their_events == our_events
        assert sum(map(len, our_events.values())) > 100


async def _revision(pair: tuple[Client, Client]) -> int:
    """The next revision, the same on both."""
    await both(pair, "watch", create_request=WatchCreateRequest(key=b"never"))
    one, other = await both(pair, "read", 1)
    assert one[0].header.revision == other[0].header.revision
    return int(one[0].header.revision) + 1
