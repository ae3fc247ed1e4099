"""Requests are received when there is room: who waits, for how long, what is counted, and what others feel of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from kvserver.api import Call
from kvserver.pb import rpc_pb2
from kvserver.rpc import GrpcLimits

PUT, RANGE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"
LIMIT = 64 * 1024
VALUE = rpc_pb2.PutRequest(key=b"k", value=b"v" * 50_000).SerializeToString()


class Held:
    """A handler that holds every call until it is let go, and knows how many it holds."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.now = self.most = self.served = 0

    async def put(self, request: rpc_pb2.PutRequest, call: Call) -> rpc_pb2.PutResponse:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.open.wait()
        finally:
            self.now -= 1
        self.served += 1
        return rpc_pb2.PutResponse()


def limits(*, rooms: int = 1, **changes: Any) -> GrpcLimits:
    """Room for so many messages that are being received."""
    return GrpcLimits(receive_limit_bytes=LIMIT, max_request_bytes_held=rooms * 2 * LIMIT, **changes)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what the server does inside signals nobody
            await asyncio.sleep(0.005)


async def test_requests_beyond_the_bytes_wait_and_all_are_answered(serve: Any) -> None:
    held = Held()
    running = await serve({("KV", "Put"): held.put}, limits=limits(rooms=2))
    gate = running.server.intake.writes
    calls = [asyncio.ensure_future(running.unary(PUT)(VALUE)) for _ in range(20)]
    await until(lambda: held.now == 3 and gate.waiting_count == 17)  # three fit beside the room for a fourth's first bytes, or four do
    assert gate.held_bytes <= gate.max_bytes
    held.open.set()
    await asyncio.gather(*calls)
    assert held.served == 20
    assert held.most <= gate.max_bytes // len(VALUE)
    assert (gate.held_bytes, gate.waiting_count, gate.refused) == (0, 0, 0)


