"""Streams in both directions on grpcio: messages as they come, the end from either side, and errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from kvserver import errors
from kvserver.pb import rpc_pb2
from kvserver.rpc import GrpcLimits

NAME = ("Lease", "LeaseKeepAlive")
PATH = "/etcdserverpb.Lease/LeaseKeepAlive"
Request, Response = rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse


async def echo(requests: AsyncIterator[Request], call: Any) -> AsyncGenerator[Response, None]:
    async for request in requests:
        yield Response(ID=request.ID)


def open_stream(running: Any) -> Any:
    return running.channel.stream_stream(PATH, request_serializer=Request.SerializeToString, response_deserializer=Response.FromString)()


async def end_of(call: Any) -> tuple[StatusCode, str]:
    """The status of a call of which nothing more is expected."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        assert await call.read() is grpc.aio.EOF
    return await call.code(), await call.details()


def handled(running: Any) -> dict[str, int]:
    return next(rpc.handled for rpc in running.metrics.rpcs if f"/{rpc.service}/{rpc.method}" == PATH)


async def until_handled(running: Any) -> dict[str, int]:
    async with asyncio.timeout(10):
        while not handled(running):  # noqa: ASYNC110 - the server notices on its own
            await asyncio.sleep(0.005)
    return handled(running)


async def test_each_message_is_answered_while_the_stream_is_open(serve: Any) -> None:
    running = await serve(bidi_streams={NAME: echo})
    call = open_stream(running)
    for number in range(50):
        await call.write(Request(ID=number))
        assert number == (await call.read()).ID
    await call.done_writing()
    assert await end_of(call) == (StatusCode.OK, "")
    assert await until_handled(running) == {"OK": 1}


async def test_many_messages_may_be_under_way(serve: Any) -> None:
    running = await serve(bidi_streams={NAME: echo})
    call = open_stream(running)

    async def write() -> None:
        for number in range(3000):
            await call.write(Request(ID=number))
        await call.done_writing()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(write(), name="write")
        assert [answer.ID async for answer in call] == list(range(3000))


async def test_client_that_leaves_closes_the_handler(serve: Any) -> None:
    closed = asyncio.Event()

    async def hold(requests: AsyncIterator[Request], call: Any) -> AsyncGenerator[Response, None]:
        try:
            async for request in requests:
                yield Response(ID=request.ID)
        finally:
            closed.set()

    running = await serve(bidi_streams={NAME: hold})
    call = open_stream(running)
    await call.write(Request(ID=1))
    assert (await call.read()).ID == 1
    call.cancel()
    async with asyncio.timeout(10):
        await closed.wait()
    assert sum((await until_handled(running)).values()) == 1


async def test_error_of_the_handler_is_the_status_also_while_the_client_writes_on(serve: Any) -> None:
    async def refuse(requests: AsyncIterator[Request], call: Any) -> AsyncGenerator[Response, None]:
        await anext(requests)
        raise errors.NoLeaderError
        yield Response()

    running = await serve(bidi_streams={NAME: refuse})
    call = open_stream(running)
    await call.write(Request(ID=1))
    assert await end_of(call) == (StatusCode.UNAVAILABLE, "etcdserver: no leader")
    assert await until_handled(running) == {"Unavailable": 1}


async def test_stream_that_is_cut_off_ends_with_that_error(serve: Any) -> None:
    async def cut(requests: AsyncIterator[Request], call: Any) -> AsyncGenerator[Response, None]:
        call.cut_off(errors.StoppedError())
        await anext(requests)
        yield Response()

    running = await serve(bidi_streams={NAME: cut})
    assert await end_of(open_stream(running)) == (StatusCode.UNAVAILABLE, "etcdserver: server stopped")


@pytest.mark.parametrize(
    ("message", "code", "details"),
    [
        (b"\xff\xff", StatusCode.INTERNAL, "grpc: error unmarshalling request"),
        (b"\x08\x01" + b"\x12" * 70_000, StatusCode.RESOURCE_EXHAUSTED, "grpc: received message larger than max"),
    ],
)
async def test_message_that_can_not_be_taken_ends_the_stream(serve: Any, message: bytes, code: StatusCode, details: str) -> None:
    running = await serve(bidi_streams={NAME: echo}, limits=GrpcLimits(receive_limit_bytes=64 * 1024))
    call = running.channel.stream_stream(PATH, response_deserializer=Response.FromString)()
    await call.write(Request(ID=1).SerializeToString())
    assert (await call.read()).ID == 1
    await call.write(message)
    found, text = await end_of(call)
    assert found is code
    assert text.startswith(details)


async def test_silent_streams_hold_up_nobody(serve: Any) -> None:
    """A stream may stay silent for hours: no room of the intake is kept for its messages."""

    async def answer(request: rpc_pb2.LeaseGrantRequest, call: Any) -> rpc_pb2.LeaseGrantResponse:
        return rpc_pb2.LeaseGrantResponse(ID=5)

    running = await serve({("Lease", "LeaseGrant"): answer}, bidi_streams={NAME: echo})
    calls = [open_stream(running) for _ in range(100)]
    for call in calls:
        await call.wait_for_connection()
    async with asyncio.timeout(3):
        assert rpc_pb2.LeaseGrantResponse.FromString(await running.unary("/etcdserverpb.Lease/LeaseGrant")(b"")).ID == 5
    assert running.server.intake.others.held_bytes == 0
    for call in calls:
        call.cancel()
