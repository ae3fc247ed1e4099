"""Requests are received when there is room: who waits, for how long, what is counted, and what others feel of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from kvserver.api import ByteGate, Call
from kvserver.pb import rpc_pb2
from kvserver.rpc import GrpcLimits, intake

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
    return GrpcLimits(receive_limit_bytes=LIMIT, max_request_bytes_held=rooms * LIMIT, **changes)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what the server does inside signals nobody
            await asyncio.sleep(0.005)


async def test_requests_beyond_the_bytes_wait_and_all_are_answered(serve: Any) -> None:
    held = Held()
    running = await serve({("KV", "Put"): held.put}, limits=limits(rooms=4))
    gate = running.server.intake.writes
    calls = [asyncio.ensure_future(running.unary(PUT)(VALUE)) for _ in range(20)]
    await until(lambda: held.now == 4 and gate.waiting_count == 16)  # four, but not four beside the room for a fifth
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


# --- silent clients ----------------------------------------------------------------------------------------------------------------------


async def look_up(request: rpc_pb2.RangeRequest, call: Call) -> rpc_pb2.RangeResponse:
    return rpc_pb2.RangeResponse(count=7)


async def status(request: rpc_pb2.StatusRequest, call: Call) -> rpc_pb2.StatusResponse:
    return rpc_pb2.StatusResponse(raftTerm=3)


@asynccontextmanager
async def another_client(running: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A channel with a connection of its own."""
    async with grpc.aio.insecure_channel(running.url.netloc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


async def begin_silent(channel: grpc.aio.Channel, path: str, count: int) -> list[Any]:
    """So many calls of which the server has only the headers."""
    calls = [channel.stream_unary(path)(silent(asyncio.Event())) for _ in range(count)]
    for call in calls:
        await call.wait_for_connection()
    return calls


async def test_reads_and_status_pass_many_calls_that_send_nothing(serve: Any) -> None:
    running = await serve({("KV", "Range"): look_up, ("Maintenance", "Status"): status}, limits=limits(request_timeout_s=30.0))
    gate = running.server.intake.others
    calls = await begin_silent(running.channel, RANGE, 150)
    await until(lambda: gate.waiting_count > 100)
    async with another_client(running) as channel:
        answers = asyncio.gather(
            channel.unary_unary(RANGE)(b"", timeout=12), channel.unary_unary("/etcdserverpb.Maintenance/Status")(b"", timeout=12)
        )
        await answers
    assert gate.held_bytes <= gate.max_bytes
    for call in calls:
        call.cancel()


async def test_a_put_passes_many_puts_that_send_nothing(serve: Any) -> None:
    held = Held()
    held.open.set()
    running = await serve({("KV", "Put"): held.put}, limits=limits(rooms=4, request_timeout_s=30.0))
    gate = running.server.intake.writes
    calls = await begin_silent(running.channel, PUT, 40)
    await until(lambda: gate.waiting_count == 36)
    async with another_client(running) as channel:
        await channel.unary_unary(PUT)(VALUE, timeout=12)
    assert held.served == 1
    for call in calls:
        call.cancel()
    await until(lambda: gate.held_bytes == 0)


async def test_no_more_are_cut_off_than_wait(serve: Any) -> None:
    held = Held()
    held.open.set()
    running = await serve({("KV", "Put"): held.put}, limits=limits(rooms=4, patience_s=0.1))
    gate = running.server.intake.writes
    calls = await begin_silent(running.channel, PUT, 4)
    await until(lambda: gate.held_bytes == gate.max_bytes)
    await running.unary(PUT)(VALUE, timeout=20)
    await until(lambda: gate.held_bytes == 3 * gate.max_bytes // 4)
    assert sum(call.done() for call in calls) <= 1
    for call in calls:
        call.cancel()


async def test_a_connection_that_was_cut_off_has_less_patience_than_one_that_was_not(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "LEAST_PATIENCE_S", 0.1)
    held = Held()
    held.open.set()
    running = await serve({("KV", "Put"): held.put}, limits=limits(rooms=4, patience_s=12.0, request_timeout_s=30.0))
    go = asyncio.Event()

    async def late() -> AsyncIterator[bytes]:
        await go.wait()
        yield VALUE

    async with another_client(running) as many, another_client(running) as third:
        calls = await begin_silent(many, PUT, 30)
        await until(lambda: any(call.done() for call in calls))
        monkeypatch.setattr(intake, "LEAST_PATIENCE_S", 60.0)
        slow = running.channel.stream_unary(PUT)(late(), timeout=20)
        await slow.wait_for_connection()
        calls += await begin_silent(many, PUT, 12)
        await third.unary_unary(PUT)(VALUE, timeout=10)
        assert not slow.done()
        go.set()
        await slow
        assert held.served == 2
        for call in calls:
            call.cancel()


async def test_who_is_slow_is_not_hurried_while_it_is_the_cluster_that_others_wait_for(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "LEAST_PATIENCE_S", 0.0)
    held = Held()
    running = await serve({("KV", "Put"): held.put}, limits=limits(rooms=4, patience_s=30.0, request_timeout_s=60.0))
    gate = running.server.intake.writes
    turns: list[int] = []

    async def late() -> AsyncIterator[bytes]:
        await until(lambda: gate.waiting_count > 300)
        for _ in range(20):  # more looks than would be enough, if they counted
            await asyncio.sleep(0.05)
            turns.append(1)
        yield VALUE

    slow = asyncio.ensure_future(running.channel.stream_unary(PUT)(late(), timeout=60))
    await until(lambda: gate.held_bytes > 0)
    calls = [asyncio.ensure_future(running.unary(PUT)(VALUE, timeout=60)) for _ in range(320)]
    await until(lambda: len(turns) == 20)
    held.open.set()
    await slow
    await asyncio.gather(*calls)
    assert held.served == 321


async def test_a_call_does_not_wait_for_room_longer_than_the_servers_own_timeout(serve: Any) -> None:
    held = Held()
    running = await serve({("KV", "Put"): held.put}, limits=limits(request_timeout_s=0.2))
    gate = running.server.intake.writes
    first = asyncio.ensure_future(running.unary(PUT)(VALUE))
    await until(lambda: held.now == 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.unary(PUT)(VALUE, timeout=30)
    assert caught.value.details() == "etcdserver: request timed out"
    assert gate.waiting_count == 0
    held.open.set()
    await first
    assert gate.held_bytes == 0


# --- a large message where none is expected ----------------------------------------------------------------------------------------------

LARGE = rpc_pb2.RangeRequest(key=b"k" * 55_000).SerializeToString()


class HeldReads(Held):
    """The same for reads."""

    async def look(self, request: rpc_pb2.RangeRequest, call: Call) -> rpc_pb2.RangeResponse:
        await self.put(rpc_pb2.PutRequest(), call)
        return rpc_pb2.RangeResponse()


async def test_large_reads_pass_while_there_is_room_and_are_let_go_of_otherwise(serve: Any) -> None:
    held = HeldReads()
    running = await serve({("KV", "Range"): held.look}, limits=limits())
    gate = running.server.intake.others
    calls = [asyncio.ensure_future(running.unary(RANGE)(LARGE, timeout=20)) for _ in range(4)]
    await until(lambda: held.now == 4)
    assert gate.held_bytes == 4 * len(LARGE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.unary(RANGE)(LARGE, timeout=20)
    assert caught.value.details() == "etcdserver: too many requests"
    assert (gate.held_bytes, gate.refused) == (4 * len(LARGE), 1)
    held.open.set()
    await asyncio.gather(*calls)
    assert gate.held_bytes == 0


async def test_many_large_reads_at_once_all_end_within_the_bound(serve: Any) -> None:
    held = HeldReads()
    held.open.set()
    running = await serve({("KV", "Range"): held.look}, limits=limits())
    gate = running.server.intake.others
    calls = [asyncio.ensure_future(running.unary(RANGE)(LARGE, timeout=30)) for _ in range(100)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, bytes) or each.details() == "etcdserver: too many requests" for each in results)
    assert held.served == sum(isinstance(each, bytes) for each in results) > 0
    assert held.most <= gate.max_bytes // len(LARGE)
    assert (gate.held_bytes, gate.waiting_count) == (0, 0)


# --- connections that are remembered -----------------------------------------------------------------------------------------------------


def test_connections_that_were_cut_off_are_remembered_up_to_a_number() -> None:
    arrivals = intake.Arrivals(ByteGate(max_bytes=1, max_waiting=1), room_bytes=1, patience_s=1.0)
    for number in range(intake.MOST_SUSPECTS + 10):
        arrivals.suspect(f"peer{number}")
    arrivals.suspect("peer20")  # again: now it is the latest
    assert len(arrivals.suspects) == intake.MOST_SUSPECTS
    assert "peer9" not in arrivals.suspects
    assert next(reversed(arrivals.suspects)) == "peer20"