async def test_over_the_count_that_may_wait_the_client_hears_too_many_requests(serve: Any) -> None:
    held = Held()
    running = await serve({("KV", "Put"): held.put}, limits=limits(max_waiting_requests=2))
    gate = running.server.intake.writes
    calls = [asyncio.ensure_future(running.unary(PUT)(VALUE)) for _ in range(3)]
    await until(lambda: gate.waiting_count == 2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.unary(PUT)(VALUE)
    assert caught.value.details() == "etcdserver: too many requests"
    held.open.set()
    await asyncio.gather(*calls)
    assert gate.refused == 1


async def test_a_waiting_call_ends_at_its_deadline_and_leaves_its_place(serve: Any) -> None:
    held = Held()
    running = await serve({("KV", "Put"): held.put}, limits=limits())
    gate = running.server.intake.writes
    first = asyncio.ensure_future(running.unary(PUT)(VALUE))
    await until(lambda: held.now == 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.unary(PUT)(VALUE, timeout=0.2)
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
    await until(lambda: gate.waiting_count == 0)
    held.open.set()
    await first
    assert (held.served, gate.held_bytes) == (1, 0)


async def test_reads_come_in_while_writes_fill_their_gate(serve: Any) -> None:
    async def look(request: rpc_pb2.RangeRequest, call: Call) -> rpc_pb2.RangeResponse:
        return rpc_pb2.RangeResponse(count=7)

    held = Held()
    running = await serve({("KV", "Put"): held.put, ("KV", "Range"): look}, limits=limits())
    gate = running.server.intake.writes
    calls = [asyncio.ensure_future(running.unary(PUT)(VALUE)) for _ in range(5)]
    await until(lambda: gate.waiting_count == 4)
    answer = await running.unary(RANGE)(b"", timeout=10)
    assert rpc_pb2.RangeResponse.FromString(answer).count == 7
    assert gate.waiting_count == 4
    held.open.set()
    await asyncio.gather(*calls)


async def test_a_request_that_is_refused_gives_its_room_back(serve: Any) -> None:
    held = Held()
    held.open.set()
    running = await serve({("KV", "Put"): held.put}, limits=limits())
    for garbage in (b"\x0a\xff\xff\xff\xff\x0f", b"\0" * (LIMIT + 1)):
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError):
                await running.unary(PUT)(garbage, timeout=10)
    await running.unary(PUT)(VALUE, timeout=10)
    assert running.server.intake.writes.held_bytes == 0


async def silent(open_until: asyncio.Event) -> AsyncIterator[bytes]:
    """A client that begins a call and sends nothing."""
    await open_until.wait()
    return
    yield b""


async def test_a_client_that_sends_nothing_is_cut_off_when_others_wait(serve: Any) -> None:
    held = Held()
    held.open.set()
    running = await serve({("KV", "Put"): held.put}, limits=limits(patience_s=0.2))
    gate = running.server.intake.writes
    never = asyncio.Event()
    slow = running.channel.stream_unary(PUT)(silent(never))
    await until(lambda: gate.held_bytes > 0)
    await running.unary(PUT)(VALUE, timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await slow
    assert caught.value.details() == "etcdserver: request timed out"
    assert (held.served, gate.held_bytes) == (1, 0)
    never.set()


async def test_a_client_that_is_slow_and_in_nobodys_way_is_not_cut_off(serve: Any) -> None:
    held = Held()
    held.open.set()
    running = await serve({("KV", "Put"): held.put}, limits=limits(patience_s=0.02))
    looks: list[int] = []

    async def late() -> AsyncIterator[bytes]:
        await until(lambda: running.server.intake.writes.held_bytes > 0)
        await asyncio.sleep(0.2)  # ten times its patience
        looks.append(1)
        yield VALUE

    await running.channel.stream_unary(PUT)(late(), timeout=20)
    assert (looks, held.served) == ([1], 1)


async def test_a_call_without_a_message_is_refused(serve: Any) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    running = await serve({("KV", "Put"): Held().put}, limits=limits())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.channel.stream_unary(PUT)(nothing(), timeout=20)
    assert (caught.value.code(), caught.value.details()) == (StatusCode.INTERNAL, "grpc: the call ended without a request message")
    assert running.server.intake.writes.held_bytes == 0


async def test_a_call_that_waits_is_not_received(serve: Any) -> None:
    """Its client can send what the window of one stream holds, and no more, until there is room."""

    async def look(request: rpc_pb2.RangeRequest, call: Call) -> rpc_pb2.RangeResponse:
        return rpc_pb2.RangeResponse()

    held = Held()
    running = await serve({("KV", "Put"): held.put, ("KV", "Range"): look}, limits=limits())
    first = asyncio.ensure_future(running.unary(PUT)(VALUE))
    await until(lambda: held.now == 1)
    sent: list[int] = []

    async def many() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield VALUE
            sent.append(len(VALUE))

    second = running.channel.stream_unary(PUT)(many())
    await until(lambda: running.server.intake.writes.waiting_count == 1)
    for _ in range(50):  # on the same connection: what could flow has flowed
        await running.unary(RANGE)(b"", timeout=10)
    assert sum(sent) < 10 * len(VALUE)
    held.open.set()
    await first
    await second


async def test_a_stream_gives_its_room_back_when_it_ends(serve: Any) -> None:
    async def snapshot(request: rpc_pb2.SnapshotRequest, call: Any) -> AsyncIterator[rpc_pb2.SnapshotResponse]:
        yield rpc_pb2.SnapshotResponse(blob=b"x")

    running = await serve(server_streams={("Maintenance", "Snapshot"): snapshot}, limits=limits())
    answers = [answer async for answer in running.channel.unary_stream("/etcdserverpb.Maintenance/Snapshot")(b"")]
    assert len(answers) == 1
    await until(lambda: running.server.intake.others.held_bytes == 0)
