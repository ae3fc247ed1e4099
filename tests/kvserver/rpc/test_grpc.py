"""The api's handlers behind grpcio, called by real clients on the loopback."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import suppress
from time import monotonic
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from kvserver import errors
from kvserver.api import Call
from kvserver.config import ServerConfig, Url
from kvserver.pb import health_pb2, rpc_pb2
from kvserver.rpc import GrpcLimits, ListenError
from kvserver.rpc.errors import INTERNAL_MESSAGE
from kvserver.rpc.methods import MethodKind, MethodSpec, method_table

PUT = "/etcdserverpb.KV/Put"
LIMIT = 64 * 1024


async def echo(request: rpc_pb2.PutRequest, call: Call) -> rpc_pb2.PutResponse:
    response = rpc_pb2.PutResponse()
    response.prev_kv.key = request.key
    response.prev_kv.value = request.value
    return response


async def status_of_call(call: Any) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def handled(running: Any, path: str = PUT) -> dict[str, int]:
    return next(rpc.handled for rpc in running.metrics.rpcs if f"/{rpc.service}/{rpc.method}" == path)


async def test_a_request_reaches_its_handler_and_the_answer_comes_back(serve: Any) -> None:
    running = await serve({("KV", "Put"): echo})
    request = rpc_pb2.PutRequest(key=b"k", value=b"v" * 1000).SerializeToString()
    answer = await running.unary(PUT)(request)
    assert rpc_pb2.PutResponse.FromString(answer).prev_kv.value == b"v" * 1000
    assert handled(running) == {"OK": 1}
    text = running.metrics.render().decode()
    assert f"etcd_network_client_grpc_received_bytes_total {len(request)}.0" in text
    assert f"etcd_network_client_grpc_sent_bytes_total {len(answer)}.0" in text


async def test_a_handler_sees_metadata_peer_deadline_and_size(serve: Any) -> None:
    seen: list[Any] = []

    async def look(request: rpc_pb2.PutRequest, call: Call) -> rpc_pb2.PutResponse:
        seen.append((dict(call.metadata), call.peer, call.deadline_s, call.cancelled, call.request_bytes))
        return rpc_pb2.PutResponse()

    running = await serve({("KV", "Put"): look})
    request = rpc_pb2.PutRequest(key=b"k").SerializeToString()
    await running.unary(PUT)(request, timeout=5, metadata=(("hasleader", "true"), ("x-bin", b"\xff")))
    await running.unary(PUT)(request)
    metadata, peer, deadline_s, cancelled, size = seen[0]
    assert (metadata["hasleader"], metadata["x-bin"]) == ("true", b"\xff")
    assert peer.startswith("ipv4:127.0.0.1:")
    assert 3 < deadline_s - monotonic() < 6  # grpc rounds the timeout up on the wire
    assert (cancelled, size) == (False, len(request))
    assert seen[1][2] is None


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.EmptyKeyError(), StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided"),
        (errors.CompactedError(), StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"),
        (errors.LeaderChangedError(), StatusCode.UNAVAILABLE, "etcdserver: leader changed"),
        (errors.TooManyRequestsError(), StatusCode.UNKNOWN, "etcdserver: too many requests"),
    ],
)
async def test_domain_errors_become_their_status(serve: Any, error: Exception, code: StatusCode, message: str) -> None:
    async def fail(request: Any, call: Call) -> Any:
        raise error

    running = await serve({("KV", "Put"): fail})
    assert await status_of_call(running.unary(PUT)(b"")) == (code, message)
    assert running.lines.of_level("error") == []


async def test_an_unexpected_error_is_logged_once_and_hidden_from_the_client(serve: Any) -> None:
    async def fail(request: Any, call: Call) -> Any:
        raise LookupError("secret detail")

    running = await serve({("KV", "Put"): fail})
    assert await status_of_call(running.unary(PUT)(b"")) == (StatusCode.INTERNAL, INTERNAL_MESSAGE)
    (record,) = running.lines.of_level("error")
    assert (record["msg"], record["path"], record["error"]) == ("handler failed", PUT, "secret detail")
    assert "LookupError" in record["stacktrace"]
    assert handled(running) == {"Internal": 1}


async def test_bytes_that_are_no_message_are_refused_and_the_connection_lives(serve: Any) -> None:
    running = await serve({("KV", "Put"): echo})
    code, message = await status_of_call(running.unary(PUT)(b"\x0a\xff\xff\xff\xff\x0f"))
    assert code is StatusCode.INTERNAL
    assert message.startswith("grpc: error unmarshalling request: ")
    await running.unary(PUT)(b"")
    assert running.lines.of_level("error") == []


async def test_message_at_the_limit_is_received_and_one_beyond_gets_etcds_text(serve: Any) -> None:
    running = await serve({("KV", "Put"): echo}, limits=GrpcLimits(receive_limit_bytes=LIMIT))
    overhead = len(rpc_pb2.PutRequest(value=b"v" * (LIMIT - 100)).SerializeToString()) - (LIMIT - 100)
    fits = rpc_pb2.PutRequest(value=b"v" * (LIMIT - overhead)).SerializeToString()
    assert len(fits) == LIMIT
    await running.unary(PUT)(fits)
    too_large = rpc_pb2.PutRequest(value=b"v" * (LIMIT - overhead + 1)).SerializeToString()
    assert await status_of_call(running.unary(PUT)(too_large)) == (
        StatusCode.RESOURCE_EXHAUSTED,
        f"grpc: received message larger than max ({LIMIT + 1} vs. {LIMIT})",
    )


async def test_a_message_far_beyond_the_limit_has_the_same_code_and_the_connection_lives(serve: Any) -> None:
    running = await serve({("KV", "Put"): echo}, limits=GrpcLimits(receive_limit_bytes=LIMIT))
    code, _ = await status_of_call(running.unary(PUT)(b"\0" * (3 * LIMIT)))
    assert code is StatusCode.RESOURCE_EXHAUSTED
    await running.unary(PUT)(b"")


@pytest.mark.parametrize("spec", method_table(), ids=lambda spec: spec.path)
async def test_every_method_that_is_not_served_answers_unimplemented(serve: Any, spec: MethodSpec) -> None:
    running = await serve()
    channel = running.channel
    call: Any
    match spec.kind:
        case MethodKind.UNARY:
            call = channel.unary_unary(spec.path)(b"")
        case MethodKind.SERVER_STREAM:
            call = channel.unary_stream(spec.path)(b"").read()
        case MethodKind.CLIENT_STREAM:
            call = channel.stream_unary(spec.path)(iter([b""]))
        case MethodKind.BIDI_STREAM:
            call = channel.stream_stream(spec.path)(iter([b""])).read()
    assert await status_of_call(call) == (StatusCode.UNIMPLEMENTED, errors.UnimplementedError.message)


async def test_an_unknown_path_answers_unimplemented(serve: Any) -> None:
    running = await serve()
    code, _ = await status_of_call(running.unary("/etcdserverpb.KV/Nonsense")(b""))
    assert code is StatusCode.UNIMPLEMENTED


async def test_a_client_that_leaves_cancels_its_handler(serve: Any) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, call: Call) -> Any:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    running = await serve({("KV", "Put"): wait})
    call = running.unary(PUT)(b"")
    await entered.wait()
    call.cancel()
    await asyncio.wait_for(cancelled.wait(), 5)
    assert handled(running) == {"Canceled": 1}
    assert sum(rpc.open_calls for rpc in running.metrics.rpcs) == 0


async def test_a_deadline_that_passes_cancels_the_handler(serve: Any) -> None:
    cancelled = asyncio.Event()

    async def wait(request: Any, call: Call) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    running = await serve({("KV", "Put"): wait})
    code, _ = await status_of_call(running.unary(PUT)(b"", timeout=0.1))
    assert code is StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_a_server_stream_sends_until_it_ends_or_fails(serve: Any) -> None:
    async def watch(request: Any, call: Call) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        if request.service:
            raise errors.StoppedError

    running = await serve(server_streams={("Health", "Watch"): watch})
    stream = running.channel.unary_stream("/grpc.health.v1.Health/Watch")
    assert len([answer async for answer in stream(b"")]) == 2
    failing = stream(health_pb2.HealthCheckRequest(service="x").SerializeToString())
    assert [await failing.read(), await failing.read()] == [b"\x08\x01", b"\x08\x02"]
    assert await status_of_call(failing.read()) == (StatusCode.UNAVAILABLE, "etcdserver: server stopped")
    assert handled(running, "/grpc.health.v1.Health/Watch") == {"OK": 1, "Unavailable": 1}


async def test_a_stream_whose_client_leaves_closes_its_generator(serve: Any) -> None:
    closed = asyncio.Event()

    async def watch(request: Any, call: Call) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        try:
            yield health_pb2.HealthCheckResponse()
            await asyncio.Event().wait()
        finally:
            closed.set()

    running = await serve(server_streams={("Health", "Watch"): watch})
    call = running.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
    await call.read()
    call.cancel()
    await asyncio.wait_for(closed.wait(), 5)


async def test_calls_beyond_the_limit_are_refused_at_once(serve: Any) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, call: Call) -> rpc_pb2.PutResponse:
        entered.set()
        await release.wait()
        return rpc_pb2.PutResponse()

    running = await serve({("KV", "Put"): wait}, limits=GrpcLimits(max_concurrent_requests=1))
    first = running.unary(PUT)(b"")
    await entered.wait()
    assert await status_of_call(running.unary(PUT)(b"")) == (StatusCode.UNKNOWN, "etcdserver: too many requests")
    release.set()
    await first
    await running.unary(PUT)(b"")
    assert (running.server.calls.unary.open, running.server.calls.unary.refused) == (0, 1)
    assert running.server.calls.held_bytes == 0


async def test_streams_have_a_count_of_their_own(serve: Any) -> None:
    async def watch(request: Any, call: Call) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        yield health_pb2.HealthCheckResponse()
        await asyncio.Event().wait()

    limits = GrpcLimits(max_concurrent_requests=1, max_open_streams=2)
    running = await serve({("KV", "Put"): echo}, {("Health", "Watch"): watch}, limits=limits)
    stream = running.channel.unary_stream("/grpc.health.v1.Health/Watch")
    open_streams = [stream(b"") for _ in range(2)]
    for each in open_streams:
        await each.read()
    assert await status_of_call(stream(b"").read()) == (StatusCode.UNKNOWN, "etcdserver: too many requests")
    await running.unary(PUT)(b"")
    for each in open_streams:
        each.cancel()
    async with asyncio.timeout(5):
        while running.server.calls.streams.open:  # noqa: ASYNC110 - the end of a stream signals nobody
            await asyncio.sleep(0.005)
    await stream(b"").read()


async def test_a_burst_of_calls_is_served_or_told_that_they_are_too_many(serve: Any) -> None:
    """gRPC's own bound on calls that the loop has not seen yet is 1,000, and it cuts off what is beyond: nobody may hear CANCELLED."""
    running = await serve({("KV", "Put"): echo}, limits=GrpcLimits(max_concurrent_requests=3000, max_pending_calls=3000))
    asyncio.get_running_loop().call_later(0.05, time.sleep, 0.7)  # the loop lags: that is when calls pile up

    async def put() -> str:
        try:
            await running.unary(PUT)(b"", timeout=30)
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        return "ok"

    outcomes = Counter(await asyncio.gather(*(put() for _ in range(2500))))
    assert outcomes == {"ok": 2500}


