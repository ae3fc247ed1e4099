"""One endpoint and its channel: knowing whether it can be reached before anything is sent, and sending one request.

Rules: `wait_ready` and `call` are separate on purpose: only what fails in the first certainly never left this process. gRPC's own retries
are off, so that a request is sent once. Closed by its owner (the pool, mostly).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeAlias, cast

import grpc
import grpc.aio

from kvserver.client.config import MIN_KEEPALIVE_TIME_S, ClientConfig, Endpoint
from kvserver.client.errors import DEADLINE_EXCEEDED, UNAVAILABLE, UNKNOWN, CallTimeoutError, ConnectError, ServerError
from kvserver.client.methods import Method, RequestT, ResponseT
from kvserver.client.policy import backoff_s

Metadata: TypeAlias = Sequence[tuple[str, str]]
RawCall: TypeAlias = Callable[[bytes, float | None, Metadata], Awaitable[bytes]]
"""A serialized request, a time limit and metadata to a serialized answer."""

GREETING_S: Final = 0.3
"""How long an endpoint that can't be reached may take to answer a greeting, when the reason is looked for."""
_SETTINGS: Final = b"\x04"
_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00" + _SETTINGS + bytes(5)
"""How an HTTP/2 client begins: its preface, and a SETTINGS frame without content (RFC 9113, 3.4). The server's first frame is one, too."""
_FRAME_HEADER_BYTES: Final = 9
_READY = grpc.ChannelConnectivity.READY
_FAILED = frozenset({grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN})


class Connection:
    """A lazily dialled channel to one endpoint. Channels to the same endpoint share a TCP connection, but those with `own_socket`."""

    def __init__(self, endpoint: Endpoint, config: ClientConfig, *, own_socket: bool = False) -> None:
        self.endpoint = endpoint
        options = [*_channel_options(config), ("grpc.use_local_subchannel_pool", int(own_socket))]
        self._channel = grpc.aio.insecure_channel(endpoint.target, options=options)

    def is_ready(self) -> bool:
        """Whether the last known state is connected; never blocks, never dials."""
        return self._channel.get_state() is _READY

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once connected; raise `ConnectError` when the attempt failed or took longer than `timeout_s`. Nothing is sent."""
        try:
            async with asyncio.timeout(timeout_s):
                while (state := self._channel.get_state(try_to_connect=True)) is not _READY:
                    if state in _FAILED:
                        raise ConnectError({self.endpoint.text: await self._reason()})
                    await self._channel.wait_for_state_change(state)
        except TimeoutError:
            raise ConnectError({self.endpoint.text: await self._reason()}) from None

    async def wait_dialled(self, timeout_s: float) -> None:
        """The same, trying until `timeout_s`: a busy server may miss the short limit of one attempt."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        attempt = 0
        while True:
            try:
                return await self.wait_ready(max(0.001, until_s - loop.time()))
            except ConnectError:
                attempt += 1
                if loop.time() + backoff_s(attempt) >= until_s:
                    raise
            await asyncio.sleep(backoff_s(attempt))

    async def call(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout_s: float | None, metadata: Metadata = ()
    ) -> ResponseT:
        """Send one request, once. Raises `ServerError` or `CallTimeoutError`."""
        if method.is_exchange:
            return await self._exchange(method, request, timeout_s, metadata)
        invoke = self._channel.unary_unary(
            method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.response.FromString
        )
        try:
            return await invoke(request, timeout=timeout_s, metadata=tuple(metadata))
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from None

    async def _exchange(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout_s: float | None, metadata: Metadata
    ) -> ResponseT:
        """One request and its answer on a stream of their own."""
        invoke = self._channel.stream_stream(
            method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.response.FromString
        )
        call = invoke(timeout=timeout_s, metadata=tuple(metadata))
        try:
            await call.write(request)
            await call.done_writing()
            return cast("ResponseT", await anext(aiter(call)))  # not call.read(): see Duplex
        except StopAsyncIteration:
            raise ServerError(UNAVAILABLE, "the server closed the stream without an answer") from None
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from None
        except asyncio.InvalidStateError:  # it ended while the request was being written; its status says why
            raise ServerError(_number(await call.code()), await call.details() or "") from None
        finally:
            call.cancel()

    async def stream(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout_s: float | None, metadata: Metadata = ()
    ) -> AsyncGenerator[ResponseT, None]:
        """Send one request, once, and yield the answers as they come; leaving early cancels the call. Raises as `call`."""
        invoke = self._channel.unary_stream(
            method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.response.FromString
        )
        call = invoke(request, timeout=timeout_s, metadata=tuple(metadata))
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from None
        finally:
            call.cancel()

    def duplex(self, method: Method[RequestT, ResponseT], metadata: Metadata = ()) -> Duplex[RequestT, ResponseT]:
        """Begin a call in which both sides stream. Cancel it when done."""
        invoke = self._channel.stream_stream(
            method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.response.FromString
        )
        call: grpc.aio.StreamStreamCall[Any, ResponseT] = invoke(metadata=tuple(metadata))
        return Duplex(call)

    def raw_caller(self, path: str) -> RawCall:
        """What sends serialized requests to one unary RPC, once each; for those who count microseconds. The calls raise as `call`."""
        invoke: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)

        async def call(request: bytes, timeout_s: float | None, metadata: Metadata) -> bytes:
            try:
                return await invoke(request, timeout=timeout_s, metadata=tuple(metadata))
            except grpc.aio.AioRpcError as error:
                raise _failure(error) from None

        return call

    async def close(self) -> None:
        """Close at once; calls under way are cancelled."""
        await self._channel.close(grace=None)

    async def _reason(self) -> str:
        """Why the channel failed, found out by dialling once more and greeting: gRPC's channel state doesn't say."""
        try:
            async with asyncio.timeout(GREETING_S):
                reader, writer = await asyncio.open_connection(self.endpoint.host, self.endpoint.port)
        except TimeoutError:
            return "timed out"
        except OSError as error:
            return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
        try:
            writer.write(_GREETING)
            async with asyncio.timeout(GREETING_S):
                answer = await reader.read(_FRAME_HEADER_BYTES)
        except (TimeoutError, OSError):
            answer = None
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if answer is None:
            return "accepts connections but does not answer: it hangs or is overloaded"
        return "is too slow to answer" if answer[3:4] == _SETTINGS else "accepts connections but does not speak gRPC"


class Duplex(Generic[RequestT, ResponseT]):
    """A call in which both sides stream. Responses are iterated over: grpcio's `read` drops those that are here when the status is, too."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Any, ResponseT]) -> None:
        self._call = call
        self._responses = aiter(call)

    async def write(self, request: RequestT) -> None:
        """Send one request. Raises `ServerError`."""
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from None
        except asyncio.InvalidStateError:
            raise ServerError(UNAVAILABLE, "the call has ended") from None

    async def read(self) -> ResponseT:
        """The next response. Raises `ServerError`, also where the server has ended the stream in peace (UNAVAILABLE)."""
        try:
            return cast("ResponseT", await anext(self._responses))
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from None
        except StopAsyncIteration:
            raise ServerError(UNAVAILABLE, "the server has ended the stream") from None

    def cancel(self) -> None:
        """End the call from this side."""
        self._call.cancel()


def _failure(error: grpc.aio.AioRpcError) -> ServerError | CallTimeoutError:
    code = _number(error.code())
    return CallTimeoutError() if code == DEADLINE_EXCEEDED else ServerError(code, error.details() or "")


def _number(code: grpc.StatusCode) -> int:
    value = code.value
    return int(value[0]) if isinstance(value, tuple) else UNKNOWN


def _channel_options(config: ClientConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.keepalive_time_ms", int(max(config.keepalive_time_s, MIN_KEEPALIVE_TIME_S) * 1000)),
        ("grpc.keepalive_timeout_ms", max(1, int(config.keepalive_timeout_s * 1000))),
    ]