async def test_connections_beyond_the_limit_are_closed_and_the_others_served(serve: Any) -> None:
    running = await serve({("KV", "Put"): echo}, limits=GrpcLimits(max_connections=3))
    await running.unary(PUT)(b"")
    held = [await asyncio.open_connection("127.0.0.1", running.url.port) for _ in range(2)]
    reader, writer = await asyncio.open_connection("127.0.0.1", running.url.port)
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await running.unary(PUT)(b"")
    for _, each in held:
        each.close()


async def test_stopping_lets_running_calls_finish_within_the_grace(serve: Any) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, call: Call) -> rpc_pb2.PutResponse:
        entered.set()
        await release.wait()
        return rpc_pb2.PutResponse()

    running = await serve({("KV", "Put"): wait})
    call = running.unary(PUT)(b"")
    await entered.wait()
    stopping = asyncio.ensure_future(running.server.stop(5))
    release.set()
    assert await call == b""
    await stopping


async def test_a_port_in_use_is_a_clear_error(serve: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = await serve()
        with pytest.raises(ListenError, match=f"^listen tcp 127.0.0.1:{port}: address already in use$"):
            await running.server.start([Url(host="127.0.0.1", port=port)])


async def test_a_second_server_does_not_share_the_port(serve: Any) -> None:
    first = await serve()
    second = await serve()
    with pytest.raises(ListenError, match="address already in use"):
        await second.server.start([first.url])


async def test_an_address_of_another_machine_is_a_clear_error(serve: Any) -> None:
    running = await serve()
    with pytest.raises(ListenError, match=r"^listen tcp 192\.0\.2\.1:1234: cannot assign requested address$"):
        await running.server.start([Url(host="192.0.2.1", port=1234)])


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x00" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x10\x01\x04\x00\x00\x00\x01half of it",
    ],
    ids=["http/1.1", "zeros", "bad frames", "truncated"],
)
async def test_garbage_on_the_port_does_not_disturb_other_clients(serve: Any, garbage: bytes) -> None:
    running = await serve({("KV", "Put"): echo})
    reader, writer = await asyncio.open_connection("127.0.0.1", running.url.port)
    writer.write(garbage)
    await writer.drain()
    await running.unary(PUT)(b"")
    writer.close()
    del reader
    await running.unary(PUT)(b"")
    assert running.lines.of_level("error") == []


def test_limits_come_from_the_flags() -> None:
    limits = GrpcLimits.of(ServerConfig(max_request_bytes=1 << 20, max_concurrent_requests=7, grpc_keepalive_interval_s=0))
    options = dict(limits.channel_options())
    assert limits.max_concurrent_requests == 7
    assert options["grpc.max_receive_message_length"] == 2 * ((1 << 20) + 512 * 1024)
    assert options["grpc.max_concurrent_streams"] == 4096
    assert dict(GrpcLimits.of(ServerConfig(max_concurrent_streams=5)).channel_options())["grpc.max_concurrent_streams"] == 5
    assert options["grpc.keepalive_time_ms"] == 2**31 - 1
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.max_allowed_incoming_connections"] == 4096
    urls = (Url(host="127.0.0.1", port=1), Url(host="127.0.0.1", port=2))
    two = GrpcLimits.of(ServerConfig(listen_client_urls=urls, max_connections=100))
    assert dict(two.channel_options())["grpc.max_allowed_incoming_connections"] == 50
